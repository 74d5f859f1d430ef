"""Weights that are used as the file has them, where they lie: its values, and no copy of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kernels.native_cases import NATIVE, TORCH, needs_library
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.linear import linear, lookup_rows, prepare_linear
from pilotfish.layers.embedding import Embedding
from pilotfish.layers.layer import Layer
from pilotfish.layers.linear import Linear
from pilotfish.layers.router import Router, Routing
from pilotfish.models.loading import load_layers
from pilotfish.weights import (
    GGUFFile,
    Piece,
    Rule,
    SafetensorsSource,
    TensorInfo,
    Transform,
    WeightRules,
    WeightSource,
    plan_load,
    stays_stored,
    unpermute_rope,
    unpermute_rope_rows,
)
from pilotfish.weights.footprint import weight_kinds
from pilotfish.weights.formats import window
from pilotfish.weights.stored_rows import PACKED_KINDS
from support.gguf_files import random_blocks, write_gguf

pytestmark = needs_library

KINDS = {name: gguf.GGMLQuantizationType[name] for name in PACKED_KINDS}
WIDTH, VOCAB, HEADS, KV_HEADS, HEAD_DIM = 512, 37, 3, 1, 20
Q_ROWS, KV_ROWS = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM


class Net(Layer):
    """Every way in which layers share the file's tensors."""

    def __init__(self) -> None:
        self.embed = Embedding(VOCAB, WIDTH, multiplier=3.0)
        self.qkv = Linear(WIDTH, Q_ROWS + 2 * KV_ROWS, bias=True)
        self.head = Linear(WIDTH, VOCAB, keep_plain=True)


RULES = WeightRules(
    rules=(
        Rule("embed.weight", "embed"),
        Rule("head.weight", "head"),
        Rule(
            "qkv.weight",
            (
                Piece("q", Q_ROWS, unpermute_rope(HEADS)),
                Piece("k", KV_ROWS, unpermute_rope(KV_HEADS)),
                Piece("v", KV_ROWS),
            ),
        ),
        Rule("qkv.bias", "bias"),
    ),
    ties={"head.weight": "embed.weight"},
)
ROWS = {"embed": VOCAB, "q": Q_ROWS, "k": KV_ROWS, "v": KV_ROWS, "head": VOCAB}
Arrays = dict[str, tuple[np.ndarray[Any, Any], gguf.GGMLQuantizationType | None]]


def arrays(kinds: Mapping[str, str]) -> Arrays:
    """kinds: tensor -> type; random blocks, or normal numbers."""
    found: Arrays = {}
    for seed, (name, kind) in enumerate(kinds.items()):
        generator = np.random.default_rng(seed)
        if kind in KINDS:
            per_row = WIDTH // gguf.GGML_QUANT_SIZES[KINDS[kind]][0]
            found[name] = random_blocks(KINDS[kind], ROWS[name], per_row, seed), KINDS[kind]
        else:
            numbers = generator.standard_normal((ROWS[name], WIDTH)).astype(np.float32)
            found[name] = (numbers.astype(np.float16) if kind == "F16" else numbers), None
    found["bias"] = np.random.default_rng(9).standard_normal(Q_ROWS + 2 * KV_ROWS), None
    found["bias"] = found["bias"][0].astype(np.float32), None
    return found


class Unpacked:
    """A source whose packed tensors can only be had as numbers."""

    def __init__(self, source: WeightSource) -> None:
        self.infos, self.load = source.infos, source.load

    def __iter__(self) -> Any:
        return iter(self.infos)


def loaded(
    source: Any,
    dtype: torch.dtype = torch.float32,
    backend: KernelBackend = NATIVE,
    rules: WeightRules = RULES,
) -> Net:
    net = Net()
    plan = plan_load(rules, source.infos, net.parameter_shapes())
    load_layers(net, plan, source, dtype, backend=backend)
    return net


