"""row_tries: one call of torch, made with some of its rows and with all: are the bits the same?

Knows: numbers that tell two orders of addition apart. Does not know: whose call it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import torch

from pilotfish.invariance.row_axes import Rows

SOME_ROWS = ((0, 1), (1, 3), (5, 16), (16, 17))
"""First row and number of rows of the tries, beside all rows at once, and all but the last."""
PIECES, PIECE_NUMBERS = (1, 3, 7), 2048
"""A function of single numbers gets so many, whole and in such pieces: threads cut a tensor
anywhere, and the end of a cut may run through other code."""
SHUFFLES = 8
"""Orders of an operand's numbers that are tried: only some numbers tell two codes apart."""
MOST_CANCELLING = 8

Compute = Callable[[Sequence[Any]], list[torch.Tensor]]
"""Makes a call with other operands: all of its float results."""


class CannotTry(Exception):
    """Why a call cannot be tried row by row."""


def problem_of(
    compute: Compute, leaves: Sequence[Any], rows: Mapping[int, Rows], is_pointwise: bool
) -> str:
    """What a call gives some rows otherwise than many, in words; "" for nothing.

    leaves: its operands. rows: where they hold rows, by place. Raises CannotTry.
    """
    if not rows:
        raise CannotTry("no axis of its operands is the rows of a pass that is tried")
    tries = [leaves]
    if not is_pointwise:
        tries += _cancelling(leaves, rows)
    if len(tries) == 1:
        tries += [_shuffled(leaves, seed) for seed in range(SHUFFLES)]
    found: set[int] = set()
    for given in tries:
        found |= _differs(compute, given, rows, is_given=given is leaves)
    if found:
        counts = ", ".join(map(str, sorted(found)))
        return f"gives the rows of a call of {counts} other bits than those of many"
    if is_pointwise and any(_differs_in_pieces(compute, given) for given in tries):
        return "gives a number other bits at the end of a tensor than inside"
    return ""


def _differs(
    compute: Compute, given: Sequence[Any], rows: Mapping[int, Rows], *, is_given: bool
) -> set[int]:
    def some(first: int, count: int) -> list[torch.Tensor]:
        cut = {place: each.cut(given[place], first, count) for place, each in rows.items()}
        return compute([_copy(cut.get(place, leaf)) for place, leaf in enumerate(given)])

    whole = compute([_copy(leaf) for leaf in given])
    if not all(x.isfinite().all() for x in whole):
        if is_given:
            raise CannotTry("its results are not finite")
        return set()
    total = min(each.count for each in rows.values())
    fewer = some(0, total - 1)
    of_results = list(map(_rows_of_result, whole, fewer, [total] * len(whole)))
    if not whole or len(fewer) != len(whole) or None in of_results:
        raise CannotTry("no axis of its results is the rows of the pass")
    found = set()
    for first, count in (*SOME_ROWS, (0, total - 1)):
        if first < total:
            got = some(first, count)
            pairs = zip(of_results, whole, got, strict=True)
            if not all(its and same_bits(y, its.cut(x, first, count)) for its, x, y in pairs):
                found.add(count)
    return found


def _rows_of_result(whole: torch.Tensor, fewer: torch.Tensor, total: int) -> Rows | None:
    """The one axis that is shorter where there is a row less."""
    if whole.ndim != fewer.ndim:
        return None
    shorter = [axis for axis in range(whole.ndim) if whole.shape[axis] != fewer.shape[axis]]
    if len(shorter) != 1 or whole.shape[shorter[0]] % total:
        return None
    return Rows(shorter[0], whole.shape[shorter[0]] // total, total)


def _cancelling(leaves: Sequence[Any], rows: Mapping[int, Rows]) -> list[list[Any]]:
    """Operands with numbers whose sums of products are zero but for rounding.

    There a changed order shows in most outputs, and in 16 bits almost nowhere else. Of an axis
    that two operands share, half of the one is the negative of the other half; the other
    operand's halves are equal.
    """
    places = [place for place, leaf in enumerate(leaves) if is_float(leaf)]
    axes = {
        place: [n for n in range(leaves[place].ndim) if place not in rows or n != rows[place].axis]
        for place in places
    }
    tries = []
    for left, right in combinations(places, 2):
        for own, other in product(axes[left], axes[right]):
            width = leaves[left].shape[own]
            if width > 1 and width == leaves[right].shape[other]:
                made = list(leaves)
                made[left] = _halves(leaves[left], own, -1)
                made[right] = _halves(leaves[right], other, 1)
                tries.append(made)
    return tries[:MOST_CANCELLING]


def same_bits(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two tensors hold the same bits."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return False
    plain = (x.clone(memory_format=torch.contiguous_format).view(-1) for x in (got, wanted))
    return torch.equal(*(x.view(torch.uint8) for x in plain))


def is_float(leaf: Any) -> bool:
    """Whether it is a tensor of floats, or of complex numbers."""
    return isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def _copy(leaf: Any, numbers: torch.Tensor | None = None) -> Any:
    """A tensor of its own, laid out as `leaf` is if no two of that one's numbers share a place."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    numbers, reach = leaf if numbers is None else numbers, 0
    for stride, size in sorted(zip(leaf.stride(), leaf.shape, strict=True)):
        if size > 1 and stride <= reach:
            return numbers.to(leaf.dtype).clone(memory_format=torch.contiguous_format)
        reach += stride * (size - 1)
    made = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device)
    return made.copy_(numbers)


def _halves(operand: torch.Tensor, axis: int, sign: int) -> torch.Tensor:
    generator, shape = torch.Generator().manual_seed(0), list(operand.shape)
    width = shape[axis]
    shape[axis] = width // 2
    half = torch.randn(shape, generator=generator)
    shape[axis] = width % 2
    made: torch.Tensor = _copy(operand, torch.cat((half, sign * half, torch.zeros(shape)), axis))
    return made


def _shuffled(leaves: Sequence[Any], seed: int) -> list[Any]:
    """Each float tensor's own numbers in another order, laid out alike."""
    generator, made = torch.Generator().manual_seed(seed), list(leaves)
    for place, x in enumerate(leaves):
        if is_float(x):
            order = torch.randperm(x.numel(), generator=generator).to(x.device)
            made[place] = _copy(x, x.flatten().index_select(0, order).view(x.shape))
    return made


def _differs_in_pieces(compute: Compute, given: Sequence[Any]) -> bool:
    tensors = [leaf for leaf in given if isinstance(leaf, torch.Tensor)]
    shape = torch.broadcast_tensors(*tensors)[0].shape  # type: ignore[no-untyped-call]
    flat = [
        leaf.expand(shape).flatten()[:PIECE_NUMBERS] if isinstance(leaf, torch.Tensor) else leaf
        for leaf in given
    ]

    def some(first: int, count: int) -> torch.Tensor:
        return compute(
            [x[first : first + count].clone() if isinstance(x, torch.Tensor) else x for x in flat]
        )[0]

    total = min(shape.numel(), PIECE_NUMBERS)
    whole = some(0, total)
    return any(
        not same_bits(torch.cat([some(at, size) for at in range(0, total, size)]), whole)
        for size in PIECES
    )
