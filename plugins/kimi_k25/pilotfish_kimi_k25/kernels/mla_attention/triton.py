"""The absorbed form in Triton: a row of the cache is loaded once, as key and as value.

Knows: tiles, pages, the kernel. Does not know: when it is chosen, or how splits are merged.
Letters as in the package, and: M rows of a tile with all heads folded in (row i, head n: i*N + n),
J keys of a block. The README derives it.
"""

from typing import TypedDict

import torch
import triton
import triton.language as tl

from pilotfish.kernels.paged_attention import AttentionPlan
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


class Blocks(TypedDict):
    """Options of a launch: fixed by N, the widths and the dtype, never by the batch.

    The latent and the turned part have blocks of their own: 512 + 64 instead of 1024.
    """

    BLOCK_M: int
    BLOCK_J: int
    BLOCK_C: int
    BLOCK_R: int
    num_warps: int


def choose_blocks(num_heads: int, latent: int, rope_width: int, dtype: torch.dtype) -> Blocks:
    """The largest with which a tile of 512 + 64 keeps its results in a Hopper's registers."""
    most_rows = 16 if dtype == torch.float32 else 32
    return Blocks(
        BLOCK_M=min(most_rows, max(16, triton.next_power_of_2(num_heads))),
        BLOCK_J=16,
        BLOCK_C=max(16, triton.next_power_of_2(latent)),
        BLOCK_R=max(16, triton.next_power_of_2(rope_width)),
        num_warps=8 if latent > 128 else 4,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _attend_split(  # noqa: PLR0917
    q_latent: tl.tensor,
    q_rope: tl.tensor,
    position: tl.tensor,
    p_pages: tl.tensor,
    p_cache: tl.tensor,
    split: tl.tensor,
    num_keys: tl.tensor,
    scale_log2: float,
    LATENT: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WIDEN: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    # Rows against the keys of one split, of which num_keys exist for the tile. Returns each row's
    # highest score [M], and for weights 2^(score - highest) their sum [M] and values [M, C].
    i_c = tl.arange(0, BLOCK_C)
    i_r = tl.arange(0, BLOCK_R)
    highest, total, values = no_keys(BLOCK_M, BLOCK_C)
    for j in range(split * SPLIT, tl.minimum((split + 1) * SPLIT, num_keys), BLOCK_J):
        i_key = j + tl.arange(0, BLOCK_J)
        m_key = i_key < num_keys
        page = tl.load(p_pages + i_key // PAGE_SIZE, mask=m_key, other=0).to(tl.int64)
        p_row = p_cache + ((page * PAGE_SIZE + i_key % PAGE_SIZE) * WIDTH)[:, None]
        # What is not loaded is zero: a hidden key may hold NaN, and 0 * NaN is NaN.
        m_latent = m_key[:, None] & (i_c < LATENT)[None, :]
        m_rope = m_key[:, None] & (i_r < WIDTH - LATENT)[None, :]
        latent = tl.load(p_row + i_c[None, :], mask=m_latent, other=0.0)
        rope_part = tl.load(p_row + LATENT + i_r[None, :], mask=m_rope, other=0.0)
        value = latent
        if WIDEN:
            latent = latent.to(tl.float32)
            rope_part = rope_part.to(tl.float32)
        score = tl.dot(q_latent, tl.trans(latent), input_precision="ieee")
        score = tl.dot(q_rope, tl.trans(rope_part), score, input_precision="ieee") * scale_log2
        m_seen = m_key[None, :] & (i_key[None, :] <= position[:, None])
        score = tl.where(m_seen, score, float("-inf"))
        highest, total, values = add_block(highest, total, values, score, value, WIDEN)
    return highest, total, values


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["num_requests", "num_rows", "num_pages", "splits_per_program"]
)
def _latent_kernel(  # noqa: PLR0917
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
    scale_log2: float,
    stride_qt: int,
    stride_qn: int,
    NUM_HEADS: tl.constexpr,
    LATENT: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WIDEN: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> None:
    i_chunk = tl.program_id(1)
    i_request, i_tile = find_request(
        p_row_offsets, tl.program_id(0), num_requests, NUM_HEADS, BLOCK_M
    )
    start = tl.load(p_row_offsets + i_request)
    count = tl.load(p_row_offsets + i_request + 1) - start
    length = tl.load(p_lengths + i_request)
    if i_tile * BLOCK_M >= count * NUM_HEADS:
        return
    i_m = i_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    i_c = tl.arange(0, BLOCK_C)
    i_r = tl.arange(0, BLOCK_R)
    i_row = i_m // NUM_HEADS
    i_head = i_m % NUM_HEADS
    i_packed = (start + i_row).to(tl.int64)
    m_row = i_row < count
    m_c = i_c < LATENT
    p_q_row = p_q + i_packed[:, None] * stride_qt + i_head[:, None] * stride_qn
    q_latent = tl.load(p_q_row + i_c[None, :], mask=m_row[:, None] & m_c[None, :], other=0.0)
    m_rope = m_row[:, None] & (i_r < WIDTH - LATENT)[None, :]
    q_rope = tl.load(p_q_row + LATENT + i_r[None, :], mask=m_rope, other=0.0)
    if WIDEN:
        q_latent = q_latent.to(tl.float32)
        q_rope = q_rope.to(tl.float32)
    last = tl.minimum((i_tile * BLOCK_M + BLOCK_M - 1) // NUM_HEADS, count - 1)
    num_keys = length + last + 1
    highest, total, values = no_keys(BLOCK_M, BLOCK_C)
    first_split = i_chunk * splits_per_program
    end_split = tl.minimum(first_split + splits_per_program, (num_keys + SPLIT - 1) // SPLIT)
    for split in range(first_split, end_split):
        s_highest, s_total, s_values = _attend_split(
            q_latent,
            q_rope,
            length + i_row,
            p_table + i_request.to(tl.int64) * num_pages,
            p_cache,
            split,
            num_keys,
            scale_log2,
            LATENT,
            WIDTH,
            PAGE_SIZE,
            WIDEN,
            SPLIT,
            BLOCK_M,
            BLOCK_J,
            BLOCK_C,
            BLOCK_R,
        )
        highest, total, values = join(highest, total, values, s_highest, s_total, s_values)
    i_out = (i_chunk.to(tl.int64) * num_rows + i_packed) * NUM_HEADS + i_head
    store_chunk(p_highest, p_total, p_values, highest, total, values, i_out, m_row, LATENT, BLOCK_C)


def attend(
    q: torch.Tensor, cache: torch.Tensor, plan: AttentionPlan, latent_width: int, scale: float
) -> torch.Tensor:
    """Arguments and result as `attend_absorbed`; nothing waits for the device."""
    num_heads, width = q.shape[1], q.shape[2]
    blocks = choose_blocks(num_heads, latent_width, width - latent_width, q.dtype)
    out = torch.empty((*q.shape[:2], latent_width), dtype=q.dtype, device=q.device)
    if q.stride(2) != 1:
        q = q.contiguous()
    if plan.num_rows == 0:
        return out.zero_()
    chunks = Chunks.empty(
        longest=max(plan.num_keys),
        num_rows=plan.num_rows,
        num_heads=num_heads,
        width=latent_width,
        device=q.device,
    )
    tiles = num_tiles(plan.num_rows, len(plan.row_counts), num_heads, blocks["BLOCK_M"])
    _latent_kernel[(tiles, len(chunks.values))](
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
        scale * LOG2_E,
        q.stride(0),
        q.stride(1),
        NUM_HEADS=num_heads,
        LATENT=latent_width,
        WIDTH=width,
        PAGE_SIZE=plan.page_size_tokens,
        WIDEN=must_widen(q.dtype),
        SPLIT=chunks.split_keys,
        **blocks,
        num_stages=2,
        enable_fp_fusion=True,
    )
    return chunks.merge(out)
