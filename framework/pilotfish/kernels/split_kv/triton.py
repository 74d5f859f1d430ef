"""Split-KV attention in Triton: tiles of rows, splits of keys, and the merge of what splits gave.

Knows: which request a tile is of, and how results are joined. Does not know: pages, q or masks.
Letters: T rows of a pass, N heads, V width of a value, M rows of a tile, J keys of a block, C
chunks. A split is 512 keys; a chunk is a run of splits, which one program computes.
"""

import math

import attrs
import torch
import triton
import triton.language as tl

# Splits begin at multiples of this position, blocks of keys at multiples of theirs.
SPLIT_KEYS = 512
# Splits are computed side by side only while their float32 results take less than this.
PARTIAL_BYTES = 64 << 20
LOG2_E = math.log2(math.e)


@triton.jit  # type: ignore[untyped-decorator]
def find_request(
    p_row_offsets: tl.tensor,
    tile: tl.tensor,
    num_requests: int,
    FOLDED: tl.constexpr,
    TILE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Returns (the request b of a tile, the tile counted from the first of b).

    b owns the tiles from offsets[b] * FOLDED // TILE + b on, up to those of b + 1: as many as its
    rows can need, or one more. FOLDED, TILE: see `num_tiles`.
    """
    low = 0
    high = num_requests
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(p_row_offsets + middle) * FOLDED // TILE + middle <= tile:
            low = middle
        else:
            high = middle
    return low, tile - (tl.load(p_row_offsets + low) * FOLDED // TILE + low)


def num_tiles(num_rows: int, num_requests: int, folded: int, tile: int) -> int:
    """Tiles of all requests; folded: heads that are rows of a tile; tile: rows that it holds."""
    return num_rows * folded // tile + num_requests


@triton.jit  # type: ignore[untyped-decorator]
def no_keys(BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """What rows have before any key: (highest score [M], sum of weights [M], values [M, V]).

    A weight is 2^(score - highest).
    """
    return (
        tl.full((BLOCK_M,), float("-inf"), tl.float32),
        tl.zeros((BLOCK_M,), tl.float32),
        tl.zeros((BLOCK_M, BLOCK_V), tl.float32),
    )


@triton.jit  # type: ignore[untyped-decorator]
def add_block(  # noqa: PLR0917
    highest: tl.tensor,
    total: tl.tensor,
    values: tl.tensor,
    score: tl.tensor,
    v: tl.tensor,
    WIDEN: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Adds a block of keys to those before. score: [M, J], -inf for a key not seen; v: [J, V]."""
    new_highest = tl.maximum(highest, tl.max(score, 1))
    finite = tl.where(new_highest == float("-inf"), 0.0, new_highest)
    before = tl.exp2(highest - finite)
    weight = tl.exp2(score - finite[:, None])
    total = tl.fma(total, before, tl.sum(weight, 1))
    weight = weight.to(v.dtype)
    if WIDEN:
        weight = weight.to(tl.float32)
        v = v.to(tl.float32)
    values = tl.dot(weight, v, values * before[:, None], input_precision="ieee")
    return new_highest, total, values


@triton.jit  # type: ignore[untyped-decorator]
def join(  # noqa: PLR0917
    highest: tl.tensor,
    total: tl.tensor,
    values: tl.tensor,
    next_highest: tl.tensor,
    next_total: tl.tensor,
    next_values: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Adds a split to those before it.

    Products and sums are spelled out, so that the bits are the same wherever splits are joined; one
    that saw no key (-inf) changes none.
    """
    new_highest = tl.maximum(highest, next_highest)
    finite = tl.where(new_highest == float("-inf"), 0.0, new_highest)
    before = tl.exp2(highest - finite)
    after = tl.exp2(next_highest - finite)
    wide_after = tl.broadcast_to(after[:, None], values.shape)
    new_total = tl.fma(next_total, after, total * before)
    new_values = tl.fma(next_values, wide_after, values * before[:, None])
    return new_highest, new_total, new_values


@triton.jit  # type: ignore[untyped-decorator]
def store_chunk(  # noqa: PLR0917
    p_highest: tl.tensor,
    p_total: tl.tensor,
    p_values: tl.tensor,
    highest: tl.tensor,
    total: tl.tensor,
    values: tl.tensor,
    i_out: tl.tensor,
    m_row: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """Leaves a chunk's results in `Chunks`; values only where a key was seen.

    i_out: [M] (chunk * T + row) * N + head. WIDTH: V.
    """
    i_v = tl.arange(0, BLOCK_V)
    tl.store(p_highest + i_out, highest, mask=m_row)
    tl.store(p_total + i_out, total, mask=m_row)
    m_values = (m_row & (highest > float("-inf")))[:, None] & (i_v < WIDTH)[None, :]
    tl.store(p_values + i_out[:, None] * WIDTH + i_v[None, :], values, mask=m_values)


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
    BLOCK_V: tl.constexpr,
) -> None:
    # Joins one row's chunks in order; rows past num_rows are padding and become zeros.
    i_row = tl.program_id(0).to(tl.int64)
    i_head = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    i_v = tl.arange(0, BLOCK_V)
    m_head = i_head < NUM_HEADS
    m_out = m_head[:, None] & (i_v < WIDTH)[None, :]
    highest, total, values = no_keys(BLOCK_N, BLOCK_V)
    if i_row < num_rows:
        for chunk in range(0, num_chunks):
            i_in = (chunk * num_rows + i_row) * NUM_HEADS + i_head
            c_highest = tl.load(p_highest + i_in, mask=m_head, other=float("-inf"))
            c_total = tl.load(p_total + i_in, mask=m_head, other=0.0)
            m_values = m_out & (c_highest > float("-inf"))[:, None]
            p_in = p_values + i_in[:, None] * WIDTH + i_v[None, :]
            c_values = tl.load(p_in, mask=m_values, other=0.0)
            highest, total, values = join(highest, total, values, c_highest, c_total, c_values)
    total = tl.where(total == 0.0, 1.0, total)
    result = (values / total[:, None]).to(p_out.dtype.element_ty)
    p_row = p_out + (i_row * NUM_HEADS + i_head)[:, None] * WIDTH + i_v[None, :]
    tl.store(p_row, result, mask=m_out)


@attrs.frozen(kw_only=True, eq=False)
class Chunks:
    """Memory between the programs of a pass and the merge, which reads what `store_chunk` stored.

    highest, total: [C, T, N] float32; values: [C, T, N, V] float32. split_keys: of a split;
    splits_per_chunk: splits that a program takes one after the other.
    """

    highest: torch.Tensor
    total: torch.Tensor
    values: torch.Tensor
    split_keys: int
    splits_per_chunk: int

    @classmethod
    def empty(
        cls, *, longest: int, num_rows: int, num_heads: int, width: int, device: torch.device
    ) -> "Chunks":
        """longest: keys of the longest request; width: V. No key was seen yet."""
        num_splits = triton.cdiv(longest, SPLIT_KEYS)
        is_little = num_splits * 4 * num_rows * num_heads * width <= PARTIAL_BYTES
        shape = (num_splits if is_little else 1, num_rows, num_heads)
        return cls(
            highest=torch.full(shape, -math.inf, dtype=torch.float32, device=device),
            total=torch.empty(shape, dtype=torch.float32, device=device),
            values=torch.empty((*shape, width), dtype=torch.float32, device=device),
            split_keys=SPLIT_KEYS,
            splits_per_chunk=num_splits // shape[0],
        )

    def merge(self, out: torch.Tensor) -> torch.Tensor:
        """Fills out, [T', N, V]: rows past T become zeros."""
        num_chunks, num_rows, num_heads, width = self.values.shape
        block_v = max(16, triton.next_power_of_2(width))
        block_n = min(triton.next_power_of_2(num_heads), max(1, 4096 // block_v))
        _merge_kernel[(out.shape[0], triton.cdiv(num_heads, block_n))](
            self.highest,
            self.total,
            self.values,
            out,
            num_rows,
            num_chunks,
            NUM_HEADS=num_heads,
            WIDTH=width,
            BLOCK_N=block_n,
            BLOCK_V=block_v,
            enable_fp_fusion=True,
        )
        return out


def must_widen(dtype: torch.dtype) -> bool:
    """Triton's interpreter keeps bfloat16 as raw 16-bit integers, and would multiply those."""
    return bool(triton.knobs.runtime.interpret) and dtype == torch.bfloat16
