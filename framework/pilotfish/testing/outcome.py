"""What a check may find: a promise that is broken, that says nothing here, or that is not known.

Knows: how it is said. Does not know: any promise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Broken(AssertionError):
    """A promise was not kept.

    got, wanted: in words. promise: its name; "" until `Promise.keep` fills it in.
    """

    def __init__(self, got: str, wanted: str, promise: str = "") -> None:
        super().__init__(got, wanted, promise)
        self.got, self.wanted, self.promise = got, wanted, promise

    def __str__(self) -> str:
        name = f"{self.promise}: " if self.promise else ""
        return f"{name}got {self.got}; wanted {self.wanted}"


class NotApplicable(Exception):
    """A promise says nothing about this subject; the message is the reason."""


class NotKnown(Exception):
    """The kit could not find out whether a promise is kept; the message says what it lacked."""


def want(holds: bool, got: str, wanted: str) -> None:
    """Raises Broken unless it holds."""
    if not holds:
        raise Broken(got, wanted)


@contextmanager
def want_raised(kind: type[Exception], got: str, wanted: str) -> Iterator[None]:
    """Raises Broken unless an exception of a kind ends what is done while it is entered."""
    try:
        yield
    except kind:
        return
    raise Broken(got, wanted)
