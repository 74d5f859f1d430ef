"""What the terminal can show: colors, and lines that are written over.

Knows: streams and the environment (NO_COLOR, TERM). Does not know: what is shown.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO


def is_dumb() -> bool:
    """Whether TERM says that the terminal can only print."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def has_color(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colors, and nobody asked for none."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and not is_dumb()


def say_dim(text: str) -> None:
    """A remark on stderr; dim where there are colors."""
    print(f"\x1b[2m{text}\x1b[0m" if has_color(sys.stderr) else text, file=sys.stderr, flush=True)
