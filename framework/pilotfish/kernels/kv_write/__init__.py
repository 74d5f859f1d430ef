"""write_kv: stores the packed rows of a pass into the pages of a paged cache.

Knows: rows and slots. Does not know: which request a row belongs to, or what a row means.
Letters: T packed tokens, T' rows with padding, P pages, S tokens in a page, K kv heads, H width.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.backend import KernelBackend, on_native
from pilotfish.kernels.kv_write import eager, native

__all__ = ["write_kv"]


@on_native(native.write_kv)
def write_kv(
    kv: torch.Tensor, cache: torch.Tensor, write_slots: torch.Tensor, *, backend: KernelBackend
) -> None:
    """Copy row t of `kv` to slot `write_slots[t]` of the cache, for every t < T.

    kv: [T', *row_shape], T' >= T, of the cache's dtype (native: of any float dtype, rounded to the
        cache's); rows past T are padding and not written.
        row_shape is [2, K, H] for keys and values, but any shape will do.
    cache: [P, S, *row_shape], contiguous. Mutated in place; only the named slots change.
    write_slots: [T] int64, page * S + offset, distinct.
    Raises ValueError when shapes or dtypes do not fit, or (torch: its own error) a slot is none of
    the cache's. A row's bits are copied, or rounded number by number.
    """
    native.want_fitting(kv, cache, write_slots)
    if backend.name == "triton":
        from pilotfish.kernels.kv_write import triton

        triton.write_kv(kv, cache, write_slots)
        return
    eager.write_kv(kv, cache, write_slots)
