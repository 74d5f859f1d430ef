"""Experts on disk, plain and INT4: strict loading, what it takes in memory, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pilotfish.errors import WeightsError
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.int4 import dequantize_int4, quantize_int4
from pilotfish.layers.experts import ExpertFormat, Experts
from pilotfish.layers.layer import Layer
from pilotfish.weights import (
    SafetensorsSource,
    WeightRules,
    check_int4,
    execute_load,
    expert_rules,
    plan_load,
)
from pilotfish.weights.footprint import weight_kinds
from pilotfish.weights.int4 import num_parameters

TORCH, TRITON = KernelBackend("torch"), KernelBackend("triton")
D, W, E = 64, 32, 3
NAME = "model.layers.{layer}.mlp.experts"
RULES = WeightRules(rules=expert_rules("layers.{layer}.experts", "layers.{layer}.mlp.experts"))
SHAPES = {"gate_proj": (W, D), "up_proj": (W, D), "down_proj": (D, W)}

PLAIN, PACKED = ExpertFormat(), ExpertFormat(gate_up=32, down=32)

Tensors = dict[str, torch.Tensor]


class Floor(Layer):
    """A layer with nothing but experts."""

    def __init__(self, format: ExpertFormat) -> None:
        self.experts = Experts(D, W, E, dtype=torch.float32, format=format)


class House(Layer):
    """Two of them."""

    def __init__(self, *formats: ExpertFormat) -> None:
        self.layers = tuple(Floor(format) for format in formats)


def expert_tensors(layer: int, is_int4: bool) -> Tensors:
    """One layer's tensors as files have them."""
    found: Tensors = {}
    for expert in range(E):
        for name, shape in SHAPES.items():
            base = f"{NAME.format(layer=layer)}.{expert}.{name}"
            weight = torch.randn(shape).bfloat16()
            if not is_int4:
                found[f"{base}.weight"] = weight
                continue
            found[f"{base}.weight_packed"], found[f"{base}.weight_scale"] = quantize_int4(weight)
            found[f"{base}.weight_shape"] = torch.tensor(shape, dtype=torch.int32)
    return found


def checkpoint(tmp_path: Path, tensors: Mapping[str, torch.Tensor]) -> SafetensorsSource:
    save_file(dict(tensors), tmp_path / "model.safetensors")
    return SafetensorsSource.from_file(tmp_path / "model.safetensors")


def formats_of(source: SafetensorsSource, num_layers: int) -> list[ExpertFormat]:
    """By the first expert's tensors: what an architecture's config does."""
    return [
        PACKED if f"{NAME.format(layer=layer)}.0.up_proj.weight_packed" in source.infos else PLAIN
        for layer in range(num_layers)
    ]


def load(source: SafetensorsSource, house: House, backend: KernelBackend = TORCH) -> None:
    check_int4(source)
    plan = plan_load(RULES, source.infos, house.parameter_shapes())
    execute_load(
        plan,
        source,
        lambda name, tensor: house.assign(name, tensor, backend),
        torch.float32,
    )


def numbers(tensors: Tensors, layer: int, expert: int, name: str) -> torch.Tensor:
    base = f"{NAME.format(layer=layer)}.{expert}.{name}"
    if f"{base}.weight" in tensors:
        return tensors[f"{base}.weight"].float()
    packed, scale = tensors[f"{base}.weight_packed"], tensors[f"{base}.weight_scale"]
    return dequantize_int4(packed, scale, torch.float32)


@pytest.mark.parametrize("backend", [TORCH, TRITON], ids=lambda backend: backend.name)
def test_a_checkpoint_may_mix_int4_and_plain_layers(tmp_path: Path, backend: KernelBackend) -> None:
    """Decided tensor by tensor; every expert gets its own numbers, gate before up."""
    tensors = expert_tensors(0, is_int4=False) | expert_tensors(1, is_int4=True)
    source = checkpoint(tmp_path, tensors)
    formats = formats_of(source, 2)
    assert formats == [PLAIN, PACKED]
    house = House(*formats)
    load(source, house, backend)
    for layer, floor in enumerate(house.layers):
        for expert in range(E):
            gate, up, down = (numbers(tensors, layer, expert, name) for name in SHAPES)
            x, y = torch.eye(D), torch.eye(W)
            got = times(floor.experts.gate_up, expert, x, backend)
            assert torch.equal(got, torch.cat((gate, up)).T), (layer, expert)
            assert torch.equal(times(floor.experts.down, expert, y, backend), down.T)


