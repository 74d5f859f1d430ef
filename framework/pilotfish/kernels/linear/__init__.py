"""Linear layers: `x @ weight.T + bias`, prepared once and applied often.

Knows: how a weight is best kept on each backend. Does not know: what the layer is for.
Letters: T packed tokens, K input width, O output width.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.backend import KernelBackend
from pilotfish.kernels.linear import eager, int4
from pilotfish.kernels.linear.probe import ProbeKey, row_multiple
from pilotfish.kernels.linear.weight import LinearWeight

__all__ = [
    "LinearWeight",
    "ProbeKey",
    "linear",
    "prepare_int4",
    "prepare_linear",
    "row_multiple",
]


def prepare_linear(
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    backend: KernelBackend,
    keep_plain: bool = False,
) -> LinearWeight:
    """Put a weight in the form that `linear` reads fastest.

    weight: [O, K] float; bias: [O] float of the same dtype, or None.
    keep_plain: share `weight` as it is, for a head tied to the embedding (no second copy).
    The result may be a repacked copy: drop every other reference to `weight` to free the plain one.
    `LinearWeight.kind` says which form was chosen: "packed", "plain" or "triton".
    """
    if backend.name == "triton":
        return LinearWeight.from_plain(weight, bias, kind="triton")
    return eager.prepare(weight, bias, keep_plain=keep_plain)


def prepare_int4(packed: torch.Tensor, scale: torch.Tensor, *, dtype: torch.dtype) -> LinearWeight:
    """Put an INT4 weight in the form that `linear` reads fastest on a CPU; it stays packed.

    packed: [O, K/8] int32; scale: [O, C] float (see `kernels.int4`). dtype: of the rows.
    The result may be a repacked copy of the same size, as in `prepare_linear`.
    Raises WeightsError if the two do not fit each other.
    """
    return int4.prepare(packed, scale, dtype)


def linear(x: torch.Tensor, weight: LinearWeight, *, backend: KernelBackend) -> torch.Tensor:
    """Return `x @ weight.T + bias`, accumulated in float32.

    x: [T, K] of the weight's dtype, contiguous in K. Returns a new [T, O] of that dtype.
    A row's bits depend on that row and the weight only: on triton always; on torch if T is a
    multiple of what `row_multiple` returned (pad with any rows).
    """
    if backend.name == "triton":
        from pilotfish.kernels.linear import triton

        return triton.linear(x, weight, invariant=backend.invariant)
    return eager.linear(x, weight)
