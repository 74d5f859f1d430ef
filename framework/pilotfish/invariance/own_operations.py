"""OwnOperations: what a plugin's code computes with torch by itself, each call tried row by row.

Knows: whose code called torch. Does not know: models, passes, which calls have but one result
(`exact_calls.py`), how rows are told from other axes (`row_axes.py`) or tried (`row_tries.py`).
All that is not known to be exact is tried; what cannot be tried is told, and speaks for nothing.
Axis letters: T rows of the pass.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

import attrs
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from pilotfish.invariance.exact_calls import is_alike_everywhere, keeps_rows
from pilotfish.invariance.own_parts import OwnPart, own_part
from pilotfish.invariance.row_axes import RowAxes
from pilotfish.invariance.row_tries import CannotTry, is_float, problem_of
from pilotfish.kernels.native.library import ASKED
from pilotfish.layers.layer import Written

_LEAVES = "numpy __array__ __dlpack__ tolist item __float__ data_ptr untyped_storage storage"
LEAVES_TORCH = frozenset(_LEAVES.split())
"""How numbers get where no call is seen."""
LIBRARY = "pilotfish"


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


@attrs.frozen(kw_only=True)
class ElsewhereCall:
    """A call whose bits on another processor nobody answers for.

    part: the class that makes it, "" for none. told: in words, with its place.
    """

    part: str
    told: str


class OwnOperations:
    """Looks at every call of torch that is not exact, while one of its three ways is entered.

    First a pass is measured, then one of another number of rows is tried, then any other is
    watched, whose calls should be those that were tried.
    What the library's own code calls is left out: its kernels answer for themselves. So is what
    other threads call, which is not seen.
    found: what plugins called, in order.
    elsewhere: those calls, and of a plugin's own native code, by part, name and place, that may
    give other bits on another processor and of whose part no author says `"portable"`.
    """

    def __init__(self) -> None:
        self.found: list[OwnOperation] = []
        self.elsewhere: dict[Any, ElsewhereCall] = {}
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
    def building(self) -> Iterator[None]:
        """No pass: what is computed where parts are made; it has no rows."""
        looked_at, self.look = self.look, lambda *call: None  # type: ignore[method-assign]
        try:
            with self.watching(is_leaving=False):
                yield
        finally:
            self.look = looked_at  # type: ignore[method-assign]

    @contextmanager
    def watching(self, *, is_leaving: bool = True) -> Iterator[None]:
        """A pass of any number of rows; is_leaving: whether numbers that leave torch count."""
        frame = sys._getframe(2)
        while frame.f_globals.get("__name__") in (__name__, "contextlib"):
            assert frame.f_back is not None
            frame = frame.f_back
        self._entered = frame
        asked = ASKED.set(self._own_kernel)
        try:
            with _Calls(self), _Leaving(self) if is_leaving else nullcontext():
                yield
        finally:
            ASKED.reset(asked)
            self._entered = None  # it holds the model

    def note(self, name: str, told: str, frame: FrameType) -> None:
        """Keeps a call that may have other bits elsewhere, unless its part's author answers."""
        part: OwnPart | None = None
        at: FrameType | None = frame
        while part is None and at is not None and at is not self._entered:
            part, at = _part_of(at), at.f_back
        if part is None or not part.is_portable:
            whose, place = "" if part is None else part.name, _place(frame)
            call = ElsewhereCall(part=whose, told=f"{name}{told} ({place})")
            self.elsewhere.setdefault((whose, name, place), call)

    def _own_kernel(self, name: str) -> None:
        at: FrameType | None = sys._getframe(1)
        while at is not None and _room(at) == LIBRARY:
            at = at.f_back
        if at is not None:
            self.note(f"its own native {name!r}", "", at)

    def look(self, name: str, func: Any, given: Any, frame: FrameType, why: str = "") -> None:
        """Tries a call on copies of what it gets, once; why: it cannot be tried."""
        leaves, spec = tree_flatten(given)
        floats = list(filter(is_float, leaves))
        is_pointwise = torch.Tag.pointwise in getattr(func, "tags", ())
        # What differs in float64 is its last bits, which are gone when float32 is made of them.
        if not floats or (is_pointwise and all(x.dtype == torch.float64 for x in floats)):
            return
        calls = (name, *_calls_of(frame, self._entered), *(x.ndim for x in floats))
        if self._is_measured:
            self._axes.measure(calls, leaves, self._num_rows)
            return
        place = _place(frame)
        site = (name, place, *((x.dtype, x.ndim, x.shape[-1:]) for x in floats))
        others = repr([leaf for leaf in leaves if not isinstance(leaf, torch.Tensor)])
        call = (*site, others, *((x.shape, x.stride()) for x in floats))
        if (call if self._num_rows else site) in self._seen:
            return
        self._seen |= {site, call}

        def compute(given: Sequence[Any]) -> list[torch.Tensor]:
            own_args, own_kwargs = tree_unflatten(given, spec)
            return list(filter(is_float, tree_flatten(func(*own_args, **own_kwargs))[0]))

        rows = self._axes.of(calls, leaves, self._num_rows)
        problem = why
        if not why:
            try:
                problem = problem_of(compute, leaves, rows, is_pointwise)
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
                operands=_told(floats),
                problem=problem,
                is_untried=bool(why),
            )
        )


class _Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, own: OwnOperations) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._own = own

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        name = getattr(func, "overloadpacket", func).__name__.removesuffix("_")
        is_torchs = getattr(func, "namespace", "") == "aten"
        if not is_torchs or not keeps_rows(name, args, kwargs):
            frame = _caller(func)
            if frame is not None:
                self._own.look(name, func, (args, kwargs), frame)
        made = func(*args, **kwargs)
        if not is_torchs or not is_alike_everywhere(name, args, kwargs, made):
            frame = _caller(func)
            if frame is not None:
                floats = list(filter(is_float, tree_flatten((args, kwargs))[0]))
                self._own.note(name, f" of {_told(floats)}" if floats else "", frame)
        return made


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
                floats = list(filter(is_float, tree_flatten(args)[0]))
                if floats:
                    self._own.note(name, f" of {_told(floats)}, whose numbers leave torch", frame)
        return func(*args, **(kwargs or {}))


def _room(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "")
    return name.partition(".")[0]


def _place(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__')}:{frame.f_lineno}, in {frame.f_code.co_name}"


def _told(floats: Sequence[torch.Tensor]) -> str:
    shapes = " x ".join(str(list(x.shape)) for x in floats)
    return f"{shapes} {str(floats[0].dtype).removeprefix('torch.')}"


def _part_of(frame: FrameType) -> OwnPart | None:
    """What the method that runs in a frame is of; None for what is the library's, or no part."""
    code = frame.f_code
    if not code.co_argcount:
        return None
    own = frame.f_locals.get(code.co_varnames[0])
    return own_part(own) if isinstance(own, Written) else None


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
