"""write_context_kv on a CPU, by the native library. Knows: its arguments' record in native.h."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, addressof, c_void_p

import torch

from pilotfish.kernels.native import run
from pilotfish.kernels.native.buffers import Buffer, Pointer
from pilotfish.kernels.native.numbers import address_of, dtype_code, record_fields, want_indices
from pilotfish.kernels.native.plan import Plan


class Arguments(Structure):
    """A `pf_write_context_kv`."""

    _fields_ = record_fields(
        pointers="kv weight cos sin caches slots",
        ints="rows layers heads width rotated dtype cache_dtype",
        floats="eps",
    )


def write_context_kv(
    kv: torch.Tensor,
    k_weight: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor],
    caches: Sequence[torch.Tensor],
    write_slots: torch.Tensor,
    *,
    eps: float,
) -> None:
    """As the public function; what is written is rounded to the caches' dtype. kv stays."""
    if write_slots.shape[0] == 0 or not caches:
        return
    for cache in caches:
        want_indices("write_slots", write_slots, cache.shape[0] * cache.shape[1])
    cos, sin = (part.contiguous() for part in angles)
    weight, slots = k_weight.contiguous(), write_slots.contiguous()
    places = (c_void_p * len(caches))(*(cache.data_ptr() for cache in caches))
    rows, layers, _, heads, width = kv.shape
    args = Arguments(
        kv.data_ptr(),
        weight.data_ptr(),
        address_of("cos", cos, torch.float32, rows, cos.shape[1]),
        address_of("sin", sin, torch.float32, rows, cos.shape[1]),
        addressof(places),
        slots.data_ptr(),
        slots.shape[0],
        layers,
        heads,
        width,
        cos.shape[1],
        dtype_code(kv.dtype),
        dtype_code(caches[0].dtype),
        eps,
    )
    run("write_context_kv", args, slots.shape[0] * layers * 2 * heads * width)


def plan_write_context_kv(
    plan: Plan,
    kv: Buffer,
    k_weight: torch.Tensor,
    angles: tuple[Buffer, Buffer],
    *,
    caches: Pointer,
    write_slots: Pointer,
    cache_dtype: torch.dtype,
    eps: float,
) -> None:
    """Plans it for [T, L 2 K H], none of them padding.

    k_weight: [L, H] of kv's dtype. caches: the address of L addresses of pages.
    """
    weight = k_weight.contiguous()
    layers, width = weight.shape
    assert weight.dtype == kv.dtype, (weight.dtype, kv.dtype)
    plan.keep(weight)
    cos, sin = angles
    plan.call(
        "write_context_kv",
        Arguments,
        kv=kv,
        weight=weight.data_ptr(),
        cos=cos,
        sin=sin,
        caches=caches,
        slots=write_slots,
        rows=kv.rows,
        layers=layers,
        heads=kv.width // (2 * layers * width),
        width=width,
        rotated=cos.width,
        dtype=dtype_code(kv.dtype),
        cache_dtype=dtype_code(cache_dtype),
        eps=eps,
    )
