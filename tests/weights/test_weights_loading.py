"""Strict loading: every tensor and every parameter is accounted for, before anything is read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from pilotfish.errors import WeightsError
from pilotfish.weights import (
    LoadPlan,
    Piece,
    Rule,
    TensorInfo,
    WeightRules,
    drop_axis,
    execute_load,
    plan_load,
    unpermute_rope,
)

ROWS = {"q": 4, "k": 2, "v": 2}
RULES = WeightRules(
    rules=(
        Rule("embed.weight", "embed_tokens.weight"),
        Rule("head.weight", "lm_head.weight"),
        Rule("blocks.{layer}.qkv.weight", "layers.{layer}.qkv_proj.weight"),
        Rule(
            "blocks.{layer}.qkv.weight",
            [Piece(f"layers.{{layer}}.{part}_proj.weight", ROWS[part]) for part in ROWS],
        ),
        Rule(
            "blocks.{layer}.experts",
            [f"layers.{{layer}}.experts.{e}.weight" for e in range(3)],
            combine="stack",
        ),
        Rule("blocks.{layer}.bias", "layers.{layer}.gate.bias", dtype="float32"),
    ),
    ignore=("layers.{layer}.rotary.inv_freq",),
    ties={"head.weight": "embed.weight"},
)


class Memory:
    """A WeightSource over tensors; counts what is read."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = dict(tensors)
        self.read: list[str] = []

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return infos_of(self.tensors)

    def load(self, name: str) -> torch.Tensor:
        self.read.append(name)
        return self.tensors[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)


def infos_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorInfo]:
    return {
        name: TensorInfo(tuple(t.shape), str(t.dtype).removeprefix("torch."), t.nbytes)
        for name, t in tensors.items()
    }


def checkpoint(
    num_layers: int = 2, prefix: str = "", fused: bool = False
) -> dict[str, torch.Tensor]:
    tensors = {
        f"{prefix}embed_tokens.weight": torch.randn(7, 3),
        "lm_head.weight": torch.randn(7, 3),
    }
    for layer in range(num_layers):
        base = f"{prefix}layers.{layer}."
        if fused:
            tensors[base + "qkv_proj.weight"] = torch.randn(8, 3)
        else:
            for part, rows in zip("qkv", (4, 2, 2), strict=True):
                tensors[f"{base}{part}_proj.weight"] = torch.randn(rows, 3)
        for expert in range(3):
            tensors[f"{base}experts.{expert}.weight"] = torch.randn(2, 3)
        tensors[base + "gate.bias"] = torch.randn(5)
        tensors[base + "rotary.inv_freq"] = torch.randn(2)
    return tensors


def shapes(num_layers: int = 2) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"embed.weight": (7, 3), "head.weight": (7, 3)}
    for layer in range(num_layers):
        found[f"blocks.{layer}.qkv.weight"] = (8, 3)
        found[f"blocks.{layer}.experts"] = (3, 2, 3)
        found[f"blocks.{layer}.bias"] = (5,)
    return found


