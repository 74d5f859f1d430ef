"""Linear layers: `x @ weight.T + bias`, prepared once and applied often.

Knows: how a weight is best kept on each backend. Does not know: what the layer is for.
Letters: T packed tokens, K input width, O output width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pilotfish.kernels.backend import KernelBackend, on_native
from pilotfish.kernels.linear import eager, int4, native
from pilotfish.kernels.linear.native import lookup_rows
from pilotfish.kernels.linear.weight import LinearWeight, PackedRows

__all__ = [
    "LinearWeight",
    "PackedRows",
    "linear",
    "lookup_rows",
    "prepare_blocks",
    "prepare_int4",
    "prepare_linear",
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
    `LinearWeight.kind` says which form was chosen: "packed", "plain", "triton" or "native" (never a
    copy).
    """
    if backend.name == "native":
        return native.prepare(weight, bias)
    if backend.name == "triton":
        return LinearWeight.from_plain(weight, bias, kind="triton")
    return eager.prepare(weight, bias, keep_plain=keep_plain)


def prepare_blocks(
    parts: Sequence[PackedRows], bias: torch.Tensor | None = None, *, dtype: torch.dtype
) -> LinearWeight:
    """Make a weight of rows that stay packed as their file has them; native backend only.

    parts: together the O outputs, in order, of one width; kinds may differ (queries and values).
    bias: [O] float or None. dtype: of the rows that the model multiplies; any float will do.
    Nothing is copied: the parts' memory is kept. Raises WeightsError if a part does not fit.
    """
    return native.prepare_blocks(parts, bias, dtype)


def prepare_int4(
    packed: torch.Tensor,
    scale: torch.Tensor,
    *,
    dtype: torch.dtype,
    backend: KernelBackend | None = None,
) -> LinearWeight:
    """Put an INT4 weight in the form that `linear` reads fastest on a CPU; it stays packed.

    packed: [O, K/8] int32; scale: [O, C] float (see `kernels.int4`). dtype: of the rows.
    The result may be a repacked copy of the same size, as in `prepare_linear`; on the native
    backend the two are kept as they lie, and numbers are multiplied unrounded.
    Raises WeightsError if the two do not fit each other.
    """
    if backend is not None and backend.name == "native":
        return native.prepare_int4(packed, scale, dtype)
    return int4.prepare(packed, scale, dtype)


@on_native(native.linear)
def linear(
    x: torch.Tensor,
    weight: LinearWeight,
    *,
    backend: KernelBackend,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return `x @ weight.T + bias`, accumulated in float32.

    x: [T, K] of the weight's dtype (native: of any float dtype), contiguous in K. Returns a new
    [T, O] of x's dtype, or of out_dtype (native: sums are rounded to it once; else converted).
    A row's bits depend on that row and the weight only, where backend.invariant: on triton and
    native by construction; on torch if `row_multiple` found so (a T that is a multiple of it saves
    a copy).
    """
    if backend.name == "triton":
        from pilotfish.kernels.linear import triton

        out = triton.linear(x, weight, invariant=backend.invariant)
    else:
        out = eager.linear_in_blocks(x, weight) if backend.invariant else eager.linear(x, weight)
    return out if out_dtype is None else out.to(out_dtype)
