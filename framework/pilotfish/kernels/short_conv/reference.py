"""Gated short convolution as the definition reads: row by row. The others are judged by it."""

from __future__ import annotations

import torch

from pilotfish.kernels.short_conv.columns import ConvColumns


def short_conv(
    bcx: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    columns: ConvColumns,
    layer: int,
) -> torch.Tensor:
    """bcx: [T', 3D]; returns [T', D] and writes the columns, as the public function."""
    width = weight.shape[0]
    out = torch.zeros(bcx.shape[0], bcx.shape[1] // 3, dtype=bcx.dtype, device=bcx.device)
    for row, memory, places in _rows(columns, layer, width):
        b, c, x = bcx[row].float().chunk(3)
        memory[places[-1]] = (b * x).to(bcx.dtype)
        total = torch.zeros_like(b)
        for j, place in enumerate(places):
            total = total + weight[j] * memory[place].float()
        if bias is not None:
            total = total + bias
        out[row] = (total.to(bcx.dtype).float() * c).to(bcx.dtype)
    return out


def _rows(
    columns: ConvColumns, layer: int, width: int
) -> list[tuple[int, torch.Tensor, list[int]]]:
    """(packed row, memory, places of its columns) of every row, in an order that may be computed.

    Rows of one request follow one another, so a column is written before it is read.
    """
    in_place = range(len(columns.own)) if columns.rows is None else columns.rows.tolist()
    found = [
        (row, columns.memory[layer], places)
        for row, places in zip(in_place, columns.columns.tolist(), strict=True)
    ]
    for run in columns.runs:
        for i in range(run.num_rows):
            places = list(range(run.start + i, run.start + i + width))
            found.append((run.first_row + i, run.memory[layer], places))
    return found
