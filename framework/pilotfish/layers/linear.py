"""Linear: a linear layer whose weight is packed before it is first used.

Knows: when the weight is read and packed. Does not know: files, or what packing is.
Axis letters: T packed tokens, K input width, O output width.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.linear import LinearWeight, linear, prepare_linear
from pilotfish.layers.layer import Layer
from pilotfish.weights import DeferredTensor


class Linear(Layer):
    """`x @ weight.T + bias`.

    in_features, out_features: K and O; several projections of one input are one layer, their
        outputs side by side.
    bias: whether there is one. keep_plain: share the weight with an embedding, unpacked.
    """

    takes_deferred = True

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = False, keep_plain: bool = False
    ) -> None:
        self.keep_plain = keep_plain
        self.declare("weight", (out_features, in_features))
        if bias:
            self.declare("bias", (out_features,))

    def complete(self, tensors: dict[str, Any], backend: KernelBackend) -> None:
        """Packs the weight and drops the plain one; a deferred weight waits for its first use."""
        self._unpacked = (tensors, backend)
        if not any(isinstance(tensor, DeferredTensor) for tensor in tensors.values()):
            self.prepared  # noqa: B018

    @cached_property
    def prepared(self) -> LinearWeight:
        """The weight as `linear` reads it. After an exception it can be asked for again."""
        tensors, backend = self._unpacked
        weight, bias = (_read(tensors.get(name)) for name in ("weight", "bias"))
        assert weight is not None
        made = prepare_linear(weight, bias, backend=backend, keep_plain=self.keep_plain)
        del self._unpacked
        return made

    def __call__(self, x: torch.Tensor, backend: KernelBackend) -> torch.Tensor:
        """x: [T, K] -> a new [T, O] of the same dtype."""
        return linear(x, self.prepared, backend=backend)


def _read(tensor: torch.Tensor | DeferredTensor | None) -> torch.Tensor | None:
    return tensor.read() if isinstance(tensor, DeferredTensor) else tensor
