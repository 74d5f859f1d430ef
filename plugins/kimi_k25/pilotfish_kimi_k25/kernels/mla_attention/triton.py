"""The absorbed form in Triton: a row of the cache is loaded once, as key and as value.

Knows: tiles, splits, the kernels. Does not know: when they are chosen. The README derives them.
Letters as in the package, and: M rows of a tile with all heads folded in (row i, head n: i*N + n),
J keys of a block. A split is 512 keys.
"""

import math

import attrs
import torch
import triton
import triton.language as tl

from pilotfish.kernels.paged_attention import AttentionPlan

# Splits begin at multiples of this position, blocks of keys at multiples of theirs.
SPLIT_KEYS = 512
# Splits are computed side by side only while their float32 results take less than this.
PARTIAL_BYTES = 64 << 20
LOG2_E = math.log2(math.e)


@attrs.frozen(kw_only=True)
class Blocks:
    """Block sizes of a tile: fixed by N, the widths and the dtype, never by the batch.

    The latent and the turned part have blocks of their own: 512 + 64 instead of 1024.
    """

    block_m: int
    block_j: int
    block_c: int
    block_r: int
    num_warps: int

    @classmethod
    def choose(cls, num_heads: int, latent: int, rope_width: int, dtype: torch.dtype) -> "Blocks":
        """The largest with which a tile of 512 + 64 keeps its results in a Hopper's registers."""
        return cls(
            block_m=16
            if dtype == torch.float32
            else min(32, max(16, triton.next_power_of_2(num_heads))),
            block_j=16,
            block_c=max(16, triton.next_power_of_2(latent)),
            block_r=max(16, triton.next_power_of_2(rope_width)),
            num_warps=8 if latent > 128 else 4,
        )


