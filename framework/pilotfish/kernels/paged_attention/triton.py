"""paged_attention in Triton: one kernel for every kind of pass; `split_kv` merges its results.

Knows: tiles, pages, the kernel. Does not know: when it is chosen. The README derives it.
Letters as in the package, and: M rows of a tile with the heads of a group, or a part of one, folded
in (row i, head g of them: i * G + g), J keys of a block. A split is 512 keys.
"""

from typing import TypedDict

import torch
import triton
import triton.language as tl

from pilotfish.kernels.paged_attention.mask_spec import MaskSpec
from pilotfish.kernels.paged_attention.plan import AttentionPlan
from pilotfish.kernels.split_kv.triton import (
    LOG2_E,
    Chunks,
    add_block,
    find_request,
    join,
    must_widen,
    no_keys,
    num_tiles,
    store_chunk,
)

NO_WINDOW = 1 << 30


class Blocks(TypedDict):
    """Options of a launch: fixed by G, the head width and the dtype, never by the batch."""

    BLOCK_M: int
    BLOCK_J: int
    BLOCK_H: int
    num_warps: int
    num_stages: int


def choose_blocks(group: int, width: int, dtype: torch.dtype) -> Blocks:
    """64 rows are one Hopper tensor instruction; decode leaves most of them idle, for free.

    Sizes are the largest that keep a tile's results in registers and its keys in the shared
    memory of one multiprocessor. A row of several hundred numbers leaves room for 16 rows.
    """
    block_h = max(16, triton.next_power_of_2(width))
    exact = dtype == torch.float32
    if block_h > 256:
        return Blocks(BLOCK_M=16, BLOCK_J=16, BLOCK_H=block_h, num_warps=8, num_stages=1)
    warps = 4 if block_h <= 64 else 8
    return Blocks(
        BLOCK_M=max(64, triton.next_power_of_2(group)),
        BLOCK_J=(32 if block_h <= 64 else 16) if exact else (64 if block_h <= 128 else 32),
        BLOCK_H=block_h,
        num_warps=2 * warps if exact and block_h != 128 else warps,
        num_stages=2,
    )


def heads_of_tile(group: int, num_rows: int) -> int:
    """Heads that a tile's rows have: a kv head's whole group, or a part that a tile holds."""
    if group <= num_rows:
        return group
    return max(heads for heads in range(1, num_rows) if group % heads == 0)


