"""Weights that are mapped at load and packed before their first use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pilotfish.kernels import KernelBackend
from pilotfish.layers.layer import Layer
from pilotfish.layers.linear import Linear
from pilotfish.layers.mlp import GatedMLP
from pilotfish.weights import (
    DeferredTensor,
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


def load(path: Path, dtype: torch.dtype, *, deferred: bool) -> Net:
    net = Net()
    source = SafetensorsSource.from_file(path)
    plan = plan_load(RULES, source.infos, net.parameter_shapes())
    execute_load(
        plan,
        source,
        lambda name, tensor: net.assign(name, tensor, BACKEND),
        dtype,
        defers=net.may_defer if deferred else lambda _: False,
    )
    return net


def outputs(net: Net, dtype: torch.dtype) -> list[torch.Tensor]:
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(4)).to(dtype)
    wide = torch.randn(4, 24, generator=torch.Generator().manual_seed(5)).to(dtype)
    return [net.mlp.gate_up(x, BACKEND), net.mlp.down(wide, BACKEND), net.head(x, BACKEND)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_deferred_weight_gives_the_bits_of_one_read_at_load(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    tensors_on(tmp_path / "w.safetensors")
    now = load(tmp_path / "w.safetensors", dtype, deferred=False)
    later = load(tmp_path / "w.safetensors", dtype, deferred=True)
    assert "prepared" in now.head.__dict__
    assert "prepared" not in later.head.__dict__  # nothing was read yet
    for one, other in zip(outputs(now, dtype), outputs(later, dtype), strict=True):
        assert torch.equal(one, other)
    assert "_unpacked" not in later.head.__dict__  # the mapping is given up


def test_the_file_may_be_deleted_or_replaced_before_the_first_use(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    wanted = tensors_on(path)
    deleted, replaced = (load(path, torch.float32, deferred=True) for _ in range(2))
    save_file({name: torch.zeros_like(t) for name, t in wanted.items()}, tmp_path / "other")
    (tmp_path / "other").replace(path)
    path.unlink()
    x = torch.eye(16)
    for net in (deleted, replaced):
        torch.testing.assert_close(net.head(x, BACKEND).T, wanted["head.weight"])


def test_a_source_that_reads_at_once_is_not_deferred(tmp_path: Path) -> None:
    tensors_on(tmp_path / "w.safetensors")
    source = SafetensorsSource.from_file(tmp_path / "w.safetensors")
    source.is_mapped = False
    got: dict[str, object] = {}
    plan = plan_load(RULES, source.infos, Net().parameter_shapes())
    execute_load(plan, source, got.__setitem__, torch.float32, defers=lambda _: True)
    assert len(got) == 5
    assert not any(isinstance(tensor, DeferredTensor) for tensor in got.values())


def test_a_layer_that_does_not_exist_is_named() -> None:
    with pytest.raises(KeyError, match="nothing"):
        Net().may_defer("nothing.weight")


def test_an_exception_while_packing_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors_on(tmp_path / "w.safetensors")
    now = load(tmp_path / "w.safetensors", torch.float32, deferred=False)
    later = load(tmp_path / "w.safetensors", torch.float32, deferred=True)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pilotfish.layers.linear.prepare_linear", interrupted)
        with pytest.raises(KeyboardInterrupt):
            outputs(later, torch.float32)
    for one, other in zip(outputs(now, torch.float32), outputs(later, torch.float32), strict=True):
        assert torch.equal(one, other)


def test_one_tensor_may_fill_a_parameter_twice(tmp_path: Path) -> None:
    save_file({"head.weight": torch.randn(10, 16)}, tmp_path / "w.safetensors")
    source = SafetensorsSource.from_file(tmp_path / "w.safetensors")
    rules = WeightRules(rules=(Rule("head.weight", ["head.weight", "head.weight"]),))
    got: dict[str, DeferredTensor] = {}
    plan = plan_load(rules, source.infos, {"head.weight": (20, 16)})
    execute_load(plan, source, got.__setitem__, torch.float32, defers=lambda _: True)  # type: ignore[arg-type]
    whole = got["head.weight"].read()
    assert torch.equal(whole[:10], whole[10:])
