"""How long torch's OpenMP threads spin between two parallel pieces of work before they sleep.

Knows: GNU OpenMP's environment variable. Does not know: torch, which reads it at its import.

Spinning long makes a pass several times as slow beside a busy neighbour; sleeping at once makes
every small product wait until its threads are awake. docs/tuning.md has the figures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

SPIN_COUNT = "5000"
_VARIABLE = "GOMP_SPINCOUNT"
_set_here: set[str] = set()


def spin_briefly() -> None:
    """Sets it for this process and those that it starts, unless the user did. Before torch."""
    if _VARIABLE not in os.environ:
        os.environ[_VARIABLE] = SPIN_COUNT
        _set_here.add(_VARIABLE)


@contextmanager
def as_the_user_set_it() -> Iterator[None]:
    """A process started meanwhile waits as it would without us."""
    ours = _VARIABLE in _set_here and os.environ.get(_VARIABLE) == SPIN_COUNT
    if ours:
        del os.environ[_VARIABLE]
    try:
        yield
    finally:
        if ours:
            os.environ[_VARIABLE] = SPIN_COUNT
