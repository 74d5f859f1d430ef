"""paged_attention on a CPU, by the native library.

Knows: the records in native.h, one made a pass and one for every kind of layer in it. Does not
know: how keys are cut, or who computes what.
"""

from __future__ import annotations

from ctypes import Structure, addressof
from typing import Any

import attrs
import torch

from pilotfish.kernels.native import run
from pilotfish.kernels.native.numbers import dtype_code, record_fields
from pilotfish.kernels.paged_attention.mask_spec import MaskSpec
from pilotfish.kernels.paged_attention.plan import AttentionPlan


class PassArguments(Structure):
    """A `pf_attention_pass`; arrays: those that it points into."""

    _fields_ = record_fields(
        pointers="pages lengths row_offsets", ints="requests page_stride page_size"
    )
    arrays: tuple[torch.Tensor, ...]


class Arguments(Structure):
    """A `pf_paged_attention`."""

    _fields_ = record_fields(
        pointers="of_pass q cache out",
        ints=(
            "heads kv_heads width value_width q_row_stride q_head_stride slot_stride value_offset"
            " window is_block q_dtype cache_dtype"
        ),
        floats="scale",
    )


@attrs.frozen(eq=False)
class LayerKind:
    """The record of all layers that differ in their memory alone; work: see `native.run`."""

    record: Arguments
    out_shape: tuple[int, ...]
    work: int


def pass_address(plan: AttentionPlan) -> int:
    """Of a pass's record, for native calls; it is valid as long as the AttentionPlan lives."""
    record = plan.cached(_make_pass)
    return addressof(record)


def _make_pass(plan: AttentionPlan) -> PassArguments:
    # The plan's own memory wherever it is as native.h wants it, so that later changes are seen.
    pages = plan.lookup_table.to(torch.int32).contiguous()
    lengths = plan.cache_lengths.to(torch.int32).contiguous()
    offsets = plan.input_row_offsets.to(torch.int32).contiguous()
    record = PassArguments(
        pages.data_ptr(),
        lengths.data_ptr(),
        offsets.data_ptr(),
        len(plan.lengths),
        pages.stride(0),
        plan.page_size_tokens,
    )
    record.arrays = (pages, lengths, offsets)
    return record


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
    kv_heads = 1 if shared else cache.shape[3]
    return Arguments(
        pass_address(plan),
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
