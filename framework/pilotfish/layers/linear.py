"""Linear: a linear layer whose weight is packed the moment it arrives.

Axis letters: T packed tokens, K input width, O output width.
"""

from __future__ import annotations

import torch

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.linear import LinearWeight, linear, prepare_linear
from pilotfish.layers.layer import Layer


class Linear(Layer):
    """`x @ weight.T + bias`.

    in_features, out_features: K and O; several projections of one input are one layer, their
        outputs side by side.
    bias: whether there is one. keep_plain: share the weight with an embedding, unpacked.
    """

    prepared: LinearWeight

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = False, keep_plain: bool = False
    ) -> None:
        self.keep_plain = keep_plain
        self.declare("weight", (out_features, in_features))
        if bias:
            self.declare("bias", (out_features,))

    def complete(self, tensors: dict[str, torch.Tensor], backend: KernelBackend) -> None:
        """Packs the weight; the plain one is dropped."""
        weight, bias = tensors.pop("weight"), tensors.pop("bias", None)
        self.prepared = prepare_linear(weight, bias, backend=backend, keep_plain=self.keep_plain)

    def __call__(self, x: torch.Tensor, backend: KernelBackend) -> torch.Tensor:
        """x: [T, K] -> a new [T, O] of the same dtype."""
        return linear(x, self.prepared, backend=backend)
