"""write_kv: stores the packed rows of a pass into the pages of a paged cache.

Knows: rows and slots. Does not know: which request a row belongs to, or what a row means.
Letters: T packed tokens, T' rows with padding, P pages, S tokens in a page, K kv heads, H width.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.backend import KernelBackend
from pilotfish.kernels.kv_write import eager, native
from pilotfish.kernels.native.numbers import has_code

__all__ = ["write_kv"]


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
    _check(kv, cache, write_slots, any_float=backend.name == "native")
    if backend.name == "native":
        native.write_kv(kv, cache, write_slots)
        return
    if backend.name == "triton":
        from pilotfish.kernels.kv_write import triton

        triton.write_kv(kv, cache, write_slots)
        return
    eager.write_kv(kv, cache, write_slots)


def _check(
    kv: torch.Tensor, cache: torch.Tensor, write_slots: torch.Tensor, *, any_float: bool
) -> None:
    is_same = kv.dtype == cache.dtype or (any_float and has_code(kv.dtype, cache.dtype))
    if kv.shape[1:] != cache.shape[2:] or not is_same:
        raise ValueError(
            f"kv is {list(kv.shape)} {kv.dtype} and the cache {list(cache.shape)} {cache.dtype}; "
            "wanted equal row shapes and dtypes: cast and reshape kv as the cache's spec says"
        )
    if write_slots.dtype != torch.int64 or write_slots.shape[0] > kv.shape[0]:
        raise ValueError(
            f"write_slots is {list(write_slots.shape)} {write_slots.dtype} for {kv.shape[0]} rows; "
            "wanted [T] int64 with T <= rows: one slot for each row to write"
        )
    if not cache.is_contiguous():
        raise ValueError(
            f"the cache has strides {cache.stride()}; wanted a contiguous [P, S, *row_shape]: "
            "pass a layer's own block, not a transposed view"
        )