@triton.jit  # type: ignore[untyped-decorator]
def _attend_split(  # noqa: PLR0917
    q: tl.tensor,
    position: tl.tensor,
    p_pages: tl.tensor,
    p_kv_head: tl.tensor,
    split: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    window: int,
    scale_log2: float,
    VALUE: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WIDEN: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    # Rows against the keys of one split, of which they may see [low, high) at most. Returns each
    # row's highest score [M], and for weights 2^(score - highest) their sum [M] and values [M, H].
    i_h = tl.arange(0, BLOCK_H)
    m_h = i_h < WIDTH
    highest, total, values = no_keys(BLOCK_M, BLOCK_H)
    from_key = tl.maximum(split * SPLIT, low // BLOCK_J * BLOCK_J)
    to_key = tl.minimum((split + 1) * SPLIT, high)
    for j in range(from_key, to_key, BLOCK_J):
        i_key = j + tl.arange(0, BLOCK_J)
        m_key = (i_key >= low) & (i_key < high)
        page = tl.load(p_pages + i_key // PAGE_SIZE, mask=m_key, other=0).to(tl.int64)
        p_k = p_kv_head + (page * PAGE_SIZE + i_key % PAGE_SIZE) * (2 * VALUE)
        p_v = p_k + VALUE
        # What is not loaded is zero: a hidden key may hold NaN, and 0 * NaN is NaN.
        k = tl.load(p_k[None, :] + i_h[:, None], mask=m_key[None, :] & m_h[:, None], other=0.0)
        v = tl.load(p_v[:, None] + i_h[None, :], mask=m_key[:, None] & m_h[None, :], other=0.0)
        if WIDEN:
            k = k.to(tl.float32)
        score = tl.dot(q, k, input_precision="ieee") * scale_log2
        distance = position[:, None] - i_key[None, :]
        m_seen = m_key[None, :] & (tl.abs(distance) < window)
        if CAUSAL:
            m_seen = m_seen & (distance >= 0)
        score = tl.where(m_seen, score, float("-inf"))
        highest, total, values = add_block(highest, total, values, score, v, WIDEN)
    return highest, total, values


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["num_requests", "num_rows", "num_pages", "splits_per_program", "window"]
)
def _attend_kernel(  # noqa: PLR0917
    p_q: tl.tensor,
    p_cache: tl.tensor,
    p_highest: tl.tensor,
    p_total: tl.tensor,
    p_values: tl.tensor,
    p_table: tl.tensor,
    p_lengths: tl.tensor,
    p_row_offsets: tl.tensor,
    num_requests: int,
    num_rows: int,
    num_pages: int,
    splits_per_program: int,
    window: int,
    scale_log2: float,
    stride_qt: int,
    stride_qn: int,
    NUM_HEADS: tl.constexpr,
    KV_GROUP: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WIDEN: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    ROWS: tl.constexpr = BLOCK_M // GROUP
    # Where the values of a row of the cache begin; the next row is as far from there.
    VALUE: tl.constexpr = (NUM_HEADS // KV_GROUP) * WIDTH
    i_first_head = tl.program_id(1) * GROUP
    i_kv_head = i_first_head // KV_GROUP
    i_chunk = tl.program_id(2)
    i_request, i_tile = find_request(p_row_offsets, tl.program_id(0), num_requests, 1, ROWS)
    start = tl.load(p_row_offsets + i_request)
    count = tl.load(p_row_offsets + i_request + 1) - start
    length = tl.load(p_lengths + i_request)
    if i_tile * ROWS >= count:
        return
    i_m = tl.arange(0, BLOCK_M)
    i_h = tl.arange(0, BLOCK_H)
    i_row = i_tile * ROWS + i_m // GROUP
    i_head = i_first_head + i_m % GROUP
    i_packed = (start + i_row).to(tl.int64)
    m_row = (i_m < ROWS * GROUP) & (i_row < count)
    m_h = i_h < WIDTH
    # The keys that any row of the tile sees are [low, high).
    first = length + i_tile * ROWS
    last = tl.minimum(first + ROWS, length + count) - 1
    low = tl.maximum(first - window + 1, 0)
    high = last + 1 if CAUSAL else tl.minimum(length + count, last + window)
    p_q_tile = p_q + i_packed[:, None] * stride_qt + i_head[:, None] * stride_qn + i_h[None, :]
    q = tl.load(p_q_tile, mask=m_row[:, None] & m_h[None, :], other=0.0)
    if WIDEN:
        q = q.to(tl.float32)
    highest, total, values = no_keys(BLOCK_M, BLOCK_H)
    first_split = tl.maximum(i_chunk * splits_per_program, low // SPLIT)
    end_split = tl.minimum((i_chunk + 1) * splits_per_program, (high + SPLIT - 1) // SPLIT)
    for split in range(first_split, end_split):
        s_highest, s_total, s_values = _attend_split(
            q,
            length + i_row,
            p_table + i_request.to(tl.int64) * num_pages,
            p_cache + i_kv_head * WIDTH,
            split,
            low,
            high,
            window,
            scale_log2,
            VALUE,
            WIDTH,
            PAGE_SIZE,
            CAUSAL,
            WIDEN,
            SPLIT,
            BLOCK_M,
            BLOCK_J,
            BLOCK_H,
        )
        highest, total, values = join(highest, total, values, s_highest, s_total, s_values)
    i_out = (i_chunk.to(tl.int64) * num_rows + i_packed) * NUM_HEADS + i_head
    store_chunk(p_highest, p_total, p_values, highest, total, values, i_out, m_row, WIDTH, BLOCK_H)


def paged_attention(
    q: torch.Tensor, cache: torch.Tensor, plan: AttentionPlan, scale: float, mask_spec: MaskSpec
) -> torch.Tensor:
    """Arguments and result as the public function; nothing waits for the device."""
    num_heads, width, num_kv_heads = q.shape[1], q.shape[2], cache.shape[3]
    group = num_heads // num_kv_heads
    blocks = choose_blocks(group, width, q.dtype)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if q.stride(2) != 1:
        q = q.contiguous()
    if plan.num_rows == 0:
        return out.zero_()
    chunks = Chunks.empty(
        longest=max(plan.num_keys),
        num_rows=plan.num_rows,
        num_heads=num_heads,
        width=width,
        device=q.device,
    )
    tile_heads = heads_of_tile(group, blocks["BLOCK_M"])
    tiles = num_tiles(plan.num_rows, len(plan.row_counts), 1, blocks["BLOCK_M"] // tile_heads)
    _attend_kernel[(tiles, num_heads // tile_heads, len(chunks.values))](
        q,
        cache,
        chunks.highest,
        chunks.total,
        chunks.values,
        plan.lookup_table,
        plan.cache_lengths,
        plan.input_row_offsets,
        len(plan.row_counts),
        plan.num_rows,
        plan.lookup_table.shape[1],
        chunks.splits_per_chunk,
        NO_WINDOW if mask_spec.window is None else min(mask_spec.window, NO_WINDOW),
        scale * LOG2_E,
        q.stride(0),
        q.stride(1),
        NUM_HEADS=num_heads,
        KV_GROUP=group,
        GROUP=tile_heads,
        WIDTH=width,
        PAGE_SIZE=plan.page_size_tokens,
        CAUSAL=mask_spec.mode == "causal",
        WIDEN=must_widen(q.dtype),
        SPLIT=chunks.split_keys,
        **blocks,
        enable_fp_fusion=True,
    )
    return chunks.merge(out)
