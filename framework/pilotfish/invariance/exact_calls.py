"""Which calls of torch have but one result: beside any rows, and on any processor.

Knows: torch's names. Does not know: who calls, or what the numbers are for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

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
_ROUNDED_BY_PROCESSOR = frozenset({"sqrt"})
"""Of those, what a library computes with the instructions that there are: the last bit of some."""
_MADE_OF_NOTHING = frozenset(
    ["empty", "empty_strided", "zeros", "ones", "full", "eye", "scalar_tensor", "arange", "set"]
)
"""What makes tensors of no other, and moves or rounds once."""
_AS_A_NUMBER = "_local_scalar_dense"
"""What `item` is: the number leaves torch as it is."""


def keeps_rows(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether one call of torch's own gives a number the same bits whatever is beside it."""
    adds = kwargs.get("alpha", 1) not in (1, -1) or any(arg is True for arg in args[2:])
    return name in EXACT and not adds


def is_alike_everywhere(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], made: Any
) -> bool:
    """Whether one call of torch's own gives the same bits on every processor; made: its result.

    Products and sums of complex numbers are several roundings, of which a processor may fuse some.
    """
    leaves = tree_leaves((args, kwargs, made))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if not any(x.is_floating_point() or x.is_complex() for x in tensors):
        return True
    if name == _AS_A_NUMBER:
        return True
    if name in _MADE_OF_NOTHING:
        numbers = [leaf for leaf in leaves if isinstance(leaf, float)]
        return name != "arange" or all(map(float.is_integer, numbers))
    if name in _ROUNDED_BY_PROCESSOR or not keeps_rows(name, args, kwargs):
        return False
    return name in _MOVES or not any(x.is_complex() for x in tensors)


def _names(first: str, last: str) -> Iterable[str]:
    names = _EXACT.split()
    return names[names.index(first) : names.index(last) + 1]


_MOVES = frozenset(_names("view", "ne"))
"""What only moves numbers, or says whether they are equal: of complex ones too."""
