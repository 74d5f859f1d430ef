"""Faults: an exception in the middle of a pass, at a chosen operation of torch.

Knows: operations by their number. Does not know: what they compute.
"""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class PlantedError(RuntimeError):
    """Raised on purpose."""


class RaiseAt(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context manager under which operation number `at` raises PlantedError, counting from 0.

    count: operations seen so far; with `at` None none raises and all are counted.
    """

    def __init__(self, at: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.at = at
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Counts, and raises when it is time."""
        del types
        if self.count == self.at:
            raise PlantedError(f"planted at operation {self.at}")
        self.count += 1
        return func(*args, **(kwargs or {}))
