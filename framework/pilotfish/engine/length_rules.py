"""LengthRules: what a model's cached rows have to do with the length of their request.

Knows: two optional facts of a config. Does not know: rotary positions, pages or requests.
"""

from __future__ import annotations

from collections.abc import Callable
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
    def of(cls, config: Any) -> LengthRules:
        """Those of an ArchConfig, which need not have any."""
        return cls(
            prefix_salt=getattr(config, "prefix_salt", None),
            recompute_length=getattr(config, "recompute_length", None),
        )

    def salt(self, num_started: int) -> bytes:
        """The salt of a request that was started with so many tokens."""
        return b"" if self.prefix_salt is None else self.prefix_salt(num_started)

    def must_restart(self, num_started: int, num_tokens: int) -> bool:
        """Whether a request started with `num_started` tokens is to be computed anew."""
        limit = self.recompute_length
        return limit is not None and num_started <= limit < num_tokens
