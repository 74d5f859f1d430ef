"""paged_attention on a CPU, by the native library.

Knows: the records in native.h, one made a pass and one for every kind of layer in it. Does not
know: how keys are cut, or who computes what.
"""

from __future__ import annotations

from ctypes import Structure, addressof, c_float, c_int64, c_void_p
from typing import Any

import attrs
import torch

from pilotfish.kernels.native import run
from pilotfish.kernels.native.numbers import dtype_code
from pilotfish.kernels.paged_attention.mask_spec import MaskSpec
from pilotfish.kernels.paged_attention.plan import AttentionPlan


class PassArguments(Structure):
    """A `pf_attention_pass`."""

    _fields_ = (
        ("pages", c_void_p),
        ("lengths", c_void_p),
        ("row_offsets", c_void_p),
        ("requests", c_int64),
        ("page_stride", c_int64),
        ("page_size", c_int64),
    )


class Arguments(Structure):
    """A `pf_paged_attention`."""

    _fields_ = (
        ("of_pass", c_void_p),
        ("q", c_void_p),
        ("cache", c_void_p),
        ("out", c_void_p),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("width", c_int64),
        ("value_width", c_int64),
        ("q_row_stride", c_int64),
        ("q_head_stride", c_int64),
        ("slot_stride", c_int64),
        ("value_offset", c_int64),
        ("window", c_int64),
        ("is_block", c_int64),
        ("q_dtype", c_int64),
        ("cache_dtype", c_int64),
        ("scale", c_float),
    )


@attrs.frozen(eq=False)
class Pass:
    """A pass's record, and the arrays that it points into."""

    record: PassArguments
    arrays: tuple[torch.Tensor, ...]


@attrs.frozen(eq=False)
class LayerKind:
    """The record of all layers that differ in their memory alone; work: see `native.run`."""

    record: Arguments
    out_shape: tuple[int, ...]
    work: int


def pass_arguments(plan: AttentionPlan) -> PassArguments:
    """The record of a pass, made once and kept with the plan."""
    return plan.recall("native pass", lambda: _make_pass(plan)).record


def _make_pass(plan: AttentionPlan) -> Pass:
    parts = (plan.lookup_table, plan.cache_lengths, plan.input_row_offsets)
    # The plan's own memory wherever it is as native.h wants it, so that later changes are seen.
    pages, lengths, offsets = (part.to(torch.int32).contiguous() for part in parts)
    record = PassArguments(
        pages.data_ptr(),
        lengths.data_ptr(),
        offsets.data_ptr(),
        len(plan.lengths),
        pages.stride(0),
        plan.page_size_tokens,
    )
    return Pass(record, (pages, lengths, offsets))


def layer_arguments(
    q: torch.Tensor,
    cache: torch.Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
    mask_spec: MaskSpec,
    value_width: int,
) -> Arguments:
    """The record of a layer, but for where q, cache and out lie. Arguments as `paged_attention`."""
    width, shared = q.shape[2], cache.ndim == 3
    of_pass = pass_arguments(plan)
    kv_heads = 1 if shared else cache.shape[3]
    return Arguments(
        addressof(of_pass),
        None,
        None,
        None,
        q.shape[1],
        kv_heads,
        width,
        value_width,
        q.stride(0),
        q.stride(1),
        width if shared else 2 * kv_heads * width,
        0 if shared else kv_heads * width,
        mask_spec.window or 0,
        mask_spec.mode == "block",
        dtype_code(q.dtype),
        dtype_code(cache.dtype),
        scale,
    )


def paged_attention(
    q: torch.Tensor,
    cache: torch.Tensor,
    plan: AttentionPlan,
    scale: float,
    mask_spec: MaskSpec,
    *,
    value_width: int,
) -> torch.Tensor:
    """Arguments and result as the public function; the cache may have another dtype than q."""
    if q.stride(2) != 1:
        q = q.contiguous()
    key: Any = (
        q.shape,
        q.stride(),
        q.dtype,
        cache.shape,
        cache.dtype,
        scale,
        mask_spec,
        value_width,
    )
    kind: LayerKind | None = plan.memo.get(key)
    if kind is None:
        record = layer_arguments(
            q, cache, plan, scale=scale, mask_spec=mask_spec, value_width=value_width
        )
        kind = plan.memo[key] = LayerKind(record, (*q.shape[:2], value_width), _work(plan, record))
    out = torch.empty(kind.out_shape, dtype=q.dtype)
    if q.shape[0] > plan.num_rows:
        out[plan.num_rows :].zero_()
    record = kind.record
    record.q, record.cache, record.out = q.data_ptr(), cache.data_ptr(), out.data_ptr()
    run("paged_attention", record, kind.work)
    return out


def _work(plan: AttentionPlan, record: Arguments) -> int:
    """Elements of keys and values that are read, once for every eight lines."""
    lines_per_row = record.heads // record.kv_heads
    pairs = zip(plan.num_keys, plan.row_counts, strict=True)
    reads = sum(keys * -(-rows * lines_per_row // 8) for keys, rows in pairs)
    return int(reads * record.kv_heads * (record.width + record.value_width))
