"""Gated short convolution on a CPU: a gather for few rows, shifted views for many.

Knows: how to do it in few torch calls. Does not know: Triton.
Both forms multiply and add the same float32 numbers in the same order, with operations that treat
every element alike, so a row's bits do not depend on which form it took.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.short_conv.columns import ColumnRun, ConvColumns

TILE_ELEMENTS = 1 << 17
"""Elements of a tile: its float32 copies stay in a core's own cache."""


def short_conv(
    bcx: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    columns: ConvColumns,
    layer: int,
) -> torch.Tensor:
    """bcx: [T', 3D]; returns [T', D] and writes the columns, as the public function."""
    if columns.runs:
        return _mixed(bcx, weight, bias, columns, layer)
    num_rows, short = columns.own.shape[0], bcx.shape[0] - columns.own.shape[0]
    if short:
        bcx = bcx[:num_rows]
    b, c, x = bcx.chunk(3, 1)
    out = _gathered(b * x, weight, bias, columns, layer).mul_(c)
    return torch.nn.functional.pad(out, (0, 0, 0, short)) if short else out


def _gathered(
    u: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    columns: ConvColumns,
    layer: int,
) -> torch.Tensor:
    """u: [R, D], the rows in place; writes it and returns their sums, [R, D] of u's dtype."""
    memory, width = columns.memory[layer], weight.shape[0]
    memory.index_copy_(0, columns.own, u)
    seen = memory.index_select(0, columns.columns.view(-1)).view(-1, width, u.shape[1])
    first, *others = seen.float().mul_(weight).unbind(1)
    for other in others:
        first.add_(other)
    if bias is not None:
        first.add_(bias)
    # A float32 sum still lies among its products.
    return first.type_as(u) if u.dtype != first.dtype else first.contiguous()


def _mixed(
    bcx: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    columns: ConvColumns,
    layer: int,
) -> torch.Tensor:
    b, c, x = bcx.chunk(3, 1)
    out = torch.empty(c.shape, dtype=c.dtype, device=c.device)
    out[sum(columns.row_counts) :] = 0
    if columns.rows is not None and columns.rows.shape[0]:
        rows = columns.rows
        u = b.index_select(0, rows) * x.index_select(0, rows)
        sums = _gathered(u, weight, bias, columns, layer)
        out.index_copy_(0, rows, sums.mul_(c.index_select(0, rows)))
    for run in columns.runs:
        _run(bcx, weight, bias, run, layer=layer, out=out)
    return out


def _run(
    bcx: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    run: ColumnRun,
    *,
    layer: int,
    out: torch.Tensor,
) -> None:
    """Computes the rows of one run, tile by tile."""
    b, c, x = bcx.chunk(3, 1)
    width, size = weight.shape
    tile = max(1, TILE_ELEMENTS // size)
    memory = run.memory[layer][run.start :]
    for done in range(0, run.num_rows, tile):
        count = min(tile, run.num_rows - done)
        row = run.first_row + done
        rows = slice(row, row + count)
        torch.mul(b[rows], x[rows], out=memory[done + width - 1 : done + width - 1 + count])
        wide = memory[done : done + width - 1 + count].float()
        total = wide[:count] * weight[0]
        for j in range(1, width):
            total.add_(wide[j : j + count] * weight[j])
        if bias is not None:
            total.add_(bias)
        torch.mul(total.type_as(out), c[rows], out=out[rows])
