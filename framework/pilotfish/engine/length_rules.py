"""LengthRules: what a model's cached rows have to do with the length of their request.

Knows: two optional facts of a config. Does not know: rotary positions, pages or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs


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
        salts = [getattr(one, "prefix_salt", None) for one in (config, draft_config)]
        known = [salt for salt in salts if salt is not None]
        return cls(
            prefix_salt=partial(_joined, known) if len(known) > 1 else next(iter(known), None),
            recompute_length=getattr(config, "recompute_length", None),
        )

    def salt(self, num_started: int) -> bytes:
        """The salt of a request that was started with so many tokens."""
        return b"" if self.prefix_salt is None else self.prefix_salt(num_started)

    def must_restart(self, num_started: int, num_tokens: int) -> bool:
        """Whether a request started with `num_started` tokens is to be computed anew."""
        limit = self.recompute_length
        return limit is not None and num_started <= limit < num_tokens


def _joined(salts: Sequence[Callable[[int], bytes]], num_started: int) -> bytes:
    """One salt of several, none where all are empty."""
    found = [salt(num_started) for salt in salts]
    return b"|".join(found) if any(found) else b""