def times(weight: Any, expert: int, x: torch.Tensor, backend: KernelBackend) -> torch.Tensor:
    from pilotfish.kernels.grouped_linear import group_rows, grouped_linear

    choice = torch.full((x.shape[0], 1), expert)
    groups = group_rows(choice, E, backend=backend, row_multiple=4)
    return grouped_linear(x[groups.rows], weight, groups, backend=backend)[: x.shape[0]]


def test_packed_layers_stay_as_small_as_in_the_file(tmp_path: Path) -> None:
    """The plan counts the file's bytes, and memory holds no more."""
    source = checkpoint(tmp_path, expert_tensors(0, is_int4=True))
    stored = sum(info.num_bytes for info in source.infos.values())
    shapes = E * 3 * 2 * 4
    assert stored == E * 3 * D * W // 2 + E * 3 * D * W // 32 * 2 + shapes
    for dtype in ("bfloat16", "float32"):
        kinds = weight_kinds(source.infos, dtype)
        assert list(kinds) == ["int4", "bfloat16", "int32"]
        assert sum(kinds.values()) == stored
    assert num_parameters(source.infos) == E * 3 * D * W
    for backend in (TORCH, TRITON):
        house = House(*formats_of(source, 1))
        load(source, house, backend)
        experts = house.layers[0].experts
        kept = 0
        for part in (experts.gate_up, experts.down):
            weights = part.separate or (part,)
            tensors = [t for w in weights for t in vars_of(w)]
            kept += sum(t.nbytes for t in tensors)
        assert kept == stored - shapes


def vars_of(weight: Any) -> list[torch.Tensor]:
    names = ("weight", "stacked", "scale", "bias")
    return [t for name in names if (t := getattr(weight, name, None)) is not None]


def test_plain_tensors_count_in_the_runs_dtype(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, expert_tensors(0, is_int4=False) | {"x": torch.zeros(3).int()})
    assert weight_kinds(source.infos, "float32") == {"float32": E * 3 * D * W * 4, "int32": 12}
    assert num_parameters(source.infos) == E * 3 * D * W + 3


def test_loading_holds_one_expert_at_a_time(tmp_path: Path) -> None:
    """What is read between two assignments is one expert's part, never a layer's."""
    source = checkpoint(tmp_path, expert_tensors(0, is_int4=True))
    house = House(*formats_of(source, 1))
    seen: list[tuple[str, int]] = []
    plan = plan_load(RULES, source.infos, house.parameter_shapes())
    execute_load(
        plan, source, lambda name, tensor: seen.append((name, tensor.numel())), torch.float32
    )
    assert len(seen) == len(house.parameter_shapes()) == E * 6
    assert max(size for _, size in seen) <= 2 * W * D // 8


def test_scales_keep_the_files_type_and_wider_ones_are_taken(tmp_path: Path) -> None:
    tensors = expert_tensors(0, is_int4=True)
    for name in [name for name in tensors if name.endswith("weight_scale")]:
        tensors[name] = tensors[name].float()
    house = House(*formats_of(source := checkpoint(tmp_path, tensors), 1))
    load(source, house)
    scale = house.layers[0].experts.down.separate[0].scale
    assert scale is not None
    assert scale.dtype == torch.float32


FIRST = f"{NAME.format(layer=0)}.1.gate_proj"


def changed(**tensors: torch.Tensor | None) -> Tensors:
    """INT4 tensors of one layer, some of FIRST's changed or (None) left out."""
    found = expert_tensors(0, is_int4=True)
    for kind, tensor in tensors.items():
        found.pop(f"{FIRST}.{kind}", None)
        if tensor is not None:
            found[f"{FIRST}.{kind}"] = tensor
    return found