def results(net: Net, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    rows = net.embed(torch.tensor([0, VOCAB - 1, 7]))
    return [rows, net.qkv(x, NATIVE), net.head(x, NATIVE)]


def mapped_ranges(path: Path) -> list[range]:
    """Where a file lies in this process's memory; its deleted namesakes too."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    found = [line.split()[0].split("-") for line in lines if str(path) in line]
    return [range(int(start, 16), int(end, 16)) for start, end in found]


def lies_in_file(net: Layer, path: Path) -> bool:
    ranges = mapped_ranges(path)
    parts = [
        part
        for layer in net.layers_inside()
        if isinstance(layer, Linear)
        for part in layer.packed.parts
    ]
    assert parts
    return all(any(part.blocks.data_ptr() in one for one in ranges) for part in parts)


MIXES = {
    **{kind: dict.fromkeys(ROWS, kind) for kind in KINDS},
    "Q4_K_M": dict(zip(ROWS, ("Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q5_K"), strict=True)),
    "Q4_1 as the demo's": dict(zip(ROWS, ("Q8_0", "Q4_1", "Q4_1", "Q4_1", "Q8_0"), strict=True)),
    "halves and floats": dict(zip(ROWS, ("F16", "F16", "Q5_1", "F32", "F16"), strict=True)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mix", MIXES)
def test_packed_weights_give_the_bits_of_the_numbers_that_they_stand_for(
    tmp_path: Path, mix: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind, kinds under one another, rows in another order; nothing of it copied."""
    monkeypatch.setattr(window, "_SMALL_BYTES", 0)  # of which these tensors are
    path = write_gguf(tmp_path / "w.gguf", arrays(MIXES[mix]))
    packed, plain = loaded(GGUFFile(path), dtype), loaded(Unpacked(GGUFFile(path)), torch.float32)
    if sys.platform == "linux" and (mix, dtype) != ("halves and floats", torch.bfloat16):
        assert lies_in_file(packed, path)
        assert not lies_in_file(plain, path) or mix == "halves and floats"
    wide = loaded(GGUFFile(path))
    for got, wanted in zip(results(wide), results(plain), strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got, wanted)
    assert [result.dtype for result in results(packed, dtype)] == [dtype] * 3


def test_looked_up_rows_and_products_are_those_of_the_packages_numbers(tmp_path: Path) -> None:
    data = arrays(MIXES["Q4_K_M"])
    net = loaded(GGUFFile(write_gguf(tmp_path / "w.gguf", data)))
    numbers = {name: numbers_of(*data[name]) for name in ROWS}
    q = unpermute_rope_rows(numbers["q"], HEADS)
    k = unpermute_rope_rows(numbers["k"], KV_HEADS)
    weight = torch.cat((q, k, numbers["v"]))
    rows, qkv, logits = results(net)
    assert torch.equal(rows, numbers["embed"][[0, VOCAB - 1, 7]] * 3.0)
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1)).double()
    bias = torch.from_numpy(data["bias"][0]).double()
    for got, table, added in ((qkv, weight, bias), (logits, numbers["head"], 0)):
        size = x.abs() @ table.double().abs().T + 1e-6
        assert ((got - (x @ table.double().T + added)).abs() / size).max() < 2e-6


def numbers_of(data: np.ndarray[Any, Any], kind: gguf.GGMLQuantizationType | None) -> torch.Tensor:
    return torch.from_numpy(data if kind is None else gguf.dequantize(data, kind))


@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K", "F16", "F32"])
def test_a_tied_head_is_the_embeddings_memory(tmp_path: Path, kind: str) -> None:
    data = arrays(dict.fromkeys(ROWS, kind))
    del data["head"]
    path = write_gguf(tmp_path / "w.gguf", data)
    net = loaded(GGUFFile(path))
    [head] = net.head.packed.parts
    table = net.embed.weight
    shared = net.embed._table.weight if table is None else table
    assert shared.data_ptr() == head.blocks.data_ptr()
    eye = torch.eye(WIDTH)
    wanted = numbers_of(*data["embed"]).float()
    assert torch.equal(net.head(eye, NATIVE).T, wanted)
    assert torch.equal(net.embed(torch.arange(VOCAB)), wanted * 3.0)


