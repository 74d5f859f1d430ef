"""paged_attention in Triton: one kernel for every kind of pass, and one that merges its results.

Knows: tiles, splits, the kernels. Does not know: when they are chosen. The README derives them.
Letters as in the package, and: M rows of a tile with the heads of a group, or a part of one, folded
in (row i, head g of them: i * G + g), J keys of a block. A split is 512 keys.
"""

import math

import attrs
import torch
import triton
import triton.language as tl

from pilotfish.kernels.paged_attention.mask_spec import MaskSpec
from pilotfish.kernels.paged_attention.plan import AttentionPlan

# Splits begin at multiples of this position, blocks of keys at multiples of theirs.
SPLIT_KEYS = 512
# Splits are computed side by side only while their float32 results take less than this.
PARTIAL_BYTES = 64 << 20
NO_WINDOW = 1 << 30
LOG2_E = math.log2(math.e)


@attrs.frozen(kw_only=True)
class Blocks:
    """Block sizes of a tile: fixed by G, the head width and the dtype, never by the batch."""

    block_m: int
    block_j: int
    block_h: int
    num_warps: int
    num_stages: int

    @classmethod
    def choose(cls, group: int, width: int, dtype: torch.dtype) -> "Blocks":
        """64 rows are one Hopper tensor instruction; decode leaves most of them idle, for free.

        Sizes are the largest that keep a tile's results in registers and its keys in the shared
        memory of one multiprocessor. A row of several hundred numbers leaves room for 16 rows.
        """
        block_h = max(16, triton.next_power_of_2(width))
        exact = dtype == torch.float32
        if block_h > 256:
            return cls(block_m=16, block_j=16, block_h=block_h, num_warps=8, num_stages=1)
        warps = 4 if block_h <= 64 else 8
        return cls(
            block_m=max(64, triton.next_power_of_2(group)),
            block_j=(32 if block_h <= 64 else 16) if exact else (64 if block_h <= 128 else 32),
            block_h=block_h,
            num_warps=2 * warps if exact and block_h != 128 else warps,
            num_stages=2,
        )

    def heads_of_tile(self, group: int) -> int:
        """Heads that a tile's rows have: a kv head's whole group, or a part that a tile holds."""
        if group <= self.block_m:
            return group
        return max(heads for heads in range(1, self.block_m) if group % heads == 0)


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
    p_row_offsets: tl.tensor, tile: tl.tensor, num_requests: int, ROWS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    # Request b owns the tiles from offsets[b] // ROWS + b to those of b + 1: as many as its rows
    # can need, or one more. Returns the request, and the tile counted from the request's first.
    low = 0
    high = num_requests
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(p_row_offsets + middle) // ROWS + middle <= tile:
            low = middle
        else:
            high = middle
    return low, tile - (tl.load(p_row_offsets + low) // ROWS + low)


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
    ROW: tl.constexpr,
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
    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    values = tl.zeros((BLOCK_M, BLOCK_H), tl.float32)
    from_key = tl.maximum(split * SPLIT, low // BLOCK_J * BLOCK_J)
    to_key = tl.minimum((split + 1) * SPLIT, high)
    for j in range(from_key, to_key, BLOCK_J):
        i_key = j + tl.arange(0, BLOCK_J)
        m_key = (i_key >= low) & (i_key < high)
        page = tl.load(p_pages + i_key // PAGE_SIZE, mask=m_key, other=0).to(tl.int64)
        p_k = p_kv_head + (page * PAGE_SIZE + i_key % PAGE_SIZE) * ROW
        p_v = p_k + VALUE
        # What is not loaded is zero: a hidden key may hold NaN, and 0 * NaN is NaN.
        k = tl.load(p_k[None, :] + i_h[:, None], mask=m_key[None, :] & m_h[:, None], other=0.0)
        v = tl.load(p_v[:, None] + i_h[None, :], mask=m_key[:, None] & m_h[None, :], other=0.0)
        dtype = v.dtype
        if WIDEN:
            k = k.to(tl.float32)
            v = v.to(tl.float32)
        score = tl.dot(q, k, input_precision="ieee") * scale_log2
        distance = position[:, None] - i_key[None, :]
        m_seen = m_key[None, :] & (tl.abs(distance) < window)
        if CAUSAL:
            m_seen = m_seen & (distance >= 0)
        score = tl.where(m_seen, score, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(score, 1))
        finite = tl.where(new_highest == float("-inf"), 0.0, new_highest)
        before = tl.exp2(highest - finite)
        weight = tl.exp2(score - finite[:, None])
        total = tl.fma(total, before, tl.sum(weight, 1))
        weight = weight.to(dtype)
        if WIDEN:
            weight = weight.to(tl.float32)
        values = tl.dot(weight, v, values * before[:, None], input_precision="ieee")
        highest = new_highest
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
    SHARED: tl.constexpr,
    CAUSAL: tl.constexpr,
    WIDEN: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    ROWS: tl.constexpr = BLOCK_M // GROUP
    # Where a row's values begin, and the next row.
    VALUE: tl.constexpr = 0 if SHARED else (NUM_HEADS // KV_GROUP) * WIDTH
    ROW: tl.constexpr = WIDTH if SHARED else 2 * VALUE
    i_first_head = tl.program_id(1) * GROUP
    i_kv_head = i_first_head // KV_GROUP
    i_chunk = tl.program_id(2)
    i_request, i_tile = _find_request(p_row_offsets, tl.program_id(0), num_requests, ROWS)
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
    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    values = tl.zeros((BLOCK_M, BLOCK_H), tl.float32)
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
            ROW,
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
        highest, total, values = _join(highest, total, values, s_highest, s_total, s_values)
    i_out = (i_chunk.to(tl.int64) * num_rows + i_packed) * NUM_HEADS + i_head
    tl.store(p_highest + i_out, highest, mask=m_row)
    tl.store(p_total + i_out, total, mask=m_row)
    m_values = (m_row & (highest > float("-inf")))[:, None] & m_h[None, :]
    tl.store(p_values + i_out[:, None] * WIDTH + i_h[None, :], values, mask=m_values)


@triton.jit(do_not_specialize=["num_rows", "num_chunks"])  # type: ignore[untyped-decorator]
def _merge_kernel(  # noqa: PLR0917
    p_highest: tl.tensor,
    p_total: tl.tensor,
    p_values: tl.tensor,
    p_out: tl.tensor,
    num_rows: int,
    num_chunks: int,
    NUM_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    i_row = tl.program_id(0).to(tl.int64)
    i_head = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    i_h = tl.arange(0, BLOCK_H)
    m_head = i_head < NUM_HEADS
    m_out = m_head[:, None] & (i_h < WIDTH)[None, :]
    highest = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    values = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
    if i_row < num_rows:
        for chunk in range(0, num_chunks):
            i_in = (chunk * num_rows + i_row) * NUM_HEADS + i_head
            c_highest = tl.load(p_highest + i_in, mask=m_head, other=float("-inf"))
            c_total = tl.load(p_total + i_in, mask=m_head, other=0.0)
            # Values were stored only where a key was seen.
            m_values = m_out & (c_highest > float("-inf"))[:, None]
            p_in = p_values + i_in[:, None] * WIDTH + i_h[None, :]
            c_values = tl.load(p_in, mask=m_values, other=0.0)
            highest, total, values = _join(highest, total, values, c_highest, c_total, c_values)
    total = tl.where(total == 0.0, 1.0, total)
    result = (values / total[:, None]).to(p_out.dtype.element_ty)
    tl.store(
        p_out + (i_row * NUM_HEADS + i_head)[:, None] * WIDTH + i_h[None, :], result, mask=m_out
    )


def paged_attention(
    q: torch.Tensor, cache: torch.Tensor, plan: AttentionPlan, scale: float, mask_spec: MaskSpec
) -> torch.Tensor:
    """Arguments and result as the public function; nothing waits for the device."""
    num_heads, width, shared = q.shape[1], q.shape[2], cache.ndim == 3
    num_kv_heads = 1 if shared else cache.shape[3]
    blocks = Blocks.choose(num_heads // num_kv_heads, width, q.dtype)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if q.stride(2) != 1:
        q = q.contiguous()
    if plan.num_rows == 0:
        return out.zero_()
    group = num_heads // num_kv_heads
    num_splits = triton.cdiv(max(plan.num_keys), SPLIT_KEYS)
    row_bytes = 4 * plan.num_rows * num_heads * width
    num_chunks = num_splits if num_splits * row_bytes <= PARTIAL_BYTES else 1
    shape = (num_chunks, plan.num_rows, num_heads)
    highest = torch.full(shape, -math.inf, dtype=torch.float32, device=q.device)
    total = torch.empty(shape, dtype=torch.float32, device=q.device)
    values = torch.empty((*shape, width), dtype=torch.float32, device=q.device)
    tile_heads = blocks.heads_of_tile(group)
    num_tiles = plan.num_rows // (blocks.block_m // tile_heads) + len(plan.row_counts)
    _attend_kernel[(num_tiles, num_heads // tile_heads, num_chunks)](
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
        NO_WINDOW if mask_spec.window is None else min(mask_spec.window, NO_WINDOW),
        scale * LOG2_E,
        q.stride(0),
        q.stride(1),
        NUM_HEADS=num_heads,
        KV_GROUP=group,
        GROUP=tile_heads,
        WIDTH=width,
        PAGE_SIZE=plan.page_size_tokens,
        SHARED=shared,
        CAUSAL=mask_spec.mode == "causal",
        # Triton's interpreter keeps bfloat16 as raw 16-bit integers, and would multiply those.
        WIDEN=triton.knobs.runtime.interpret and q.dtype == torch.bfloat16,
        SPLIT=SPLIT_KEYS,
        BLOCK_M=blocks.block_m,
        BLOCK_J=blocks.block_j,
        BLOCK_H=blocks.block_h,
        num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
        enable_fp_fusion=True,
    )
    block_n = min(triton.next_power_of_2(num_heads), max(1, 4096 // blocks.block_h))
    _merge_kernel[(q.shape[0], triton.cdiv(num_heads, block_n))](
        highest,
        total,
        values,
        out,
        plan.num_rows,
        num_chunks,
        NUM_HEADS=num_heads,
        WIDTH=width,
        BLOCK_N=block_n,
        BLOCK_H=blocks.block_h,
        enable_fp_fusion=True,
    )
    return out
