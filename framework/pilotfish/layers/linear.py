"""Linear: a linear layer whose weight is packed before it is first used.

Knows: when the weight is read and packed. Does not know: files, or what packing is.
Axis letters: T packed tokens, K input width, O output width.
"""

from __future__ import annotations

from functools import cached_property, partial
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
        self._pack = partial(_packed, tensors, backend, self.keep_plain)
        if not any(isinstance(tensor, DeferredTensor) for tensor in tensors.values()):
            self.prepared  # noqa: B018

    @cached_property
    def prepared(self) -> LinearWeight:
        """The weight as `linear` reads it."""
        return self.__dict__.pop("_pack")()  # type: ignore[no-any-return]

    def __call__(self, x: torch.Tensor, backend: KernelBackend) -> torch.Tensor:
        """x: [T, K] -> a new [T, O] of the same dtype."""
        return linear(x, self.prepared, backend=backend)


def _packed(tensors: dict[str, Any], backend: KernelBackend, keep_plain: bool) -> LinearWeight:
    """Empties `tensors`: nothing else may hold the plain weight while it is packed."""
    weight = _read(tensors.pop("weight"))
    bias = _read(tensors.pop("bias")) if tensors else None
    return prepare_linear(weight, bias, backend=backend, keep_plain=keep_plain)


def _read(tensor: torch.Tensor | DeferredTensor) -> torch.Tensor:
    return tensor.read() if isinstance(tensor, DeferredTensor) else tensor
