"""Progress: a bar on the terminal while many tokens are made, and how any bar is opened.

Knows: how far a list of requests is. Does not know: how they run.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from types import TracebackType
from typing import Any, Self

from pilotfish.engine.request import Request

SILENT_S = 1.0
"""Work that ends within this time shows no bar."""


def open_bar(shown: bool | None = None, **options: Any) -> Any:
    """A tqdm bar on stderr, due after a second, that leaves nothing behind; None for none.

    shown: None shows it only on a terminal, and in a notebook, as a widget where it has those.
    options: of tqdm.
    """
    is_notebook = _in_notebook()
    if not (sys.stderr.isatty() or is_notebook if shown is None else shown):
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")  # a bar of text then
        tqdm: Any = import_module("tqdm.auto" if is_notebook else "tqdm").tqdm
    return tqdm(file=sys.stderr, delay=SILENT_S, leave=False, dynamic_ncols=True, **options)


class Progress:
    """Counts finished requests and generated tokens on stderr, and leaves nothing behind.

    While no answer has begun it says how much of the prompts is read. shown: as of `open_bar`.
    """

    def __init__(self, requests: Sequence[Request], shown: bool | None = None) -> None:
        self._requests = requests
        self._shown = shown
        self._bar: Any = None
        self._running = list(requests)
        self._num_ended_tokens = 0

    def __enter__(self) -> Self:
        if self._requests:
            total = sum(r.rules.max_total_tokens - r.num_prompt_tokens for r in self._requests)
            self._bar = open_bar(self._shown, total=total, unit="tok")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def _show_reading(self) -> None:
        """Before the first token of an answer: the rows of all prompts, and those computed."""
        reads = [r for r in self._running if not r.num_output_tokens]
        is_reading = len(reads) == len(self._requests) and bool(reads)
        if is_reading:
            total = sum(request.num_prompt_tokens for request in reads)
            read = sum(request.num_computed for request in reads)
            self._bar.set_description_str(f"reading prompts, {read}/{total} tokens")
        elif self._bar.desc:
            self._bar.set_description_str("", refresh=False)

    def update(self) -> None:
        """Looks at how far the requests are."""
        if self._bar is None:
            return
        running = [request for request in self._running if not request.is_finished]
        for request in self._running:
            if request.is_finished:  # early, which leaves less to do, not more done
                self._bar.total -= request.rules.max_total_tokens - len(request.tokens)
                self._num_ended_tokens += request.num_output_tokens
        if len(running) < len(self._running):
            num_ended = len(self._requests) - len(running)
            self._bar.set_postfix_str(f"{num_ended}/{len(self._requests)} requests", refresh=False)
        self._running = running
        self._show_reading()
        done = self._num_ended_tokens + sum(request.num_output_tokens for request in running)
        self._bar.update(done - self._bar.n)


def _in_notebook() -> bool:
    """Whether an IPython kernel runs this, as in Jupyter: its stderr is no terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
