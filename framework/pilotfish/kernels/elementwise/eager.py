"""Functions of single numbers by torch.

Knows: which of torch's calls give a number the same bits wherever it lies: exp, log, tanh, erf and
plain arithmetic do on a CPU; silu, gelu, sigmoid, softplus and log1p do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch

from pilotfish.platform.constants import constant

_Function: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


def alike(name: str, x: torch.Tensor) -> torch.Tensor:
    """Every element through the same code; name: a public function's. Any shape, a new tensor."""
    wide = x.contiguous().float()
    return _ALIKE[name](wide).to(x.dtype)


def fastest(name: str, x: torch.Tensor) -> torch.Tensor:
    """torch's own function."""
    return _FASTEST[name](x.contiguous())


def softmax(x: torch.Tensor) -> torch.Tensor:
    """Over the last axis; torch's kernel works row by row."""
    return torch.softmax(x.contiguous(), -1, dtype=torch.float32).to(x.dtype)


def _one(x: torch.Tensor) -> torch.Tensor:
    return constant(1.0, device=x.device)


def silu(x: torch.Tensor) -> torch.Tensor:
    """Of float32, any strides: torch's own rounds an array's last elements otherwise.

    Its vector body and its scalar tail use different exponentials (4 % of the elements differ in
    the last bit), and where the tail lies depends on the number of rows. `torch.exp` has no such
    seam; the other operations here are exact. In the 16-bit types all 65536 values agree.
    """
    return torch.div(x, x.neg().exp_().add_(_one(x)))


def _sigmoid(x: torch.Tensor) -> torch.Tensor:
    return x.neg().exp_().add_(_one(x)).reciprocal_()


def _gelu(x: torch.Tensor) -> torch.Tensor:
    share = x.mul(math.sqrt(0.5)).erf_().add_(_one(x))
    return share.mul_(0.5).mul_(x)


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    inner = x.mul(x).mul_(x).mul_(0.044715).add_(x).mul_(math.sqrt(2 / math.pi))
    return inner.tanh_().add_(_one(x)).mul_(0.5).mul_(x)


def _softplus(x: torch.Tensor) -> torch.Tensor:
    grown = x.abs().neg_().exp_()
    total = grown.add(_one(x))
    # log1p: the logarithm of the sum, and what the sum's rounding lost, as its slope carries it.
    lost = grown.sub_(total.sub(_one(x))).div_(total)
    return total.log_().add_(lost).add_(x.clamp(min=0))


def _relu_squared(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(min=0).square_()


_ALIKE: dict[str, _Function] = {
    "silu": silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "sigmoid": _sigmoid,
    "tanh": torch.tanh,
    "softplus": _softplus,
    "exp": torch.exp,
    "relu_squared": _relu_squared,
}
_FASTEST: dict[str, _Function] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": torch.nn.functional.softplus,
    "exp": torch.exp,
    "relu_squared": _relu_squared,
}