def doubled(row_parts: Callable[[torch.Tensor], Any] | None = None) -> WeightRules:
    transform = Transform(lambda tensor: tensor * 2, row_parts=row_parts)
    rule = Rule("qkv.weight", ("q", "k", Piece("v", transform=transform)))
    return WeightRules(rules=(rule, *RULES.rules), ties=RULES.ties)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_transform_of_values_unpacks_its_own_tensor_alone(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    data = arrays(MIXES["Q4_K_M"])
    net = loaded(GGUFFile(write_gguf(tmp_path / "w.gguf", data)), dtype, rules=doubled())
    parts = net.qkv.packed.parts
    assert [part.kind for part in parts] == ["q4_k", "q4_k", str(dtype).removeprefix("torch.")]
    assert torch.equal(parts[2].blocks, (numbers_of(*data["v"]) * 2).to(dtype))


def test_a_choice_of_rows_stays_packed(tmp_path: Path) -> None:
    """Any transform that says which rows it takes: here half of them, the last first."""
    chosen = list(range(KV_ROWS - 1, -1, -2))
    rows = Transform(
        lambda tensor: tensor[chosen],
        lambda shape: (len(chosen), *shape[1:]),
        row_parts=lambda tensor: [tensor[i : i + 1] for i in chosen],
    )
    rules = WeightRules(rules=(Rule("weight", Piece("v", transform=rows)),), ignore=("bias",))
    data = arrays({"v": "Q5_0"})
    source = GGUFFile(write_gguf(tmp_path / "w.gguf", data))
    layer = Linear(WIDTH, len(chosen))
    load_layers(
        layer,
        plan_load(rules, source.infos, layer.parameter_shapes()),
        source,
        torch.float32,
        backend=NATIVE,
    )
    assert {part.kind for part in layer.packed.parts} == {"q5_0"}
    assert torch.equal(layer(torch.eye(WIDTH), NATIVE).T, numbers_of(*data["v"])[chosen])


def test_safetensors_stay_in_the_file_with_pieces_under_one_another(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tensors = {name: torch.randn(rows, WIDTH).bfloat16() for name, rows in ROWS.items()}
    tensors["bias"] = torch.randn(Q_ROWS + 2 * KV_ROWS).bfloat16()
    save_file(tensors, path)
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        net = loaded(SafetensorsSource.from_file(path), dtype)
        if sys.platform == "linux":
            assert lies_in_file(net, path)
        assert {part.kind for part in net.qkv.packed.parts} == {"bfloat16"}
        weight = torch.cat([unpermute_rope_rows(tensors["q"], HEADS)])
        got = net.qkv(torch.eye(WIDTH, dtype=torch.float32), NATIVE).T[:Q_ROWS]
        bias = tensors["bias"].to(dtype).float()[:Q_ROWS, None]
        assert torch.equal(got, weight.float() + bias)
        rows = net.embed(torch.tensor([3]))
        assert torch.equal(rows, tensors["embed"][[3]].to(dtype) * 3.0)


def test_fewer_bytes_where_a_narrower_dtype_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tensors = {name: torch.randn(rows, WIDTH) for name, rows in ROWS.items()}
    tensors["bias"] = torch.randn(Q_ROWS + 2 * KV_ROWS)
    save_file(tensors, path)
    net = loaded(SafetensorsSource.from_file(path), torch.bfloat16)
    assert {part.kind for part in net.qkv.packed.parts} == {"bfloat16"}
    assert net.embed.weight is not None
    assert torch.equal(net.embed.weight, tensors["embed"].bfloat16())
    wide = loaded(SafetensorsSource.from_file(path), torch.float32)
    assert {part.kind for part in wide.qkv.packed.parts} == {"float32"}


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_the_file_may_go_while_its_rows_are_used(tmp_path: Path, how: str) -> None:
    path = write_gguf(tmp_path / "w.gguf", arrays(MIXES["Q4_K_M"]))
    net = loaded(GGUFFile(path))
    other = write_gguf(tmp_path / "other.gguf", arrays(dict.fromkeys(ROWS, "Q4_0")))
    wanted = results(loaded(GGUFFile(path)))
    path.unlink() if how == "deleted" else other.replace(path)
    for got, want in zip(results(net), wanted, strict=True):
        assert torch.equal(got, want)


class Routed(Layer):
    def __init__(self) -> None:
        self.router = Router(WIDTH, Routing(num_experts=VOCAB, num_chosen=2), bias=False)


def test_layers_that_work_on_numbers_get_tensors(tmp_path: Path) -> None:
    """A router keeps float32 of its own; and no layer gets rows on another backend."""
    source = GGUFFile(write_gguf(tmp_path / "w.gguf", {**arrays({"head": "Q8_0"})}))
    rules = WeightRules(rules=(Rule("router.weight", "head"),), ignore=("bias",))
    for backend in (NATIVE, TORCH):
        net = Routed()
        plan = plan_load(rules, source.infos, net.parameter_shapes())
        load_layers(net, plan, source, torch.float32, backend=backend)
        got = linear(torch.eye(WIDTH), net.router.packed, backend=backend).T
        torch.testing.assert_close(got, source.load("head"))
    data = arrays(MIXES["Q8_0"])
    plain = loaded(GGUFFile(write_gguf(tmp_path / "all.gguf", data)), backend=TORCH)
    assert plain.embed.weight is not None
    assert not plain.qkv.packed.parts


def test_lookup_reads_a_weight_of_floats_in_another_dtype() -> None:
    table = torch.randn(9, 24).bfloat16()
    weight = prepare_linear(table, backend=NATIVE)
    assert torch.equal(
        lookup_rows(weight, torch.tensor([8, 0]), torch.float32), table[[8, 0]].float()
    )


@pytest.mark.parametrize(
    ("kind", "shape", "dtype", "stays"),
    [
        ("Q4_K", (4, 256), "bfloat16", True),
        ("Q4_K", (256,), "bfloat16", False),
        ("bfloat16", (4, 8), "float32", True),
        ("bfloat16", (4, 8), "float16", True),
        ("float32", (4, 8), "bfloat16", False),
        ("float32", (4, 8), "float32", True),
        ("float64", (4, 8), "float32", False),
        ("int32", (4, 8), "float32", False),
    ],
)
def test_what_stays(kind: str, shape: tuple[int, ...], dtype: str, *, stays: bool) -> None:
    assert stays_stored(TensorInfo(shape, kind, 1), dtype) is stays


def test_the_plan_counts_the_files_bytes_for_what_stays(tmp_path: Path) -> None:
    source = GGUFFile(write_gguf(tmp_path / "w.gguf", arrays(MIXES["Q4_K_M"])))
    of_file = {name: info.num_bytes for name, info in source.infos.items()}
    stays = {name for name, info in source.infos.items() if stays_stored(info, "float32")}
    assert stays == set(ROWS)
    kinds = weight_kinds(source.infos, "float32", stays.__contains__)
    assert kinds == {
        "q6_k": of_file["embed"] + of_file["v"],
        "q4_k": of_file["q"] + of_file["k"],
        "q5_k": of_file["head"],
        "float32": of_file["bias"],
    }
    numbers = sum(np.prod(info.shape) for info in source.infos.values())
    assert weight_kinds(source.infos, "bfloat16") == {"bfloat16": 2 * numbers}


ANONYMOUS = """
import re
from pathlib import Path
from pilotfish.loading.prepare import prepare_from_options

def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

prepared = prepare_from_options("demo", backend="native")
before = kilobytes("RssAnon")
prepared.model.load_model(prepared.weights)
print(kilobytes("RssAnon") - before, sum(prepared.memory_plan.weights.values()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_the_demo_copies_nothing() -> None:
    """Its file has 92 MiB; 257 MiB were taken by its numbers as bfloat16."""
    done = subprocess.run(
        [sys.executable, "-c", ANONYMOUS],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    copied, planned = map(int, re.findall(r"\d+", done.stdout))
    assert copied < 8 << 10
    assert 90 << 20 < planned < 94 << 20
