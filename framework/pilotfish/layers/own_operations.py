"""OwnOperations: what a plugin's code computes with torch by itself, each call tried row by row.

Knows: whose code called torch, and which calls have but one result. Does not know: models, passes,
or how rows are told from other axes (`row_axes.py`).
All that is not known to be exact is tried; what cannot be tried is told, and speaks for nothing.
Axis letters: T rows of the pass.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations, product
from types import FrameType
from typing import Any

import attrs
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from pilotfish.layers.row_axes import RowAxes, Rows

_EXACT = """
view _unsafe_view view_as reshape reshape_as _reshape_alias flatten unflatten expand expand_as
permute transpose t numpy_T mT adjoint movedim swapaxes swapdims squeeze unsqueeze select slice
narrow split split_with_sizes chunk unbind tensor_split as_strided alias detach lift_fresh
unfold diagonal broadcast_to view_as_real view_as_complex real imag resolve_conj resolve_neg
contiguous clone copy _to_copy to type_as cat concat stack hstack vstack dstack pad
constant_pad_nd repeat repeat_interleave tile roll flip index index_select gather take
take_along_dim index_copy index_put index_fill scatter masked_fill masked_select where fill zero
tril triu embedding zeros_like ones_like full_like empty_like new_zeros new_ones new_full
new_empty new_empty_strided eq ne lt le gt ge equal maximum minimum max min amax amin clamp
clamp_min clamp_max relu abs neg sign sgn floor ceil round trunc isnan isinf isfinite any all
topk sort argsort argmax argmin nonzero count_nonzero searchsorted bucketize add sub rsub mul
multiply subtract div divide true_divide reciprocal sqrt square
"""
EXACT = frozenset(_EXACT.split())
"""What moves, compares or rounds once: whatever is beside a number, it becomes the same bits."""
_LEAVES = "numpy __array__ __dlpack__ tolist item __float__ data_ptr untyped_storage storage"
LEAVES_TORCH = frozenset(_LEAVES.split())
"""How numbers get where no call is seen."""
SOME_ROWS = ((0, 1), (1, 3), (5, 16), (16, 17))
"""First row and number of rows of the tries, beside all rows at once, and all but the last."""
PIECES, PIECE_NUMBERS = (1, 3, 7), 2048
"""A function of single numbers gets so many, whole and in such pieces: threads cut a tensor
anywhere, and the end of a cut may run through other code."""
SHUFFLES = 8
"""Orders of an operand's numbers that are tried: only some numbers tell two codes apart."""
MOST_CANCELLING = 8
LIBRARY = "pilotfish"

Compute = Callable[[Sequence[Any]], list[torch.Tensor]]
"""Makes a call with other operands: all of its float results."""


class CannotTry(Exception):
    """Why a call cannot be tried row by row."""


@attrs.frozen(kw_only=True)
class OwnOperation:
    """name: torch's, such as "mm". place: "module.py:31, in choose". operands: shapes and dtype.

    problem: which rows got other bits than among many; or, where is_untried, why none was tried.
    """

    name: str
    place: str
    operands: str
    problem: str = ""
    is_untried: bool = False

    def __str__(self) -> str:
        return f"{self.name} of {self.operands} ({self.place})"


