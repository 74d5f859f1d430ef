"""Collectives: what the ranks of a group tell one another, as functions.

Knows: a group of one is the reference, which needs no transport. Does not know: processes, layers.
None of them adds: sums are made by each rank for itself, in an order of their own (`reduction.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pilotfish.parallel.group import Group


def all_gather(group: Group, x: torch.Tensor) -> Sequence[torch.Tensor]:
    """Every rank's x, in the order of ranks. x: of one shape and dtype on all of them."""
    return (x,) if group.is_alone else group.carrier.all_gather(x.contiguous())


def all_to_all(group: Group, x: torch.Tensor) -> torch.Tensor:
    """x: [ranks, ...], a part for each rank -> [ranks, ...], every rank's part for this one."""
    return x if group.is_alone else group.carrier.all_to_all(x.contiguous())


def all_to_all_rows(
    group: Group, x: torch.Tensor, sent: Sequence[int], received: Sequence[int]
) -> torch.Tensor:
    """x: [rows, ...], the first sent[0] of them for rank 0, and so on -> received[0] rows of rank 0
    for this one, and so on.
    """
    if group.is_alone:
        return x
    return group.carrier.all_to_all_rows(x.contiguous(), sent, received)


def gather(group: Group, x: torch.Tensor, root: int = 0) -> Sequence[torch.Tensor] | None:
    """As `all_gather`, on the rank `root` alone; None on the others."""
    return (x,) if group.is_alone else group.carrier.gather(x.contiguous(), root)


def all_gather_rows(group: Group, x: torch.Tensor, count: int) -> torch.Tensor:
    """Rows that the ranks share (`Group.share`) one after the other.

    x: [R of this rank, D] -> [count, D].
    """
    if group.is_alone:
        return x
    short = len(group.share_of(0, count)) - x.shape[0]
    parts = all_gather(group, torch.nn.functional.pad(x, (0, 0, 0, short)))
    own = (len(group.share_of(rank, count)) for rank in range(group.size))
    return torch.cat([part[:rows] for part, rows in zip(parts, own, strict=True)])


def all_gather_columns(group: Group, x: torch.Tensor, width: int) -> torch.Tensor:
    """Columns that the ranks share (`Group.share`) side by side.

    x: [T, W of this rank] -> [T, width].
    """
    if group.is_alone:
        return x
    return _side_by_side(group, all_gather(group, _padded(group, x, width)), width)


def gather_columns(group: Group, x: torch.Tensor, width: int, root: int = 0) -> torch.Tensor | None:
    """As `all_gather_columns`, on the rank `root` alone; None on the others."""
    if group.is_alone:
        return x
    found = gather(group, _padded(group, x, width), root)
    return None if found is None else _side_by_side(group, found, width)


def _padded(group: Group, x: torch.Tensor, width: int) -> torch.Tensor:
    """With as many columns as the widest rank has."""
    short = len(group.share_of(0, width)) - x.shape[1]
    return torch.nn.functional.pad(x, (0, short)) if short else x


def _side_by_side(group: Group, parts: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    own = (len(group.share_of(rank, width)) for rank in range(group.size))
    return torch.cat([part[:, :count] for part, count in zip(parts, own, strict=True)], dim=1)
