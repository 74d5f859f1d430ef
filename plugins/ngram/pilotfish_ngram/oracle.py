"""What prompt lookup should draft, by looking through the whole text each time.

Knows: the rule, and the lengths that are the default. Does not know: NgramProposer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

from pilotfish.testing.draft_oracle import DraftOracle

LENGTHS = (5, 4, 3, 2)
"""Tokens at the end that must be found again, the longest first."""


class NgramOracle(DraftOracle):
    """The longest match, of those the latest; what follows it comes again and again."""

    def __init__(self, target: Path, draft: Path | None) -> None:
        del target, draft

    def drafts(self, tokens: Sequence[int], width: int) -> Sequence[int]:
        """As `DraftOracle`."""
        text = list(tokens)
        for length in LENGTHS:
            for end in range(len(text) - 1, length - 1, -1):
                if text[end - length : end] == text[len(text) - length :]:
                    return list(islice(cycle(text[end:]), width))
        return ()
