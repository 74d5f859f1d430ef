"""Sums over slices in an order that does not depend on how many ranks hold them.

Knows: a binary tree over S slices, and which of its nodes a rank can join by itself. Does not know:
what the slices are of.

The columns of a row-parallel product are cut into S slices of one size; a slice's product is one
term, in float32. The tree over terms first to last joins the tree of its first half (the larger
one, where halves are unequal) and that of the rest; a join is one float32 addition. A rank that
holds some of the slices joins what of the tree lies within them, sends those nodes, and everybody
joins the rest. So the sum has the same bits on 1 rank and on any number that divides S.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch

from pilotfish.parallel.collectives import all_gather, all_to_all
from pilotfish.parallel.group import Group

PARTED_BYTES = 1 << 16
"""Of a term, from which on ranks join parts of it."""

Node = tuple[int, int]
"""A part of the tree: its first slice, and the one after its last."""


def halves(node: Node) -> tuple[Node, Node]:
    """The two nodes that a node of two slices or more joins."""
    first, end = node
    middle = first + -(-(end - first) // 2)
    return (first, middle), (middle, end)


@cache
def nodes_within(node: Node, held: Node) -> tuple[Node, ...]:
    """The largest nodes of the tree at `node` whose slices are all `held`, in order."""
    if held[0] <= node[0] and node[1] <= held[1]:
        return (node,)
    if node[1] <= held[0] or held[1] <= node[0] or node[1] - node[0] == 1:
        return ()
    return tuple(found for half in halves(node) for found in nodes_within(half, held))


@cache
def most_nodes(size: int, num_slices: int) -> int:
    """Terms that each of `size` ranks sends: as many as the one whose slices join worst."""
    each = num_slices // size
    held = ((first, first + each) for first in range(0, num_slices, each))
    return max(len(nodes_within((0, num_slices), one)) for one in held)


def are_nodes(size: int, num_slices: int) -> bool:
    """Whether what each of `size` ranks holds is one node, so that it sends one term."""
    return most_nodes(size, num_slices) == 1


def join(node: Node, terms: Mapping[Node, torch.Tensor]) -> torch.Tensor:
    """The sum at a node. terms: float32 tensors of nodes that cover it; they may be overwritten."""
    found = terms.get(node)
    if found is not None:
        return found
    left, right = halves(node)
    return join(left, terms).add_(join(right, terms))


def all_reduce(group: Group, terms: Sequence[torch.Tensor], num_slices: int) -> torch.Tensor:
    """The sum over all slices, on every rank.

    terms: float32 tensors of one shape, of this rank's slices in order, or their sum where they are
        one node of the tree; they may be overwritten.
    num_slices: S, of all ranks together; the group's size divides it.
    """
    each = num_slices // group.size
    held = [(rank * each, rank * each + each) for rank in range(group.size)]
    root = (0, num_slices)
    first, end = held[group.rank]
    if len(terms) == 1:
        own = {(first, end): terms[0]}
    else:
        assert len(terms) == each, (len(terms), num_slices, group.size)
        own = {(first + i, first + i + 1): term for i, term in enumerate(terms)}
    if group.size == 1:
        return join(root, own)
    nodes = [nodes_within(root, one) for one in held]
    room = most_nodes(group.size, num_slices)
    joined = [join(node, own) for node in nodes[group.rank]]
    joined += joined[:1] * (room - len(joined))
    if not goes_in_parts(group.size, terms[0].numel()):
        return _joined(root, nodes, all_gather(group, torch.stack(joined)))
    shape, count = terms[0].shape, terms[0].numel()
    part = part_of(group.size, count)
    sent = terms[0].new_zeros((room, group.size * part))
    for place, term in enumerate(joined):
        sent[place, :count] = term.flatten()
    sent = sent.view(room, group.size, part).transpose(0, 1)
    own_part = _joined(root, nodes, all_to_all(group, sent).unbind(0))
    return torch.cat(list(all_gather(group, own_part)))[:count].view(shape)


def goes_in_parts(size: int, count: int) -> bool:
    """Whether a term of so many numbers is joined in parts, one on each rank, which are then put
    together: fewer bytes for more than two ranks, in two calls. The bits are the same.
    """
    return size > 2 and count * torch.float32.itemsize >= PARTED_BYTES


def part_of(size: int, count: int) -> int:
    """Numbers of a part: the last one may be filled up."""
    return -(-count // size)


def _joined(
    root: Node, nodes: Sequence[Sequence[Node]], terms: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The sum at the root. nodes: of each rank. terms: of each, [nodes or more, ...]."""
    known: dict[Node, torch.Tensor] = {}
    for found, of_rank in zip(terms, nodes, strict=True):
        known |= zip(of_rank, found.unbind(0), strict=False)
    return join(root, known)
