"""Lines of a file or of standard input, one after the other; none is held back, none is kept.

Knows: bytes and line ends. Does not know: what stands in a line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from io import BytesIO, FileIO, UnsupportedOperation
from pathlib import Path
from typing import Any

import attrs

from pilotfish.cli.standard_streams import check_input
from pilotfish.errors import RequestError

_CHUNK_BYTES = 1 << 16


@attrs.frozen
class Lines:
    """The lines of `--input-file` that are not blank. path: "-" is standard input."""

    path: str

    @property
    def can_be_read_again(self) -> bool:
        """Whether it is a file on disk, and no pipe."""
        return self.path != "-" and Path(self.path).is_file()

    def read(self) -> Iterator[tuple[int, bytes]]:
        """Yields the number of each line, from 1, and its bytes.

        Raises RequestError where it cannot be read. A thread that waits in it for the next line
        holds no lock of Python's streams, so that a program may end meanwhile.
        """
        for number, line in enumerate(_split(self._chunks()), 1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if text.strip():
                yield number, text

    def _chunks(self) -> Iterator[bytes]:
        try:
            with self._open() as raw:
                while chunk := raw.read(_CHUNK_BYTES):
                    yield chunk
        except OSError as error:
            raise RequestError(
                f"cannot read --input-file {self.path}: {error.strerror}; wanted a JSONL file"
            ) from error

    def _open(self) -> Any:
        if self.path != "-":
            return FileIO(self.path)
        check_input()
        try:
            return FileIO(sys.stdin.fileno(), closefd=False)
        except UnsupportedOperation:  # a stand-in for it, in a program
            return BytesIO(sys.stdin.read().encode())


def _split(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines end with \\n alone: a JSON text may have other line separators in it."""
    begun: list[bytes] = []
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            yield b"".join([*begun, part])
            begun.clear()
        if rest:
            begun.append(rest)
    if begun:
        yield b"".join(begun)
