"""The letters that stand for bytes in a byte-level vocabulary.

Knows: the table and its inverse. Does not know: any vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

_PLAIN_BYTES = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}


def _byte_letters() -> dict[str, int]:
    """Letter -> byte. Printable Latin-1 letters stand for themselves, the others follow at 256."""
    others = iter(range(256, 512))
    return {chr(b) if b in _PLAIN_BYTES else chr(next(others)): b for b in range(256)}


BYTE_LETTERS: Mapping[str, int] = _byte_letters()
"""Letter -> the byte it stands for."""

_LETTER_OF = {byte: letter for letter, byte in BYTE_LETTERS.items()}


def letters_of(token: bytes) -> str:
    """A token's bytes, each as its letter."""
    return token.decode("latin-1").translate(_LETTER_OF)
