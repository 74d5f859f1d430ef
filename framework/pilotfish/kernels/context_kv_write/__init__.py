"""write_context_kv: keys and values of all layers, made of one projection, into their pages.

Knows: the norm of every key head, rotation, slots. Does not know: requests, or what was projected.
Letters: T packed tokens, T' rows with padding, L layers, P pages, S tokens in a page, K kv heads,
H head width, R rotated width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pilotfish.kernels.backend import KernelBackend
from pilotfish.kernels.context_kv_write import eager, native
from pilotfish.kernels.native.numbers import has_code

__all__ = ["write_context_kv"]


def write_context_kv(
    kv: torch.Tensor,
    k_weight: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor],
    caches: Sequence[torch.Tensor],
    write_slots: torch.Tensor,
    *,
    eps: float,
    backend: KernelBackend,
) -> None:
    """Norm and turn every key head, then copy row t of layer l to slot `write_slots[t]` of cache l.

    kv: [T', L, 2, K, H] float contiguous, T' >= T, keys then values; rows past T are padding and
        not written. Used up: it may be overwritten.
    k_weight: [L, H] of kv's dtype, gain of each layer's key norm, rounded as in `rms_norm` with
        "before_weight". angles: cos and sin, each [T', R] float32, R <= H, half-split as in
        `apply_rope`.
    caches: L of [P, S, 2, K, H] of kv's dtype (native: of any one float dtype, rounded to),
        contiguous. Mutated: only the named slots change.
    write_slots: [T] int64, page * S + offset, distinct.
    A row's bits depend on that row, its angles and the gains only (torch: given at least two rows).
    Raises ValueError when shapes or dtypes do not fit, or (torch: its own error) a slot is none of
    a cache's.
    """
    is_native = backend.name == "native"
    _check(kv, k_weight, angles[0], caches, write_slots, any_float=is_native)
    if is_native:
        native.write_context_kv(kv, k_weight, angles, caches, write_slots, eps=eps)
        return
    if backend.name == "triton":
        from pilotfish.kernels.context_kv_write import triton

        triton.write_context_kv(kv, k_weight, angles, caches, write_slots, eps=eps)
        return
    eager.write_context_kv(kv, k_weight, angles, caches, write_slots, eps=eps)


def _check(
    kv: torch.Tensor,
    k_weight: torch.Tensor,
    cos: torch.Tensor,
    caches: Sequence[torch.Tensor],
    write_slots: torch.Tensor,
    *,
    any_float: bool,
) -> None:
    if kv.ndim != 5 or kv.shape[1:3] != (len(caches), 2) or not kv.is_contiguous():
        raise ValueError(
            f"kv is {list(kv.shape)} for {len(caches)} caches; wanted [T', {len(caches)}, 2, K, H] "
            "contiguous: keys and values of every layer"
        )
    if k_weight.shape != (kv.shape[1], kv.shape[4]) or k_weight.dtype != kv.dtype:
        raise ValueError(
            f"k_weight is {list(k_weight.shape)} {k_weight.dtype}; wanted "
            f"[{kv.shape[1]}, {kv.shape[4]}] {kv.dtype}, one gain a layer"
        )
    if cos.shape[0] != kv.shape[0] or cos.shape[1] > kv.shape[4] or cos.shape[1] % 2:
        raise ValueError(
            f"cos is {list(cos.shape)}; wanted [{kv.shape[0]}, R], R even and at most {kv.shape[4]}"
        )
    wanted = kv.dtype
    if any_float and caches and has_code(kv.dtype, caches[0].dtype):
        wanted = caches[0].dtype
    for cache in caches:
        if cache.shape[2:] != kv.shape[2:] or cache.dtype != wanted or not cache.is_contiguous():
            raise ValueError(
                f"a cache is {list(cache.shape)} {cache.dtype} and kv {list(kv.shape)} {kv.dtype}; "
                f"wanted [P, S, {', '.join(map(str, kv.shape[2:]))}] of one dtype, contiguous"
            )
    if write_slots.dtype != torch.int64 or write_slots.shape[0] > kv.shape[0]:
        raise ValueError(
            f"write_slots is {list(write_slots.shape)} {write_slots.dtype} for {kv.shape[0]} rows; "
            "wanted [T] int64 with T <= rows: one slot for each row to write"
        )
