"""LengthRules: what a model's cached rows have to do with the length of their request.

Knows: two optional facts of a config. Does not know: rotary positions, pages or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs

from pilotfish.protocols.optional import of_config


@attrs.frozen(kw_only=True)
class LengthRules:
    """The default says that rows depend on their own prefix alone, as most models' do.

    prefix_salt: tokens known when a request was (re)started -> salt of its shared pages; rows of
        requests with different salts are never shared. None: they all are.
    recompute_length: a request started with at most so many tokens is computed anew, once, when it
        has more. None: never.
    """

    prefix_salt: Callable[[int], bytes] | None = None
    recompute_length: int | None = None

    @classmethod
    def of(cls, config: Any, draft_config: Any = None) -> LengthRules:
        """Those of an ArchConfig, which need not have any; a draft's salt is added to its own."""
        salts = [of_config(one).prefix_salt for one in (config, draft_config)]
        return cls(
            prefix_salt=partial(_joined, salts),
            recompute_length=of_config(config).recompute_length,
        )

    def salt(self, num_started: int) -> bytes:
        """The salt of a request that was started with so many tokens."""
        return b"" if self.prefix_salt is None else self.prefix_salt(num_started)

    def restart_above(self, num_started: int) -> int | None:
        """How many tokens a request started with `num_started` may have; None: any number."""
        limit = self.recompute_length
        return limit if limit is not None and num_started <= limit else None


def _joined(salts: Sequence[Callable[[int], bytes]], num_started: int) -> bytes:
    """One salt of several, none where all are empty."""
    found = [salt(num_started) for salt in salts]
    return b"|".join(found) if any(found) else b""
