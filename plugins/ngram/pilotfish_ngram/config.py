"""NgramConfig: how far back and how long matches are."""

from __future__ import annotations

import attrs

from pilotfish.speculation import StatelessConfig


@attrs.frozen(kw_only=True)
class NgramConfig(StatelessConfig):
    """shortest, longest: tokens at the end of the text that must be found again."""

    shortest: int = 2
    longest: int = 5
