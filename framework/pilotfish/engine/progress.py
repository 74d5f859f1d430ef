"""Progress: a bar on the terminal while many tokens are made.

Knows: how far a list of requests is. Does not know: how they run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from pilotfish.engine.request import Request

SILENT_S = 1.0
"""Work that ends within this time shows no bar."""


class Progress:
    """Counts finished requests and generated tokens on stderr, and leaves nothing behind.

    shown: None shows the bar only when stderr is a terminal.
    """

    def __init__(self, requests: Sequence[Request], shown: bool | None = None) -> None:
        self._requests = requests
        self._shown = sys.stderr.isatty() if shown is None else shown
        self._bar: Any = None
        self._num_ended = 0
        self._num_tokens = 0

    def __enter__(self) -> Self:
        if self._shown and self._requests:
            from tqdm import tqdm

            self._bar = tqdm(
                total=sum(r.rules.max_total_tokens - r.num_prompt_tokens for r in self._requests),
                unit="tok",
                file=sys.stderr,
                delay=SILENT_S,
                leave=False,
                dynamic_ncols=True,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, ended: Sequence[Request]) -> None:
        """Tells of one pass, and the requests that ended in it."""
        if self._bar is None:
            return
        for request in ended:
            # An answer that ends early leaves less to do, not more done.
            unused = request.rules.max_total_tokens - len(request.context.tokens)
            self._bar.total -= unused
            self._num_ended += 1
        done = sum(request.num_output_tokens for request in self._requests)
        if ended:
            ended_of_all = f"{self._num_ended}/{len(self._requests)} requests"
            self._bar.set_postfix_str(ended_of_all, refresh=False)
        self._bar.update(done - self._num_tokens)
        self._num_tokens = done
