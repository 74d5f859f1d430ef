"""Weights that are packed when they are loaded: nothing of the file is needed after that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.linear import LinearWeight
from pilotfish.layers.layer import Layer
from pilotfish.layers.linear import Linear
from pilotfish.layers.mlp import GatedMLP
from pilotfish.weights import (
    Rule,
    SafetensorsSource,
    WeightRules,
    execute_load,
    plan_load,
)

BACKEND = KernelBackend()
RULES = WeightRules(
    rules=(
        Rule("mlp.gate_up.weight", ["gate.weight", "up.weight"]),
        Rule("mlp.gate_up.bias", ["gate.bias", "up.bias"]),
        Rule("mlp.down.weight", "down.weight"),
        Rule("mlp.down.bias", "down.bias"),
        Rule("head.weight", "head.weight"),
    )
)


class Net(Layer):
    def __init__(self) -> None:
        self.mlp = GatedMLP(16, 24, bias=True)
        self.head = Linear(16, 10)


def tensors_on(path: Path) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"gate": (24, 16), "up": (24, 16), "down": (16, 24), "head": (10, 16)}
    found = {f"{n}.weight": torch.randn(s, generator=generator) for n, s in shapes.items()}
    for name in ("gate", "up", "down"):
        found[f"{name}.bias"] = torch.randn(shapes[name][0], generator=generator)
    save_file(found, path)
    return found


def load(path: Path, dtype: torch.dtype) -> Net:
    net = Net()
    source = SafetensorsSource.from_file(path)
    plan = plan_load(RULES, source.infos, net.parameter_shapes())
    execute_load(plan, source, lambda name, tensor: net.assign(name, tensor, BACKEND), dtype)
    return net


def linears(net: Net) -> list[Linear]:
    return [layer for layer in net.layers_inside() if isinstance(layer, Linear)]


def outputs(net: Net, dtype: torch.dtype) -> list[torch.Tensor]:
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(4)).to(dtype)
    wide = torch.randn(4, 24, generator=torch.Generator().manual_seed(5)).to(dtype)
    return [net.mlp.gate_up(x, BACKEND), net.mlp.down(wide, BACKEND), net.head(x, BACKEND)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_left_to_the_first_pass(tmp_path: Path, dtype: torch.dtype) -> None:
    """Every matrix is packed, and a pass changes nothing of any layer."""
    tensors_on(tmp_path / "w.safetensors")
    net = load(tmp_path / "w.safetensors", dtype)
    before = [dict(vars(layer)) for layer in net.layers_inside()]
    assert all(isinstance(layer.packed, LinearWeight) for layer in linears(net))
    outputs(net, dtype)
    assert all(
        now.keys() == then.keys() and all(now[name] is then[name] for name in now)
        for now, then in zip(map(vars, net.layers_inside()), before, strict=True)
    )


def test_the_file_may_be_deleted_or_replaced_after_loading(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    wanted = tensors_on(path)
    deleted, replaced = (load(path, torch.float32) for _ in range(2))
    save_file({name: torch.zeros_like(t) for name, t in wanted.items()}, tmp_path / "other")
    (tmp_path / "other").replace(path)
    path.unlink()
    x = torch.eye(16)
    for net in (deleted, replaced):
        torch.testing.assert_close(net.head(x, BACKEND).T, wanted["head.weight"])


def test_one_tensor_may_fill_a_parameter_twice(tmp_path: Path) -> None:
    save_file({"head.weight": torch.randn(10, 16)}, tmp_path / "w.safetensors")
    source = SafetensorsSource.from_file(tmp_path / "w.safetensors")
    rules = WeightRules(rules=(Rule("head.weight", ["head.weight", "head.weight"]),))
    got: dict[str, torch.Tensor] = {}
    plan = plan_load(rules, source.infos, {"head.weight": (20, 16)})
    execute_load(plan, source, got.__setitem__, torch.float32)  # type: ignore[arg-type]
    whole = got["head.weight"]
    assert torch.equal(whole[:10], whole[10:])