@triton.jit  # type: ignore[untyped-decorator]
def _join(  # noqa: PLR0917
    highest: tl.tensor,
    total: tl.tensor,
    values: tl.tensor,
    next_highest: tl.tensor,
    next_total: tl.tensor,
    next_values: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    # Adds a split to those before it. Products and sums are spelled out, so that the bits are the
    # same wherever splits are joined; one that saw no key (-inf) changes none.
    new_highest = tl.maximum(highest, next_highest)
    finite = tl.where(new_highest == float("-inf"), 0.0, new_highest)
    before = tl.exp2(highest - finite)
    after = tl.exp2(next_highest - finite)
    wide_after = tl.broadcast_to(after[:, None], values.shape)
    new_total = tl.fma(next_total, after, total * before)
    new_values = tl.fma(next_values, wide_after, values * before[:, None])
    return new_highest, new_total, new_values


@triton.jit  # type: ignore[untyped-decorator]
def _find_request(
    p_row_offsets: tl.tensor,
    tile: tl.tensor,
    num_requests: int,
    FOLDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    # Request b owns the tiles from offsets[b] * N // BLOCK_M + b to those of b + 1: as many as its
    # rows can need, or one more. Returns the request, and the tile counted from its first.
    low = 0
    high = num_requests
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(p_row_offsets + middle) * FOLDED // BLOCK_M + middle <= tile:
            low = middle
        else:
            high = middle
    return low, tile - (tl.load(p_row_offsets + low) * FOLDED // BLOCK_M + low)


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
    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    values = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
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
        dtype = latent.dtype
        if WIDEN:
            latent = latent.to(tl.float32)
            rope_part = rope_part.to(tl.float32)
        score = tl.dot(q_latent, tl.trans(latent), input_precision="ieee")
        score = tl.dot(q_rope, tl.trans(rope_part), score, input_precision="ieee") * scale_log2
        m_seen = m_key[None, :] & (i_key[None, :] <= position[:, None])
        score = tl.where(m_seen, score, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(score, 1))
        finite = tl.where(new_highest == float("-inf"), 0.0, new_highest)
        before = tl.exp2(highest - finite)
        weight = tl.exp2(score - finite[:, None])
        total = tl.fma(total, before, tl.sum(weight, 1))
        weight = weight.to(dtype)
        if WIDEN:
            weight = weight.to(tl.float32)
        values = tl.dot(weight, latent, values * before[:, None], input_precision="ieee")
        highest = new_highest
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
    i_request, i_tile = _find_request(
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
    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    values = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
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
        highest, total, values = _join(highest, total, values, s_highest, s_total, s_values)
    i_out = (i_chunk.to(tl.int64) * num_rows + i_packed) * NUM_HEADS + i_head
    tl.store(p_highest + i_out, highest, mask=m_row)
    tl.store(p_total + i_out, total, mask=m_row)
    m_values = (m_row & (highest > float("-inf")))[:, None] & m_c[None, :]
    tl.store(p_values + i_out[:, None] * LATENT + i_c[None, :], values, mask=m_values)


@triton.jit(do_not_specialize=["num_rows", "num_chunks"])  # type: ignore[untyped-decorator]
def _merge_kernel(  # noqa: PLR0917
    p_highest: tl.tensor,
    p_total: tl.tensor,
    p_values: tl.tensor,
    p_out: tl.tensor,
    num_rows: int,
    num_chunks: int,
    NUM_HEADS: tl.constexpr,
    LATENT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    i_row = tl.program_id(0).to(tl.int64)
    i_head = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    i_c = tl.arange(0, BLOCK_C)
    m_head = i_head < NUM_HEADS
    m_out = m_head[:, None] & (i_c < LATENT)[None, :]
    highest = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    values = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    if i_row < num_rows:
        for chunk in range(0, num_chunks):
            i_in = (chunk * num_rows + i_row) * NUM_HEADS + i_head
            c_highest = tl.load(p_highest + i_in, mask=m_head, other=float("-inf"))
            c_total = tl.load(p_total + i_in, mask=m_head, other=0.0)
            # Values were stored only where a key was seen.
            m_values = m_out & (c_highest > float("-inf"))[:, None]
            p_in = p_values + i_in[:, None] * LATENT + i_c[None, :]
            c_values = tl.load(p_in, mask=m_values, other=0.0)
            highest, total, values = _join(highest, total, values, c_highest, c_total, c_values)
    total = tl.where(total == 0.0, 1.0, total)
    result = (values / total[:, None]).to(p_out.dtype.element_ty)
    p_row = p_out + (i_row * NUM_HEADS + i_head)[:, None] * LATENT + i_c[None, :]
    tl.store(p_row, result, mask=m_out)


def attend(
    q: torch.Tensor, cache: torch.Tensor, plan: AttentionPlan, latent_width: int, scale: float
) -> torch.Tensor:
    """Arguments and result as `attend_absorbed`; nothing waits for the device."""
    num_heads, width = q.shape[1], q.shape[2]
    blocks = Blocks.choose(num_heads, latent_width, width - latent_width, q.dtype)
    out = torch.empty((*q.shape[:2], latent_width), dtype=q.dtype, device=q.device)
    if q.stride(2) != 1:
        q = q.contiguous()
    if plan.num_rows == 0:
        return out.zero_()
    num_splits = triton.cdiv(max(plan.num_keys), SPLIT_KEYS)
    row_bytes = 4 * plan.num_rows * num_heads * latent_width
    num_chunks = num_splits if num_splits * row_bytes <= PARTIAL_BYTES else 1
    shape = (num_chunks, plan.num_rows, num_heads)
    highest = torch.full(shape, -math.inf, dtype=torch.float32, device=q.device)
    total = torch.empty(shape, dtype=torch.float32, device=q.device)
    values = torch.empty((*shape, latent_width), dtype=torch.float32, device=q.device)
    num_tiles = plan.num_rows * num_heads // blocks.block_m + len(plan.row_counts)
    _latent_kernel[(num_tiles, num_chunks)](
        q,
        cache,
        highest,
        total,
        values,
        plan.lookup_table,
        plan.cache_lengths,
        plan.input_row_offsets,
        len(plan.row_counts),
        plan.num_rows,
        plan.lookup_table.shape[1],
        num_splits // num_chunks,
        scale * LOG2_E,
        q.stride(0),
        q.stride(1),
        NUM_HEADS=num_heads,
        LATENT=latent_width,
        WIDTH=width,
        PAGE_SIZE=plan.page_size_tokens,
        # Triton's interpreter keeps bfloat16 as raw 16-bit integers, and would multiply those.
        WIDEN=triton.knobs.runtime.interpret and q.dtype == torch.bfloat16,
        SPLIT=SPLIT_KEYS,
        BLOCK_M=blocks.block_m,
        BLOCK_J=blocks.block_j,
        BLOCK_C=blocks.block_c,
        BLOCK_R=blocks.block_r,
        num_warps=blocks.num_warps,
        num_stages=2,
        enable_fp_fusion=True,
    )
    block_n = min(triton.next_power_of_2(num_heads), max(1, 4096 // blocks.block_c))
    _merge_kernel[(q.shape[0], triton.cdiv(num_heads, block_n))](
        highest,
        total,
        values,
        out,
        plan.num_rows,
        num_chunks,
        NUM_HEADS=num_heads,
        LATENT=latent_width,
        BLOCK_N=block_n,
        BLOCK_C=blocks.block_c,
        enable_fp_fusion=True,
    )
    return out
