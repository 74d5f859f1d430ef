"""OwnOperations: what a plugin's code computes with torch by itself, each call tried row by row.

Knows: whose code called torch, and which calls choose their order of additions, or their code for
an element, by how much they get. Does not know: models or passes.
Axis letters: T rows of the pass.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from itertools import chain
from types import FrameType
from typing import Any

import attrs
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

_NAMES = {
    "products": "linear matmul mm addmm bmm baddbmm mv addmv einsum inner _addmm_activation",
    "elements": "silu gelu sigmoid log_sigmoid softplus mish elu selu hardswish hardsigmoid tanh "
    "exp exp2 expm1 log log2 log10 log1p erf erfc sin cos pow rsqrt lerp addcmul addcdiv xlogy",
    "rows": "softmax _softmax log_softmax _log_softmax layer_norm native_layer_norm rms_norm "
    "group_norm sum mean var std var_mean norm linalg_vector_norm prod cumsum logsumexp",
    "whole": "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu conv1d "
    "conv2d convolution",
}
PRODUCTS = frozenset(_NAMES["products"].split())
"""Sums over a width that a library adds in the order it likes for the sizes it gets."""
ELEMENTS = frozenset(_NAMES["elements"].split())
"""Functions of single numbers. Those of float64 are not looked at: what differs are its last bits,
which are gone when float32 is made of them."""
WHOLE = frozenset(_NAMES["whole"].split())
"""What rows meet in: only whole passes can tell."""
INEXACT = frozenset(" ".join(_NAMES.values()).split())
"""What is not rounded once from exact arithmetic: its bits are a matter of the processor too."""

SOME_ROWS = ((0, 1), (1, 3), (5, 16), (16, 17))
"""First row and number of rows of the tries, beside all rows at once."""
SHUFFLES = 8
"""Orders of an operand's numbers that are tried: an array's end is a few numbers of other code, and
only some numbers tell the two codes apart."""
LIBRARY = "pilotfish"


@attrs.frozen(kw_only=True)
class OwnOperation:
    """name: torch's, such as "mm". place: "module.py:31, in choose". operands: shapes and dtype.

    differs_at: numbers of rows with which the first of them got other bits than among all rows.
    """

    name: str
    place: str
    operands: str
    differs_at: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} of {self.operands} ({self.place})"


class OwnOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context manager under which every inexact call of torch is looked at, once a call site.

    num_rows: of the pass, padded or not; a tensor's axis of that length is its rows.
    What the library's own code calls is left out: its kernels answer for themselves.
    found: what plugins called, in order.
    """

    def __init__(self, num_rows: Collection[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[OwnOperation] = []
        self._num_rows = frozenset(num_rows)
        self._seen: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Tries the call on a copy of what it gets, then makes it."""
        del types
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__.removesuffix("_")
        if name in INEXACT:
            frame = _caller()
            if frame is not None:
                self._look(name, func, args, kwargs, frame)
        return func(*args, **kwargs)

    def _look(self, name: str, func: Any, args: Any, kwargs: Any, frame: FrameType) -> None:
        leaves, spec = tree_flatten((args, kwargs))
        floats = [x for x in leaves if isinstance(x, torch.Tensor) and x.is_floating_point()]
        if not floats or (name in ELEMENTS and all(x.dtype == torch.float64 for x in floats)):
            return
        place = f"{frame.f_globals['__name__']}:{frame.f_lineno}, in {frame.f_code.co_name}"
        key = (name, place, *(tuple(x.shape) for x in floats))
        if key in self._seen:
            return
        self._seen.add(key)
        if name in PRODUCTS and len(floats) >= 2:
            tries = [_cancelling(leaves, name)]
        else:
            tries = [leaves, *(_shuffled(leaves, seed) for seed in range(SHUFFLES))]

        def differs(given: Sequence[Any]) -> tuple[int, ...]:
            def compute(rows: slice | None) -> torch.Tensor:
                some = [self._some(leaf, rows) for leaf in given]
                own_args, own_kwargs = tree_unflatten(some, spec)
                made = func(*own_args, **own_kwargs)
                first: torch.Tensor = made[0] if isinstance(made, tuple | list) else made
                return first

            return self._differs(compute)

        found = () if name in WHOLE else chain.from_iterable(map(differs, tries))
        self.found.append(
            OwnOperation(
                name=name,
                place=place,
                operands=" x ".join(str(list(x.shape)) for x in floats)
                + f" {str(floats[0].dtype).removeprefix('torch.')}",
                differs_at=tuple(sorted(set(found))),
            )
        )

    def _differs(self, compute: Callable[[slice | None], torch.Tensor]) -> tuple[int, ...]:
        whole = compute(None)
        axis = self._axis(whole)
        if axis is None:
            return ()
        total, found = whole.shape[axis], []
        for first, count in (*SOME_ROWS, (0, total - 1)):
            rows = slice(first, min(total, first + count))
            wanted = whole[(slice(None),) * axis + (rows,)]
            got = compute(rows)
            if got.shape != wanted.shape or not _same(got, wanted):
                found.append(count)
        return tuple(found)

    def _axis(self, x: torch.Tensor) -> int | None:
        return next((axis for axis, size in enumerate(x.shape) if size in self._num_rows), None)

    def _some(self, leaf: Any, rows: slice | None) -> Any:
        """A copy of a tensor, laid out as it is, with some of its rows if it has rows."""
        if not isinstance(leaf, torch.Tensor):
            return leaf
        axis = self._axis(leaf)
        if rows is not None and axis is not None:
            leaf = leaf[(slice(None),) * axis + (rows,)]
        copy = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device)
        return copy.copy_(leaf)


def _caller() -> FrameType | None:
    """The frame of a plugin that called torch; None where it was the library's own."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        room = frame.f_globals.get("__name__", "").partition(".")[0]
        if room == LIBRARY:
            return None
        if room != "torch":
            return frame
        frame = frame.f_back
    return None


def _cancelling(leaves: Sequence[Any], name: str) -> list[Any]:
    """The operands of a product, with numbers whose sums are zero but for rounding.

    There a changed order shows in most outputs, and in 16 bits almost nowhere else. Half of one
    operand's K columns are the negative of the other half; the other operand's halves are equal.
    """
    places = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor)]
    if name in ("addmm", "baddbmm", "addmv", "_addmm_activation"):
        places = places[1:]
    left, right = places[:2]
    made = list(leaves)
    width, generator = leaves[left].shape[-1], torch.Generator().manual_seed(0)
    axes = [axis for axis, size in enumerate(leaves[right].shape) if size == width]
    if not axes:
        return made
    axis = axes[-1] if name in ("linear", "inner") else axes[0]
    for place, along, sign in ((left, leaves[left].ndim - 1, -1), (right, axis, 1)):
        operand = leaves[place]
        shape = list(operand.shape)
        shape[along] = width // 2
        half = torch.randn(shape, generator=generator)
        shape[along] = width % 2
        whole = torch.cat((half, sign * half, torch.zeros(shape)), dim=along)
        made[place] = torch.empty_strided(
            operand.shape, operand.stride(), dtype=operand.dtype, device=operand.device
        ).copy_(whole)
    return made


def _shuffled(leaves: Sequence[Any], seed: int) -> list[Any]:
    """Each float tensor's own numbers in another order, laid out alike."""
    generator, made = torch.Generator().manual_seed(seed), list(leaves)
    for place, x in enumerate(leaves):
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            order = torch.randperm(x.numel(), generator=generator).to(x.device)
            numbers = x.flatten().index_select(0, order).view(x.shape)
            made[place] = torch.empty_strided(
                x.shape, x.stride(), dtype=x.dtype, device=x.device
            ).copy_(numbers)
    return made


def _same(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two tensors hold the same bits, NaN included."""
    return torch.equal(got.isnan(), wanted.isnan()) and torch.equal(
        got.nan_to_num(), wanted.nan_to_num()
    )
