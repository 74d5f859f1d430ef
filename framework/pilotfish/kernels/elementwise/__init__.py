"""Functions of single numbers, and softmax, for layers of any family.

Knows: formulas. Does not know: what they activate.
Each computes in float32 and rounds once to x.dtype. An element's bits depend on its value only,
wherever it lies and however many lie beside it (softmax: on its row only). torch's own silu, gelu,
sigmoid and softplus do not keep that: an array's last elements run through other code.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.backend import KernelBackend, on_native
from pilotfish.kernels.elementwise import eager, native

__all__ = [
    "exp",
    "gelu",
    "gelu_tanh",
    "relu_squared",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "tanh",
]


def silu(x: torch.Tensor, *, backend: KernelBackend) -> torch.Tensor:
    """Return `x / (1 + exp(-x))`: a new contiguous tensor of x's shape and dtype."""
    return _apply("silu", x, backend)


def gelu(x: torch.Tensor, *, backend: KernelBackend) -> torch.Tensor:
    """Return `x / 2 * (1 + erf(x / sqrt(2)))`: a new contiguous tensor of x's shape and dtype.

    Source: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units".
    """
    return _apply("gelu", x, backend)


def gelu_tanh(x: torch.Tensor, *, backend: KernelBackend) -> torch.Tensor:
    """Return `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`, new and contiguous."""
    return _apply("gelu_tanh", x, backend)


def sigmoid(x: torch.Tensor, *, backend: KernelBackend) -> torch.Tensor:
    """Return `1 / (1 + exp(-x))`: a new contiguous tensor of x's shape and dtype."""
    return _apply("sigmoid", x, backend)


def tanh(x: torch.Tensor, *, backend: KernelBackend) -> torch.Tensor:
    """Return the hyperbolic tangent: a new contiguous tensor of x's shape and dtype."""
    return _apply("tanh", x, backend)


def softplus(x: torch.Tensor, *, backend: KernelBackend) -> torch.Tensor:
    """Return `log(1 + exp(x))`: a new contiguous tensor of x's shape and dtype."""
    return _apply("softplus", x, backend)


def exp(x: torch.Tensor, *, backend: KernelBackend) -> torch.Tensor:
    """Return the exponential: a new contiguous tensor of x's shape and dtype."""
    return _apply("exp", x, backend)


def relu_squared(x: torch.Tensor, *, backend: KernelBackend) -> torch.Tensor:
    """Return `max(x, 0)^2`: a new contiguous tensor of x's shape and dtype.

    Source: So et al. 2021, "Primer".
    """
    return _apply("relu_squared", x, backend)


@on_native(native.softmax)
def softmax(x: torch.Tensor, *, backend: KernelBackend) -> torch.Tensor:
    """Return `exp(x - m) / sum(exp(x - m))`, m the largest, over the last axis.

    x: [..., D] float. Returns a new contiguous tensor of its shape and dtype.
    """
    return eager.softmax(x)


def _apply(name: str, x: torch.Tensor, backend: KernelBackend) -> torch.Tensor:
    if backend.name == "native":
        return native.apply(name, x)
    # On a GPU an element's code does not depend on its place.
    if backend.invariant and x.device.type == "cpu":
        return eager.alike(name, x)
    return eager.fastest(name, x)
