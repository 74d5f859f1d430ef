"""Positions of patches: the learned table resampled to an image's grid, and 2-D rotary angles.

Knows: grids and interpolation. Does not know: networks or pixels.
Letters: h, w rows and columns of patches, D tower width, H head width.
"""

from __future__ import annotations

import torch

_CUBIC = -0.75
"""Keys' constant a, as torch's bicubic interpolation has it."""


def resampled(table: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """table: [R, C, D] -> [rows * columns, D] float32, bicubic, pixel centres, edges repeated.

    Equal to the table where the grids are equal. Source: Keys 1981, with a = -0.75.
    """
    table = table.float()
    table = _along_rows(table, rows)
    table = _along_rows(table.transpose(0, 1), columns).transpose(0, 1)
    return table.reshape(rows * columns, -1)


def _along_rows(table: torch.Tensor, count: int) -> torch.Tensor:
    """[R, C, D] -> [count, C, D]."""
    size = table.shape[0]
    if size == count:
        return table
    places = torch.arange(count, dtype=torch.float64, device=table.device)
    source = (places + 0.5) * (size / count) - 0.5
    first = source.floor()
    found: torch.Tensor | None = None
    for step in range(-1, 3):
        near = (first.long() + step).clamp(0, size - 1)
        weights = _keys((source - first - step).abs()).to(table.dtype)
        part = table.index_select(0, near) * weights[:, None, None]
        found = part if found is None else found.add_(part)
    assert found is not None
    return found


def _keys(distance: torch.Tensor) -> torch.Tensor:
    """The cubic convolution kernel at distances in [0, 2]."""
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = ((_CUBIC * distance - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC
    return torch.where(distance <= 1, near, far)


def rotary_angles(
    rows: int, columns: int, head_dim: int, theta: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, [rows * columns, H] float32, for half-split pairs.

    Pair 2j of a head turns with the patch's column and pair 2j + 1 with its row, both at
    theta^(-4j/H): RoPE in two dimensions (Su et al. 2021; MoonViT).
    """
    steps = torch.arange(0, head_dim, 4, dtype=torch.float64) / head_dim
    frequencies = theta**-steps
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)
    pairs = torch.stack((torch.outer(column, frequencies), torch.outer(row, frequencies)), dim=-1)
    angles = pairs.flatten(1).repeat(1, 2)
    return angles.cos().float().to(device), angles.sin().float().to(device)