def run(
    plan: LoadPlan, source: Memory, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    got: dict[str, torch.Tensor] = {}

    def assign(name: str, tensor: torch.Tensor) -> None:
        assert name not in got
        got[name] = tensor

    execute_load(plan, source, assign, dtype)
    return got


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("fused", [False, True])
def test_every_parameter_is_filled_with_its_rows(prefix: str, fused: bool) -> None:
    tensors = checkpoint(12, prefix, fused)  # two-digit layers too
    source = Memory(tensors)
    got = run(plan_load(RULES, source.infos, shapes(12)), source, torch.bfloat16)
    assert set(got) == set(shapes(12))
    for layer in range(12):
        base = f"{prefix}layers.{layer}."
        parts = ["qkv_proj"] if fused else ["q_proj", "k_proj", "v_proj"]
        whole = torch.cat([tensors[f"{base}{part}.weight"] for part in parts])
        assert torch.equal(got[f"blocks.{layer}.qkv.weight"], whole.bfloat16())
        experts = torch.stack([tensors[f"{base}experts.{e}.weight"] for e in range(3)])
        assert torch.equal(got[f"blocks.{layer}.experts"], experts.bfloat16())
        assert got[f"blocks.{layer}.bias"].dtype == torch.float32
        assert torch.equal(got[f"blocks.{layer}.bias"], tensors[base + "gate.bias"])
    assert torch.equal(got["head.weight"], tensors["lm_head.weight"].bfloat16())


def test_plan_reads_each_tensor_once_in_file_order_and_counts_bytes() -> None:
    source = Memory(checkpoint())
    plan = plan_load(RULES, source.infos, shapes())
    assert source.read == []
    run(plan, source)
    assert source.read == [name for name in source if "inv_freq" not in name]
    assert plan.ignored == ("layers.0.rotary.inv_freq", "layers.1.rotary.inv_freq")
    assert plan.num_bytes == sum(source.tensors[name].nbytes for name in source.read)


def test_tied_parameter_gets_its_owners_tensor_when_the_file_has_none() -> None:
    tensors = checkpoint()
    del tensors["lm_head.weight"]
    source = Memory(tensors)
    plan = plan_load(RULES, source.infos, shapes())
    assert plan.ties == {"head.weight": "embed.weight"}
    got = run(plan, source)
    assert got["head.weight"] is got["embed.weight"]


def test_integers_and_bools_keep_their_dtype() -> None:
    tensors = {"a": torch.arange(4), "b": torch.tensor([True, False])}
    source = Memory(tensors)
    rules = WeightRules(rules=(Rule("a", "a"), Rule("b", "b")))
    got = run(plan_load(rules, source.infos, {"a": (4,), "b": (2,)}), source, torch.bfloat16)
    assert got["a"].dtype == torch.int64
    assert got["b"].dtype == torch.bool


def test_first_rule_whose_tensors_are_all_there_is_used() -> None:
    rules = WeightRules(rules=(Rule("p", ("a", "b")), Rule("p", "a"), Rule("p", "c")))
    shape = {"p": (2,)}
    alone = plan_load(rules, infos_of({"a": torch.ones(2)}), shape)
    assert [piece.name for piece in alone.steps[0].pieces] == ["a"]
    halves = {"a": torch.ones(1), "b": torch.ones(1)}
    both = plan_load(rules, infos_of(halves), shape)
    assert [piece.name for piece in both.steps[0].pieces] == ["a", "b"]
    with pytest.raises(WeightsError, match=r"1 extra: c \[2\]"):
        plan_load(rules, infos_of({**halves, "c": torch.ones(2)}), shape)


def test_all_missing_extra_and_misshapen_are_named_at_once() -> None:
    tensors = checkpoint()
    del tensors["layers.0.v_proj.weight"], tensors["embed_tokens.weight"]
    tensors["layers.1.q_proj.weight"] = torch.randn(6, 3)
    tensors["lm_head.weight"] = torch.randn(8, 3)
    tensors["layers.2.q_proj.weight"] = torch.randn(4, 3)
    tensors["layers.0.q_proj.bias"] = torch.randn(4)
    source = Memory(tensors)
    with pytest.raises(WeightsError) as caught:
        plan_load(RULES, source.infos, {**shapes(), "other.weight": (1,)})
    message = str(caught.value)
    for part in (
        "3 missing: embed_tokens.weight (for embed.weight), "
        "layers.0.v_proj.weight (for blocks.0.qkv.weight), other.weight",
        "2 extra: layers.2.q_proj.weight [4, 3], layers.0.q_proj.bias [4]",
        "2 misshapen:",
        "layers.1.q_proj.weight: got [6, 3], wanted [4, 3] as a part of blocks.1.qkv.weight",
        "head.weight: got lm_head.weight [8, 3], wanted [7, 3]",
    ):
        assert part in message
    assert source.read == []


def test_rows_that_only_fit_together_are_refused() -> None:
    tensors = checkpoint(1)
    tensors["layers.0.q_proj.weight"] = torch.randn(2, 3)
    tensors["layers.0.k_proj.weight"] = torch.randn(4, 3)
    with pytest.raises(WeightsError, match=r"q_proj.weight: got \[2, 3\], wanted \[4, 3\]"):
        plan_load(RULES, infos_of(tensors), shapes(1))


def test_same_tensor_with_and_without_prefix_is_refused() -> None:
    tensors = checkpoint(1)
    tensors["model.embed_tokens.weight"] = torch.randn(7, 3)
    with pytest.raises(
        WeightsError, match=r"1 extra: model.embed_tokens.weight \(the file also has"
    ):
        plan_load(RULES, infos_of(tensors), shapes(1))


def test_tensor_of_an_unknown_parameter_is_extra() -> None:
    wanted = shapes(1)
    del wanted["blocks.0.bias"]
    with pytest.raises(WeightsError, match=r"1 extra: layers.0.gate.bias"):
        plan_load(RULES, infos_of(checkpoint(1)), wanted)


def test_tie_to_a_parameter_that_nothing_fills_or_of_another_shape() -> None:
    with pytest.raises(WeightsError, match=r"head.weight \(tied to embed.weight, which no tensor"):
        plan_load(RULES, {}, {"head.weight": (7, 3), "embed.weight": (7, 3)})
    info = {"embed_tokens.weight": TensorInfo((7, 3), "float32", 84)}
    with pytest.raises(WeightsError, match=r"tied to embed.weight, got \[7, 3\], wanted \[9, 3\]"):
        plan_load(RULES, info, {"head.weight": (9, 3), "embed.weight": (7, 3)})


def test_longest_prefix_is_replaced() -> None:
    rules = WeightRules(
        rules=(Rule("norm", "norm.weight"), Rule("first", "layers.0.norm.weight")),
        prefixes={"language_model.model.": "", "language_model.": "", "midlayer.": "layers.0."},
    )
    tensors = {
        "language_model.model.norm.weight": torch.ones(2),
        "midlayer.norm.weight": torch.ones(2),
    }
    plan = plan_load(rules, infos_of(tensors), {"norm": (2,), "first": (2,)})
    assert set(run(plan, Memory(tensors))) == {"norm", "first"}


@given(heads=st.integers(1, 4), half=st.integers(1, 5), width=st.integers(1, 3))
def test_unpermute_rope_turns_interleaved_pairs_to_halves(
    heads: int, half: int, width: int
) -> None:
    """Written row by row: row 2j + s of a head goes to row j + s * half."""
    tensor = torch.randn(heads * 2 * half, width)
    source = Memory({"q": tensor})
    rules = WeightRules(rules=(Rule("q", Piece("q", transform=unpermute_rope(heads))),))
    got = run(plan_load(rules, source.infos, {"q": tuple(tensor.shape)}), source)["q"]
    for head in range(heads):
        for pair in range(half):
            for side in range(2):
                start = head * 2 * half
                assert torch.equal(got[start + pair + side * half], tensor[start + 2 * pair + side])


def test_transforms_check_shapes_before_reading() -> None:
    rules = WeightRules(
        rules=(
            Rule("conv", Piece("conv.weight", transform=drop_axis(1))),
            Rule("q", Piece("q.weight", transform=unpermute_rope(2))),
        )
    )
    good = {"conv.weight": torch.randn(4, 1, 3), "q.weight": torch.randn(8, 2)}
    wanted = {"conv": (4, 3), "q": (8, 2)}
    got = run(plan_load(rules, infos_of(good), wanted), Memory(good))
    assert torch.equal(got["conv"], good["conv.weight"][:, 0])
    bad = {"conv.weight": torch.randn(4, 2, 3), "q.weight": torch.randn(6, 2)}
    with pytest.raises(
        WeightsError, match=r"conv.weight: got \[4, 2, 3\], wanted size 1 on axis 1"
    ) as e:
        plan_load(rules, infos_of(bad), wanted)
    assert "q.weight: got [6, 2], wanted rows for 2 heads of even width" in str(e.value)


def test_plan_of_many_numbered_names_keeps_the_numbers_apart() -> None:
    rules = WeightRules(
        rules=tuple(Rule(f"l.{{i}}.e.{{j}}.w{n}", f"layers.{{i}}.x.{{j}}.w{n}") for n in range(40))
    )
    names = [(i, j, n) for i in range(10) for j in range(100) for n in range(40)]
    infos = {f"layers.{i}.x.{j}.w{n}": TensorInfo((2,), "float32", 8) for i, j, n in names}
    plan = plan_load(rules, infos, {f"l.{i}.e.{j}.w{n}": (2,) for i, j, n in names})
    assert len(plan.steps) == len(names)
    for step in plan.steps[:: len(names) // 50]:
        assert step.pieces[0].name == step.parameter.replace("l.", "layers.", 1).replace(
            ".e.", ".x."
        )


PEAK = """
import re, sys, torch
from pathlib import Path
from pilotfish.weights import Rule, SafetensorsSource, WeightRules, execute_load, plan_load

def peak():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) // 1024

source = SafetensorsSource.from_file(sys.argv[1])
names = [f"t{n}" for n in range(12)]
rules = WeightRules(
    rules=[Rule(f"p{n}", (f"t{2 * n}", f"t{2 * n + 1}")) for n in range(3)]
    + [Rule(f"p{n}", f"t{n}") for n in range(6, 12)]
)
rows = source.infos["t0"].shape
shapes = {f"p{n}": (rows[0] * (2 if n < 3 else 1), rows[1]) for n in (0, 1, 2, *range(6, 12))}
plan = plan_load(rules, source.infos, shapes)
torch.ones(1000).bfloat16().float()
kept, before = {}, peak()
execute_load(plan, source, lambda name, tensor: None, torch.bfloat16)
dropped = peak() - before
execute_load(plan, source, kept.__setitem__, torch.bfloat16)
print(dropped, peak() - before)
"""


def test_memory_is_the_weights_and_one_tensor(tmp_path: Path) -> None:
    """Twelve float32 tensors of 16 MiB, as bfloat16, six of them fused in pairs: 96 MiB in all."""
    tensors = {f"t{n}": torch.zeros(2048, 2048) for n in range(12)}
    save_file(tensors, tmp_path / "m.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "m.safetensors")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1048576"},
    )
    dropped, kept = map(int, done.stdout.split())
    slack = 6
    assert dropped <= 16 + 16 + slack  # one on disk's dtype, and the fused one it goes into
    assert 96 - slack <= kept <= 96 + 16 + slack
