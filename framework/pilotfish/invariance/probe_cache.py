"""ProbeCache: what probes of torch's own operators found, kept between processes.

Knows: what an answer depends on beside the shape that was tried, and in which file answers are.
Does not know: what is tried.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container
from functools import cached_property
from pathlib import Path
from typing import Any

from pilotfish.platform.machine import cpu_arithmetic
from pilotfish.platform.user_cache import cache_folder, read_json, replace_json

_ROOMS = ("invariance", "kernels/int4", "kernels/linear", "kernels/paged_attention")
_UNTRIED = 0


class ProbeCache:
    """Answers by what was tried, in words: numbers of rows, or None where none keeps its bits.

    They are of the machine and its settings as they are when the first is asked for, and of this
    code: all that is written in the file beside them, and compared. What does not fit is not read.
    found: those that were asked for.
    """

    def __init__(self) -> None:
        self.found: dict[str, int | None] = {}
        self._probed: dict[str, int | None] = {}

    def find(
        self,
        tried: str,
        sizes: Container[int],
        probe: Callable[[], int | None],
        *,
        is_kept: bool = True,
    ) -> int | None:
        """What was found, here or by another process; else what `probe` finds.

        sizes: what it may find. is_kept: False for what other code than the library's computes.
        """
        if tried not in self.found:
            kept = self._read().get(tried, _UNTRIED) if is_kept else _UNTRIED
            is_answer = kept is None or (type(kept) is int and kept in sizes)
            self.found[tried] = kept if is_answer else probe()
            if is_kept and not is_answer:
                self._write(tried)
        return self.found[tried]

    def _read(self) -> dict[str, Any]:
        """The answers in the file; none where there is no such file, or it is another's."""
        file = None if self._path is None else read_json(self._path)
        if isinstance(file, dict) and file.get("facts") == self._facts:
            found = file.get("found")
            return found if isinstance(found, dict) else {}
        return {}

    def _write(self, tried: str) -> None:
        """With all others of its own: of two processes the last one leaves out none of them."""
        self._probed[tried] = self.found[tried]
        if self._path is not None:
            found = {**self._read(), **self._probed}
            replace_json(self._path, {"facts": self._facts, "found": found})

    @cached_property
    def _facts(self) -> dict[str, Any] | None:
        facts = cpu_arithmetic()
        return None if facts is None else {**facts, "sources": _digest_of_sources()}

    @cached_property
    def _path(self) -> Path | None:
        folder = cache_folder()
        if folder is None or self._facts is None:
            return None
        name = hashlib.sha256(json.dumps(self._facts, sort_keys=True).encode()).hexdigest()[:16]
        return folder / "probes" / f"{name}.json"


def _digest_of_sources() -> str:
    """Of the probes and of what they try."""
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(path for room in _ROOMS for path in (package / room).glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
