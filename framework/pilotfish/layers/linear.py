"""Linear: a linear layer whose weight is packed when it is loaded, or used as it lies in the file.

Knows: which of the two. Does not know: files, or what packing is.
Axis letters: T packed tokens, K input width, O output width.
"""

from __future__ import annotations

from typing import Any

import torch

from pilotfish.errors import PluginError
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.linear import LinearWeight, linear, prepare_blocks, prepare_linear
from pilotfish.kernels.linear.planned import plan_linear
from pilotfish.kernels.native.buffers import Buffer
from pilotfish.layers.layer import Layer
from pilotfish.layers.pass_plan import PassPlan
from pilotfish.parallel.shard import Shard
from pilotfish.weights import StoredRows


class Linear(Layer):
    """`x @ weight.T + bias`.

    in_features, out_features: K and O; several projections of one input are one layer, their
        outputs side by side.
    bias: whether there is one. keep_plain: share the weight with an embedding, unpacked.
    """

    takes_stored = True
    packed: LinearWeight

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = False, keep_plain: bool = False
    ) -> None:
        self.in_features, self.out_features = in_features, out_features
        self.keep_plain = keep_plain
        self.declare("weight", (out_features, in_features))
        if bias:
            self.declare("bias", (out_features,))

    def keep_rows(self, *ranges: range) -> None:
        """Leaves this rank some of the outputs, in the order of the ranges."""
        self.out_features = sum(map(len, ranges))
        for name in self._declared():
            self.keep(name, Shard.rows(*ranges))

    def complete(self, tensors: dict[str, Any], backend: KernelBackend) -> None:
        """`packed` is the weight as `linear` of this backend reads it: native, where it lies."""
        self.packed = self._pack(tensors, backend)

    def _pack(self, tensors: dict[str, Any], backend: KernelBackend) -> LinearWeight:
        weight, bias = tensors["weight"], tensors.get("bias")
        if isinstance(weight, StoredRows):
            return prepare_blocks(weight.parts, bias, dtype=weight.dtype)
        return prepare_linear(weight, bias, backend=backend, keep_plain=self.keep_plain)

    def __call__(
        self, x: torch.Tensor, backend: KernelBackend, out_dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """x: [T, K] -> a new [T, O] of the same dtype, or of out_dtype."""
        if x.dtype is torch.float64:
            raise PluginError(
                "float64 rows reached a Linear, which takes those of the run (float32, bfloat16): "
                "a part that computes in float64 hands its rows on with `.to(x.dtype)`"
            )
        return linear(x, self.packed, backend=backend, out_dtype=out_dtype)

    def plan(self, run: PassPlan, x: Buffer, out: Buffer | None = None) -> Buffer:
        """As `__call__`; out: where the rows go, of any dtype; None makes a buffer of x's."""
        out = out or Buffer(x.rows, self.out_features, x.dtype)
        return plan_linear(run.plan, x, self.packed, out)
