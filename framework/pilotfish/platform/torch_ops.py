"""Operators of torch without the Python object around them.

Knows: that a decode step calls some of them a hundred times. Does not know: which.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def bare(overload: Any) -> Callable[..., Any]:
    """The function inside of `torch.ops.<namespace>.<operator>.<overload>`, with its arguments.

    The object costs up to 2 us a call where the caches are cold, finding it by name as much again;
    so callers keep what this returns. The overload itself where it holds no such function.
    """
    function: Callable[..., Any] = getattr(overload, "_op", overload)
    return function