class OwnOperations:
    """Looks at every call of torch that is not exact, while one of its three ways is entered.

    First a pass is measured, then one of another number of rows is tried, then any other is
    watched, whose calls should be those that were tried.
    What the library's own code calls is left out: its kernels answer for themselves. So is what
    other threads call, which is not seen.
    found: what plugins called, in order.
    """

    def __init__(self) -> None:
        self.found: list[OwnOperation] = []
        self._entered: FrameType | None = None
        self._num_rows: frozenset[int] = frozenset()
        self._is_measured = False
        self._axes = RowAxes()
        self._seen: set[Any] = set()

    @contextmanager
    def measuring(self, num_rows: Collection[int]) -> Iterator[None]:
        """A pass of so many rows, padded or not, which tells rows from what is as large."""
        self._num_rows, self._is_measured = frozenset(num_rows), True
        try:
            with self.watching():
                yield
        finally:
            self._num_rows, self._is_measured = frozenset(), False

    @contextmanager
    def trying(self, num_rows: Collection[int]) -> Iterator[None]:
        """A pass of another number of rows, each of whose calls is tried row by row."""
        self._num_rows = frozenset(num_rows)
        try:
            with self.watching():
                yield
        finally:
            self._num_rows = frozenset()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A pass of any number of rows."""
        frame = sys._getframe(2)
        while frame.f_globals.get("__name__") in (__name__, "contextlib"):
            assert frame.f_back is not None
            frame = frame.f_back
        self._entered = frame
        try:
            with _Calls(self), _Leaving(self):
                yield
        finally:
            self._entered = None  # it holds the model

    def look(self, name: str, func: Any, given: Any, frame: FrameType, why: str = "") -> None:
        """Tries a call on copies of what it gets, once; why: it cannot be tried."""
        leaves, spec = tree_flatten(given)
        floats = list(filter(_is_float, leaves))
        is_pointwise = torch.Tag.pointwise in getattr(func, "tags", ())
        # What differs in float64 is its last bits, which are gone when float32 is made of them.
        if not floats or (is_pointwise and all(x.dtype == torch.float64 for x in floats)):
            return
        calls = (name, *_calls_of(frame, self._entered), *(x.ndim for x in floats))
        if self._is_measured:
            self._axes.measure(calls, leaves, self._num_rows)
            return
        place = f"{frame.f_globals.get('__name__')}:{frame.f_lineno}, in {frame.f_code.co_name}"
        site = (name, place, *((x.dtype, x.ndim, x.shape[-1:]) for x in floats))
        others = repr([leaf for leaf in leaves if not isinstance(leaf, torch.Tensor)])
        call = (*site, others, *((x.shape, x.stride()) for x in floats))
        if (call if self._num_rows else site) in self._seen:
            return
        self._seen |= {site, call}

        def compute(given: Sequence[Any]) -> list[torch.Tensor]:
            own_args, own_kwargs = tree_unflatten(given, spec)
            return list(filter(_is_float, tree_flatten(func(*own_args, **own_kwargs))[0]))

        rows = self._axes.of(calls, leaves, self._num_rows)
        problem = why
        if not why:
            try:
                problem = _problem(compute, leaves, rows, is_pointwise)
            except CannotTry as reason:
                why = problem = str(reason)
            except Exception as error:  # some rows of the operands may make no call
                why = problem = (
                    f"a try with some of its rows raised {type(error).__name__}: {error}"
                )
        self.found.append(
            OwnOperation(
                name=name,
                place=place,
                operands=" x ".join(str(list(x.shape)) for x in floats)
                + f" {str(floats[0].dtype).removeprefix('torch.')}",
                problem=problem,
                is_untried=bool(why),
            )
        )


def _problem(
    compute: Compute, leaves: Sequence[Any], rows: Mapping[int, Rows], is_pointwise: bool
) -> str:
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
    places = [place for place, leaf in enumerate(leaves) if _is_float(leaf)]
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


class _Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, own: OwnOperations) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._own = own

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        name = getattr(func, "overloadpacket", func).__name__.removesuffix("_")
        namespace = getattr(func, "namespace", "")
        adds = kwargs.get("alpha", 1) not in (1, -1) or any(arg is True for arg in args[2:])
        if namespace != "aten" or name not in EXACT or adds:
            frame = _caller(func)
            if frame is not None:
                self._own.look(name, func, (args, kwargs), frame)
        return func(*args, **kwargs)


class _Leaving(TorchFunctionMode):
    def __init__(self, own: OwnOperations) -> None:
        super().__init__()
        self._own = own

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name = getattr(func, "__name__", "")
        if name in LEAVES_TORCH:
            frame = _caller(func)
            if frame is not None:
                self._own.look(name, func, args, frame, "what it is used for is not seen")
        return func(*args, **(kwargs or {}))


def same_bits(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two tensors hold the same bits."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return False
    plain = (x.clone(memory_format=torch.contiguous_format).view(-1) for x in (got, wanted))
    return torch.equal(*(x.view(torch.uint8) for x in plain))


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def _caller(func: Any) -> FrameType | None:
    """The frame of a plugin that called torch; None where it was the library's own.

    A mode of a plugin that hands a call on, as it was made, is not who called.
    """
    frame: FrameType | None = sys._getframe(2)
    handed = [func]
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        room = name.partition(".")[0]
        if room == LIBRARY and name != __name__:
            return None
        if name == __name__:
            handed.append(frame.f_locals.get("func"))
        elif room != "torch" and not _hands_on(frame, handed):
            return frame
        frame = frame.f_back
    return None


def _hands_on(frame: FrameType, handed: Sequence[Any]) -> bool:
    """Whether it is a mode's, and what the mode was called with is what is looked at."""
    code = frame.f_code
    if code.co_name not in ("__torch_function__", "__torch_dispatch__") or code.co_argcount < 2:
        return False
    given = frame.f_locals.get(code.co_varnames[1])
    return any(given is one for one in handed)


def _calls_of(frame: FrameType, entered: FrameType | None) -> Iterator[Any]:
    """Where in the code of plugins a call is made, and where what makes it is called."""
    at: FrameType | None = frame
    while at is not None and at is not entered:
        if at.f_globals.get("__name__", "").partition(".")[0] not in ("torch", LIBRARY):
            yield at.f_code, at.f_lasti
        at = at.f_back


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
        if _is_float(x):
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
