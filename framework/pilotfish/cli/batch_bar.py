"""The bar of a batch on the terminal: requests that are done, tokens read and made.

Knows: outputs that are done, and the engine's requests. Does not know: who asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pilotfish.engine import LLM, RequestOutput


class BatchBar:
    """A bar on stderr, after a second, that leaves nothing behind; none in a pipe.

    total: how many requests there are; None where that is not known. A context manager.
    """

    def __init__(self, llm: LLM, total: int | None) -> None:
        self._llm = llm
        self._total = total
        self._bar: Any = None
        self._num_read = self._num_made = 0

    def __enter__(self) -> Self:
        from pilotfish.engine.progress import open_bar

        self._bar = open_bar(total=self._total, unit=" requests")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def count(self, output: RequestOutput) -> None:
        """One is done; its answer is written next."""
        if self._bar is None:
            return
        self._num_read += len(output.prompt_token_ids)
        self._num_made += sum(len(one.token_ids) for one in output.outputs)
        self._bar.update()
        self._bar.clear()  # the answer may go to the same terminal

    def look(self) -> None:
        """Shows how far the requests are that run."""
        if self._bar is None:
            return
        running = list(self._llm.engine.scheduler.requests)
        read = sum(min(one.num_computed, one.num_prompt_tokens) for one in running)
        made = sum(one.num_output_tokens for one in running)
        self._bar.set_postfix_str(
            f"{self._num_read + read} tokens read, {self._num_made + made} made", refresh=False
        )
        self._bar.update(0)
        if self._bar.format_dict["elapsed"] >= self._bar.delay:
            self._bar.refresh()