INTS = torch.int32


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        (
            changed(weight_scale=torch.ones(W, D // 64).bfloat16()),
            f"{FIRST}.weight_scale is [32, 1]; wanted [32, 2]: one scale for each 32",
        ),
        (
            changed(weight_scale=torch.ones(W, D // 128).bfloat16()),
            f"{FIRST}.weight_scale is [32, 0]; wanted [32, 2]",
        ),
        (
            changed(weight_scale=torch.ones(W, 2, dtype=INTS)),
            f"{FIRST}.weight_scale is int32; wanted a floating type",
        ),
        (changed(weight_scale=None), f"{FIRST}.weight_packed stands without {FIRST}.weight_scale"),
        (changed(weight_shape=None), f"{FIRST}.weight_packed stands without {FIRST}.weight_shape"),
        (
            changed(weight_packed=torch.zeros(W, D // 8, dtype=torch.int64)),
            f"{FIRST}.weight_packed is int64 [32, 8]; wanted int32",
        ),
        (
            changed(weight_packed=torch.zeros(W, 9, dtype=INTS)),
            f"{FIRST}.weight_scale is [32, 2]; wanted [32, 2]: one scale for each 32 of the 72",
        ),
        (
            changed(
                weight_packed=torch.zeros(W, 4, dtype=INTS),
                weight_scale=torch.ones(W, 1),
                weight_shape=torch.tensor([W, 32], dtype=INTS),
            ),
            "gate_proj.weight_packed [32, 4]",
        ),
        (
            changed(
                weight_packed=torch.zeros(8, D // 8, dtype=INTS),
                weight_scale=torch.ones(8, 2),
                weight_shape=torch.tensor([8, D], dtype=INTS),
            ),
            "gate_proj.weight_packed [8, 8]",
        ),
        (
            changed(weight_packed=None, weight_scale=None, weight_shape=None),
            f"3 missing: {FIRST.removeprefix('model.')}.weight_packed",
        ),
        (
            changed(
                weight_packed=None,
                weight_scale=None,
                weight_shape=None,
                weight=torch.ones(W, D),
            ),
            f"1 extra: {FIRST}.weight [32, 64]",
        ),
        (
            changed(weight_shape=torch.tensor([W, D + 1], dtype=INTS)),
            f"{FIRST}.weight_shape says [32, 65]; wanted [32, 64]",
        ),
        (
            changed(weight_shape=torch.tensor([W, D, 1], dtype=INTS)),
            f"{FIRST}.weight_shape",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, tensors: Tensors, told: str) -> None:
    source = checkpoint(tmp_path, tensors)
    with pytest.raises(WeightsError) as caught:
        load(source, House(*formats_of(source, 1)))
    assert told in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("is_int4", [False, True])
def test_missing_experts_are_named_shortly(tmp_path: Path, is_int4: bool) -> None:
    """A layer's worth is one phrase, not a line for each of some hundred."""
    count = 40
    tensors = expert_tensors(0, is_int4=is_int4)
    source = checkpoint(tmp_path, tensors)
    house = House(*formats_of(source, 1))
    house.layers[0].experts = Experts(
        D,
        W,
        count,
        dtype=torch.float32,
        format=PACKED if is_int4 else PLAIN,
    )
    with pytest.raises(WeightsError) as caught:
        load(source, house)
    message = str(caught.value)
    kinds = 9 if is_int4 else 3
    assert f"{(count - E) * kinds} missing" in message
    assert "layers.0.mlp.experts.3.gate_proj" in message
    assert len(message) < 1500


def test_experts_that_nobody_wants_are_named_shortly(tmp_path: Path) -> None:
    tensors = expert_tensors(0, is_int4=True)
    extra = {
        name.replace("layers.0", f"layers.{i}"): t
        for name, t in tensors.items()
        for i in range(1, 9)
    }
    source = checkpoint(tmp_path, tensors | {n: t.clone() for n, t in extra.items()})
    with pytest.raises(WeightsError) as caught:
        load(source, House(*formats_of(source, 1)))
    assert f"{8 * E * 9} extra" in str(caught.value)
    assert len(str(caught.value)) < 1500
