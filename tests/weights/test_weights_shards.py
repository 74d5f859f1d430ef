"""Shards at loading: what a rank holds of a parameter is what the whole one has there; shards that
no load can hand over are refused before anything is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from kernels.weight_cases import FLOAT_KINDS
from pilotfish.errors import ConfigError, PluginError
from pilotfish.parallel.shard import Shard
from pilotfish.weights import (
    GGUFFile,
    LoadPlan,
    Piece,
    Rule,
    SafetensorsSource,
    TensorInfo,
    Transform,
    WeightRules,
    plan_load,
    unpermute_rope,
)
from pilotfish.weights.formats.torch_bin import TorchBinSource
from pilotfish.weights.shards import bytes_read, check_shards
from support.gguf_files import random_blocks, write_gguf
from weights.shards_cases import (
    Shards,
    Touched,
    kept,
    numbers,
    ranges_of,
    read,
)

HEADS = 2
CHOSEN = (5, 1, 2)
TRANSFORMS = {
    "none": None,
    "turned": unpermute_rope(HEADS),
    "doubled": Transform(lambda tensor: tensor * 2),
    "chosen": Transform(
        lambda tensor: tensor[list(CHOSEN)],
        lambda shape: (len(CHOSEN), *shape[1:]),
        row_parts=lambda tensor: [tensor[i : i + 1] for i in CHOSEN],
    ),
}


@attrs.frozen
class Tensor:
    """One of a file, and how it becomes a piece."""

    name: str
    rows: int
    kind: str
    transform: str

    @property
    def piece(self) -> Piece:
        return Piece(self.name, transform=TRANSFORMS[self.transform])


@attrs.frozen
class Fused:
    """A parameter "p" of some tensors, which "q" shares."""

    tensors: tuple[Tensor, ...]
    width: int
    combine: Any
    format: str

    def source(self, folder: Path) -> Any:
        if self.format == "gguf":
            arrays = {one.name: self._array(one, seed) for seed, one in enumerate(self.tensors)}
            return GGUFFile(write_gguf(folder / "w.gguf", arrays))
        generator = torch.Generator().manual_seed(1)
        tensors = {
            one.name: torch.randn(one.rows, self.width, generator=generator).to(
                getattr(torch, one.kind)
            )
            for one in self.tensors
        }
        if self.format == "bin":  # where a tensor may lie by columns
            tensors = {name: tensor.t().contiguous().t() for name, tensor in tensors.items()}
            torch.save(tensors, folder / "w.bin")
            return TorchBinSource.from_file(folder / "w.bin")
        save_file(tensors, folder / "w.safetensors")
        return SafetensorsSource.from_file(folder / "w.safetensors")

    def _array(self, one: Tensor, seed: int) -> tuple[Any, gguf.GGMLQuantizationType | None]:
        if one.kind in FLOAT_KINDS:
            numbers = np.random.default_rng(seed).standard_normal((one.rows, self.width))
            return numbers.astype(one.kind), None
        kind = gguf.GGMLQuantizationType[one.kind]
        per_row = self.width // gguf.GGML_QUANT_SIZES[kind][0]
        return random_blocks(kind, one.rows, per_row, seed), kind

    @property
    def shape(self) -> tuple[int, ...]:
        rows = [len(CHOSEN) if one.transform == "chosen" else one.rows for one in self.tensors]
        if self.combine == "stack":
            return (len(rows), rows[0], self.width)
        return (sum(rows), self.width)

    def plan(self, source: Any) -> LoadPlan:
        rule = Rule("p", [one.piece for one in self.tensors], combine=self.combine)
        rules = WeightRules(rules=(rule,), ties={"q": "p"})
        return plan_load(rules, source.infos, {"p": self.shape, "q": self.shape})


@st.composite
def fused(draw: st.DrawFn) -> Fused:
    form = draw(st.sampled_from(("safetensors", "gguf", "bin")))
    packed = ("Q4_0", "Q8_0", "Q4_K", "Q6_K", "float16", "float32")
    kinds = packed if form == "gguf" else (*FLOAT_KINDS, "float64")
    combine = draw(st.sampled_from(("rows", "rows", "stack")))
    same = draw(st.integers(6, 12))
    tensors = []
    for number in range(draw(st.integers(1, 3))):
        transform = draw(
            st.sampled_from(list(TRANSFORMS if combine == "rows" else ["none", "doubled"]))
        )
        rows = 4 * HEADS if transform == "turned" else draw(st.integers(6, 12))
        kind = draw(st.sampled_from(kinds))
        tensors.append(Tensor(f"t{number}", same if combine == "stack" else rows, kind, transform))
    return Fused(tuple(tensors), 512 if form == "gguf" else 48, combine, form)


@pytest.mark.parametrize("keeps", [None, kept], ids=["numbers", "kept"])
@given(fused(), st.sampled_from((torch.float32, torch.bfloat16)), st.data())
def test_a_shard_is_what_the_whole_has_there(
    tmp_path_factory: pytest.TempPathFactory,
    keeps: Any,
    made: Fused,
    dtype: torch.dtype,
    data: st.DataObject,
) -> None:
    """Of every format, kind, transform and dtype; and it keeps nothing else in memory."""
    source = made.source(tmp_path_factory.mktemp("w"))
    plan = made.plan(source)
    axis = data.draw(st.integers(0, len(made.shape) - 1))
    step = 256 if keeps and axis == 1 and made.format == "gguf" and len(made.shape) == 2 else 1
    shard = Shard(axis, ranges_of(data.draw, made.shape[axis], step))
    whole = read(plan, source, dtype=dtype, keeps=keeps)
    got = read(plan, source, {"p": shard, "q": shard}, dtype, keeps)
    assert got["q"] is got["p"]
    assert torch.equal(numbers(got["p"]), shard.of(numbers(whole["p"])))
    assert tuple(got["p"].shape) == shard.shape(made.shape)
    if isinstance(got["p"], torch.Tensor):
        assert got["p"].dtype == dtype
        own = [got["p"]]
    else:
        assert {part.kind for part in got["p"].parts} <= {part.kind for part in whole["p"].parts}
        own = [part.blocks for part in got["p"].parts]
        assert all(tensor.stride(1) == 1 or tensor.shape[1] == 1 for tensor in own)
    if shard.shape(made.shape) != made.shape:
        for tensor in own:
            storage = tensor.untyped_storage()
            assert storage.nbytes() == tensor.nbytes or not storage.resizable()


def two(
    folder: Path, rows: int = 6, width: int = 8
) -> tuple[LoadPlan, SafetensorsSource, dict[str, torch.Tensor]]:
    """Parameters "a" of two tensors, "b", "tied" to it, and "s" of a stack."""
    tensors = {name: torch.randn(rows, width) for name in ("a0", "a1", "b", "s0", "s1")}
    save_file(tensors, folder / "w.safetensors")
    source = SafetensorsSource.from_file(folder / "w.safetensors")
    rules = WeightRules(
        rules=(Rule("a", ("a0", "a1")), Rule("b", "b"), Rule("s", ("s0", "s1"), combine="stack")),
        ties={"tied": "b"},
    )
    one = (rows, width)
    shapes = {"a": (2 * rows, width), "b": one, "tied": one, "s": (2, *one)}
    return plan_load(rules, source.infos, shapes), source, tensors


def test_nothing_is_read_or_handed_over_of_an_empty_shard(tmp_path: Path) -> None:
    plan, source, _ = two(tmp_path)
    touched = Touched(source)
    none, columns = Shard.rows(), Shard.columns()
    shards = {"a": none, "b": columns, "tied": columns, "s": none}
    assert read(plan, touched, shards) == {}
    assert touched.asked == []
    assert bytes_read(plan, source.infos, shards) == 0
    changed = WeightRules(rules=[Rule("p", Piece("b", transform=TRANSFORMS["doubled"]))])
    infos = {"b": source.infos["b"]}
    assert bytes_read(plan_load(changed, infos, {"p": (6, 8)}), infos, {"p": columns}) == 0


def test_a_shard_of_all_is_the_memory_of_the_file(tmp_path: Path) -> None:
    plan, source, tensors = two(tmp_path)
    half, rest = range(3), range(3, 6)
    for shard in (Shard.rows(half, rest), Shard.columns(range(8))):
        got = read(plan, source, {"b": shard, "tied": shard})["b"]
        assert torch.equal(got, tensors["b"])
        assert not got.untyped_storage().resizable()


def test_a_tensor_that_fills_two_parameters_is_counted_once(tmp_path: Path) -> None:
    _, source, _ = two(tmp_path)
    infos = {"b": source.infos["b"]}
    plan = plan_load(
        WeightRules(rules=[Rule("p", "b"), Rule("q", "b")]), infos, dict.fromkeys("pq", (6, 8))
    )
    part = infos["b"].num_bytes // 6
    half, most = Shard.rows(range(3)), Shard.rows(range(5))
    assert bytes_read(plan, infos, {}) == plan.num_bytes == 6 * part
    assert bytes_read(plan, infos, {"p": half, "q": half}) == 6 * part
    assert bytes_read(plan, infos, {"p": half, "q": most}) == 6 * part
    assert bytes_read(plan, infos, {"p": Shard.rows(range(1)), "q": half}) == 4 * part


@pytest.mark.parametrize("keeps", [None, kept], ids=["numbers", "kept"])
def test_row_parts_that_do_not_make_the_rows_are_refused(tmp_path: Path, keeps: Any) -> None:
    _, source, _ = two(tmp_path)
    infos = {"b": source.infos["b"]}
    lying = Transform(lambda tensor: tensor, row_parts=lambda tensor: [tensor[:4]])
    plan = plan_load(
        WeightRules(rules=[Rule("p", Piece("b", transform=lying))]), infos, {"p": (6, 8)}
    )
    with pytest.raises(
        PluginError, match=r"Transform of b made \[4, 8\] of \[6, 8\]; wanted \[6, 8\]"
    ):
        read(plan, source, {"p": Shard.rows(range(2))}, keeps=keeps)


def test_pieces_of_which_nothing_is_held_are_not_asked_for(tmp_path: Path) -> None:
    plan, source, tensors = two(tmp_path)
    for keeps in (None, kept):
        touched = Touched(source)
        shards = {"a": Shard.rows(range(7, 9)), "s": Shard.rows(range(1, 2))}
        got = read(plan, touched, shards, keeps=keeps)
        assert set(touched.asked) == {"a1", "b", "s1"}
        assert torch.equal(numbers(got["a"]), tensors["a1"][1:3])
        assert torch.equal(got["s"], tensors["s1"][None])


def test_parameters_that_share_a_tensor_are_cut_alike(tmp_path: Path) -> None:
    plan, source, _ = two(tmp_path)
    half, other = Shard.rows(range(3)), Shard.rows(range(3, 6))
    for shards in ({"b": half}, {"tied": half}, {"b": half, "tied": other}):
        with pytest.raises(PluginError, match=r"tied shares the tensor of b.* one Shard for both"):
            read(plan, source, shards)


@pytest.mark.parametrize(
    ("shards", "said"),
    [
        ({"a": Shard.rows(range(5, 13))}, r"a is \[12, 8\]; got Shard.*within it"),
        ({"a": Shard.columns(range(0, 9))}, r"a is \[12, 8\]"),
        ({"a": Shard(2, [range(0, 1)])}, r"a is \[12, 8\]"),
        ({"a": Shard.rows(range(-1, 3))}, r"a is \[12, 8\]"),
        ({"other.weight": Shard.rows()}, r"a Shard was given of other\.weight; wanted names of"),
    ],
)
def test_shards_of_nothing_are_refused(tmp_path: Path, shards: Shards, said: str) -> None:
    plan, source, _ = two(tmp_path)
    with pytest.raises(PluginError, match=said):
        check_shards(plan, source.infos, shards)


PACKED = {
    "out": TensorInfo((4, 512), "Q4_K", 4 * 288),
    "other": TensorInfo((4, 512), "Q8_0", 4 * 544),
    "plain": TensorInfo((4, 512), "float16", 4096),
}


@pytest.mark.parametrize(
    ("pieces", "keeps", "columns", "said"),
    [
        (("out",), kept, [range(0, 128)], "out is Q4_K, in blocks of 256 columns"),
        (("plain", "out"), kept, [range(128, 512)], "out is Q4_K"),
        (("other",), kept, [range(0, 16), range(16, 512)], "other is Q8_0, in blocks of 32"),
        (("other", "plain"), kept, [range(0, 32), range(32, 96)], None),
        (("out",), None, [range(0, 128)], None),
        (("out",), lambda name: name != "tied", [range(0, 128)], None),
        ((Piece("out", transform=TRANSFORMS["doubled"]),), kept, [range(0, 128)], None),
        ((Piece("out", transform=TRANSFORMS["turned"]),), kept, [range(0, 128)], "out is Q4_K"),
    ],
)
def test_where_packed_columns_can_be_cut_is_known_from_headers(
    pieces: tuple[Any, ...], keeps: Any, columns: list[range], said: str | None
) -> None:
    """Each slice counts, also where all of them together are the whole."""
    names = {piece.name if isinstance(piece, Piece) else piece for piece in pieces}
    infos = {name: info for name, info in PACKED.items() if name in names}
    shape = (4 * len(pieces), 512)
    rules = WeightRules(rules=(Rule("p", pieces),), ties={"tied": "p"})
    plan = plan_load(rules, infos, {"p": shape, "tied": shape})
    shard = Shard.columns(*columns)
    shards = {"p": shard, "tied": shard}
    if said is None:
        check_shards(plan, infos, shards, keeps)
        return
    with pytest.raises(ConfigError, match=said):
        check_shards(plan, infos, shards, keeps)
