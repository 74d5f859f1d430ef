"""Shared layers that no plugin's own tests reach: naming, LayerNorm, the residual add."""

from __future__ import annotations

import re

import pytest
import torch

from pilotfish.errors import PluginError
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.rms_norm import add_scaled
from pilotfish.layers.attention import Attention
from pilotfish.layers.layer import Layer
from pilotfish.layers.linear import Linear
from pilotfish.layers.mlp import GatedMLP
from pilotfish.layers.norm import LayerNorm, RMSNorm

BACKEND = KernelBackend()


class Tower(Layer):
    """Layers as attributes and in a tuple."""

    def __init__(self) -> None:
        self.attention = Attention(0, 8, 2, 1, 4, qkv_bias=True, head_norm_eps=1e-6)
        self.floors = (GatedMLP(8, 6), GatedMLP(8, 6, bias=True))
        self.norm = RMSNorm(8, 1e-6)


def test_names_are_paths_of_attributes() -> None:
    assert Tower().parameter_shapes() == {
        "attention.qkv.weight": (16, 8),
        "attention.qkv.bias": (16,),
        "attention.out.weight": (8, 8),
        "attention.head_norm.q": (4,),
        "attention.head_norm.k": (4,),
        "floors.0.gate_up.weight": (12, 8),
        "floors.0.down.weight": (8, 6),
        "floors.1.gate_up.weight": (12, 8),
        "floors.1.gate_up.bias": (12,),
        "floors.1.down.weight": (8, 6),
        "floors.1.down.bias": (8,),
        "norm.weight": (8,),
    }


def test_tensors_reach_the_layer_that_declared_them() -> None:
    tower = Tower()
    for name, shape in tower.parameter_shapes().items():
        tower.assign(name, torch.full(shape, float(len(name))), BACKEND)
    assert tower.norm.weight.tolist() == [11.0] * 8
    assert tower.attention.head_norm is not None
    assert tower.attention.head_norm.weight.shape == (3, 4)
    linears = [layer for layer in tower.layers_inside() if isinstance(layer, Linear)]
    assert len(linears) == 6
    assert all(layer.packed.out_features in (8, 12, 16) for layer in linears)


@pytest.mark.parametrize("name", ["norm.bias", "floors.2.down.weight", "nothing", "norm"])
def test_a_tensor_nobody_declared_is_named(name: str) -> None:
    with pytest.raises(KeyError, match=name.rsplit(".", maxsplit=1)[-1]):
        Tower().assign(name, torch.zeros(8), BACKEND)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("conv.weight", "'conv_weight', or a Layer at 'conv' that declares 'weight'"),
        ("conv.inner.weight", "'conv_inner_weight', or a Layer at 'conv.inner' that"),
        (".weight", "wanted a name without dots: 'weight'"),
        ("", "wanted a name without dots: 'weight'"),
    ],
)
def test_a_tensor_whose_name_leads_into_no_layer_is_refused(name: str, wanted: str) -> None:
    said = f"^Layer declares the tensor '{re.escape(name)}'"
    with pytest.raises(PluginError, match=said) as told:
        Layer().declare(name, (2,))
    assert wanted in str(told.value)


def test_a_bias_may_come_before_its_weight() -> None:
    layer = Linear(4, 2, bias=True)
    weight, bias = torch.randn(2, 4), torch.randn(2)
    layer.assign("bias", bias, BACKEND)
    layer.assign("weight", weight, BACKEND)
    x = torch.randn(4, 4)
    torch.testing.assert_close(layer(x, BACKEND), x @ weight.T + bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm_with_weight_and_bias(dtype: torch.dtype, bias: bool) -> None:
    norm = LayerNorm(33, 1e-5, bias=bias)
    torch.manual_seed(0)
    tensors = {name: torch.randn(33).to(dtype) for name in norm.parameter_shapes()}
    for name, tensor in tensors.items():
        norm.assign(name, tensor, BACKEND)
    x = (3 * torch.randn(70, 33) + 1).to(dtype)
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    exact = torch.nn.functional.layer_norm(x.double(), (33,), **wide, eps=1e-5)
    eager = torch.nn.functional.layer_norm(x, (33,), **tensors, eps=1e-5)
    ours = norm(x, BACKEND)
    assert ours.dtype == dtype
    assert (ours - exact).abs().max() <= 2 * (eager - exact).abs().max()
    for rows in (slice(0, 1), slice(5, 38)):
        assert torch.equal(norm(x[rows], BACKEND), ours[rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("multiplier", [1.0, 0.22])
def test_every_norm_adds_the_same_bits(dtype: torch.dtype, multiplier: float) -> None:
    """What is tapped at a boundary is what the next block reads; no row knows the others."""
    torch.manual_seed(0)
    residual, x = torch.randn(13, 37).to(dtype), torch.randn(13, 37).to(dtype)
    rms, layer = RMSNorm(37, 1e-6), LayerNorm(37, 1e-5, affine=False)
    rms.assign("weight", torch.ones(37, dtype=dtype), BACKEND)
    tapped = add_scaled(residual, x, multiplier, backend=BACKEND)
    exact = residual.double() + multiplier * x.double()
    one_rounding = torch.finfo(dtype).eps * (residual.abs() + multiplier * x.abs()).double()
    assert ((tapped - exact).abs() <= one_rounding).all()
    for norm in (rms, layer):
        normed, added = norm.add(x, residual.clone(), BACKEND, multiplier)
        assert torch.equal(added, tapped)
        assert torch.equal(normed, norm(tapped, BACKEND))
        alone, same = norm.add(x, None, BACKEND, multiplier)
        assert same is x
        assert torch.equal(alone, norm(x, BACKEND))
    for row in range(13):
        one = add_scaled(residual[row : row + 1], x[row : row + 1], multiplier, backend=BACKEND)
        assert torch.equal(one[0], tapped[row])
