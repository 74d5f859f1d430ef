"""paged_attention on the CPU: fixed key partitions through PyTorch's flash kernel, then a merge.

Knows: which requests are computed together and which alone. Does not know: how.
The README says why no row's bits depend on that choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch.nn import functional

from pilotfish.kernels.paged_attention import decode as few_rows
from pilotfish.kernels.paged_attention import prefill, reference
from pilotfish.kernels.paged_attention.flash import WIDTH_MULTIPLE
from pilotfish.kernels.paged_attention.gather import Gather, RowKind
from pilotfish.kernels.paged_attention.mask_spec import MaskSpec
from pilotfish.kernels.paged_attention.plan import AttentionPlan
from pilotfish.kernels.paged_attention.tiles import Tile, make_tiles
from pilotfish.kernels.paged_attention.unseen import without_unseen

FEW_ROWS, FEW_FOLDED_ROWS = 16, 64
"""A request with at most so many rows, or rows times G, is computed together with others."""


@attrs.frozen(kw_only=True)
class Work:
    """All that a layer of this kind of row and mask must compute.

    decode: None where every request is computed by itself, in prefill.
    """

    decode: few_rows.DecodeLayout | None
    prefill: tuple[tuple[Tile, tuple[Gather, ...]], ...]


def paged_attention(
    q: torch.Tensor,
    cache: torch.Tensor,
    plan: AttentionPlan,
    scale: float,
    mask_spec: MaskSpec,
    *,
    value_width: int,
    invariant: bool,
) -> torch.Tensor:
    """Arguments and result as the public function.

    float16 is computed in float32, and so is bfloat16 where bits matter: the flash kernel chooses
    its 16-bit products by the number of rows, of requests and of threads. On another device than a
    CPU this is the reference: right, slow, and not invariant.
    """
    if q.device.type != "cpu":
        out = reference.paged_attention(q, cache, plan, scale, mask_spec)
        return out[..., :value_width].contiguous()
    width, dtype = q.shape[2], q.dtype
    if q.stride(2) != 1:  # the flash kernel reads whole rows, without asking
        q = q.contiguous()
    if width % WIDTH_MULTIPLE:
        q = functional.pad(q, (0, -width % WIDTH_MULTIPLE))
    if dtype == torch.float16 or (dtype == torch.bfloat16 and invariant):
        q = q.float()
    shared = cache.ndim == 3
    row = RowKind(1 if shared else cache.shape[3], q.shape[2], q.dtype, shared)
    work = plan.recall(
        ("work", q.shape[:2], row, mask_spec), lambda: _lay_out(plan, q, row, mask_spec)
    )
    num_rows = q.shape[0]
    if work.prefill and num_rows < plan.num_padded_rows:
        q = functional.pad(q, (0, 0, 0, 0, 0, plan.num_padded_rows - num_rows))
    row_shape = (1, cache.shape[2]) if shared else cache.shape[2:]
    cache_rows = cache.view(-1, *row_shape)

    def attend() -> torch.Tensor:
        return _attend(q, cache_rows, work, scale, value_width)

    out = without_unseen(attend(), cache, plan, mask_spec, attend)
    out = out if out.shape[0] == num_rows else out[:num_rows]
    return out if out.dtype == dtype else out.to(dtype)


def _attend(
    q: torch.Tensor, cache_rows: torch.Tensor, work: Work, scale: float, value_width: int
) -> torch.Tensor:
    decode = work.decode
    if decode and not work.prefill:
        return few_rows.attend(q, cache_rows, decode, scale, value_width=value_width, out=None)
    out = torch.zeros((*q.shape[:2], value_width), dtype=q.dtype)
    if decode:
        few_rows.attend(q, cache_rows, decode, scale, value_width=value_width, out=out)
    for tile, gathers in work.prefill:
        prefill.attend(q, cache_rows, tile, gathers, scale=scale, out=out)
    return out


def _lay_out(plan: AttentionPlan, q: torch.Tensor, row: RowKind, mask_spec: MaskSpec) -> Work:
    num_heads = q.shape[1]
    limit = max(FEW_ROWS, FEW_FOLDED_ROWS * row.num_kv_heads // num_heads, plan.row_multiple)
    few = [b for b, count in enumerate(plan.row_counts) if 0 < count <= limit]
    many = [b for b, count in enumerate(plan.row_counts) if count > limit]
    tiles = [tile for b in many for tile in _tiles(plan, b, mask_spec)]
    decode = None
    if few:
        num_rows = None if many else q.shape[0]
        decode = few_rows.lay_out_decode(plan, few, num_heads, row, mask_spec, num_rows=num_rows)
    return Work(
        decode=decode,
        prefill=tuple((tile, _gathers(plan, tile, row)) for tile in tiles),
    )


def _tiles(plan: AttentionPlan, request: int, mask_spec: MaskSpec) -> Sequence[Tile]:
    return plan.recall(("tiles", request, mask_spec), lambda: make_tiles(plan, request, mask_spec))


def _gathers(plan: AttentionPlan, tile: Tile, row: RowKind) -> tuple[Gather, ...]:
    return tuple(Gather.make(plan, part.slots, 1, row) for part in tile.parts)
