"""Norms over the width of a row: RMSNorm and LayerNorm, alone or with the residual add before.

Knows: weights and rounding order. Does not know: where in a block a norm stands.
Axis letters: T packed tokens, D model width.
"""

from __future__ import annotations

import torch

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.layer_norm import add_layer_norm, layer_norm
from pilotfish.kernels.layer_norm.native import plan_layer_norm
from pilotfish.kernels.native.buffers import Buffer, Columns
from pilotfish.kernels.rms_norm import Cast, add_rms_norm, add_scaled, rms_norm
from pilotfish.kernels.rms_norm.native import plan_rms_norm
from pilotfish.layers.layer import Layer
from pilotfish.layers.pass_plan import PassPlan


class Norm(Layer):
    """What a block asks of a norm."""

    def __call__(self, x: torch.Tensor, backend: KernelBackend) -> torch.Tensor:
        """x: [T, D] -> the normed rows, a new [T, D] of the same dtype."""
        raise NotImplementedError

    def add(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        backend: KernelBackend,
        multiplier: float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds a sublayer's output to the residual stream and norms the sum.

        x: [T, D], the output; residual: [T, D], updated in place, or None where x is the stream.
        Returns (normed rows, residual + multiplier * x).
        """
        if residual is None:
            return self(x, backend), x
        residual = add_scaled(residual, x, multiplier, out=residual, backend=backend)
        return self(residual, backend), residual

    def plan_add(
        self, run: PassPlan, x: Buffer, residual: Buffer | None, multiplier: float
    ) -> tuple[Buffer, Buffer]:
        """Plans `add`; a subclass that has native calls writes both."""
        raise NotImplementedError


class RMSNorm(Norm):
    """`x / sqrt(mean(x^2) + eps) * weight` (Zhang and Sennrich 2019).

    cast: "before_weight" rounds to the row's dtype before the weight, "after_weight" once after.
    """

    weight: torch.Tensor

    def __init__(self, width: int, eps: float, *, cast: Cast = "before_weight") -> None:
        self.eps = eps
        self.cast = cast
        self.declare("weight", (width,))

    def __call__(self, x: torch.Tensor, backend: KernelBackend) -> torch.Tensor:
        """x: [T, D] -> [T, D]."""
        return rms_norm(x, self.weight, self.eps, cast=self.cast, backend=backend)

    def add(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        backend: KernelBackend,
        multiplier: float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Norm.add`, in one kernel."""
        if residual is None:
            return rms_norm(x, self.weight, self.eps, cast=self.cast, backend=backend), x
        if residual.dtype != x.dtype:
            return self._add_wider(x, residual, backend, multiplier)
        return add_rms_norm(
            x,
            residual,
            self.weight,
            self.eps,
            multiplier=multiplier,
            cast=self.cast,
            backend=backend,
        )

    def _add_wider(
        self, x: torch.Tensor, residual: torch.Tensor, backend: KernelBackend, multiplier: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A stream of a dtype of its own: the sum is kept in that, the norm rounded to x's."""
        total = add_scaled(residual, x.to(residual.dtype), multiplier, backend=backend)
        weight = self.weight.to(residual.dtype)
        normed = rms_norm(total, weight, self.eps, cast=self.cast, backend=backend)
        return normed.to(x.dtype), total

    def plan(self, run: PassPlan, x: Columns, into: Columns) -> None:
        """As `__call__`."""
        plan_rms_norm(run.plan, x, self.weight, self.eps, self.cast, into=into)

    def plan_add(
        self, run: PassPlan, x: Buffer, residual: Buffer | None, multiplier: float
    ) -> tuple[Buffer, Buffer]:
        """As `add`."""
        normed = plan_rms_norm(
            run.plan,
            x,
            self.weight,
            self.eps,
            self.cast,
            residual=residual,
            multiplier=multiplier,
        )
        return normed, x if residual is None else residual


class LayerNorm(Norm):
    """`(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` in float32 (Ba et al. 2016).

    affine: whether there is a weight; bias: whether there is a bias too. With neither it has no
    parameters at all.
    """

    weight: torch.Tensor | None
    bias: torch.Tensor | None

    def __init__(self, width: int, eps: float, *, affine: bool = True, bias: bool = False) -> None:
        self.eps = eps
        self.weight = self.bias = None
        if affine:
            self.declare("weight", (width,))
        if bias:
            self.declare("bias", (width,))

    def complete(self, tensors: dict[str, torch.Tensor], backend: KernelBackend) -> None:
        """Keeps weight and bias in float32, where the norm is computed."""
        super().complete({name: tensor.float() for name, tensor in tensors.items()}, backend)

    def __call__(self, x: torch.Tensor, backend: KernelBackend) -> torch.Tensor:
        """x: [T, D] -> [T, D]."""
        return layer_norm(x, self.weight, self.bias, self.eps, backend=backend)

    def add(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        backend: KernelBackend,
        multiplier: float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Norm.add`, in one kernel where it is native."""
        if residual is None:
            return self(x, backend), x
        return add_layer_norm(
            x, residual, self.weight, self.bias, self.eps, multiplier=multiplier, backend=backend
        )

    def plan_add(
        self, run: PassPlan, x: Buffer, residual: Buffer | None, multiplier: float
    ) -> tuple[Buffer, Buffer]:
        """As `add`."""
        normed = plan_layer_norm(
            run.plan,
            x,
            self.weight,
            self.bias,
            self.eps,
            residual=residual,
            multiplier=multiplier,
        )
        return normed, x if residual is None else residual
