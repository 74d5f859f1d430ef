"""How the deltas of a streamed answer are shown: as text, or with what the drafter got right.

Knows: deltas and terminal colors. Does not know: where deltas come from.
Accepted drafts are green, rejected ones red and struck out, the model's own tokens plain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfish.engine import LLM
    from pilotfish.engine.outputs import Delta
    from pilotfish.engine.tokenizer import Tokenizer

_ACCEPTED, _REJECTED, _PLAIN = "\x1b[32m", "\x1b[31;9m", "\x1b[0m"


class DraftColors:
    """Turns the deltas of one answer into colored text, token by token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from pilotfish.engine.text_stream import text_stream

        self._tokenizer = tokenizer
        self._stream = text_stream(tokenizer)

    def render(self, delta: Delta) -> str:
        """The step's tokens, then the drafts that were rejected."""
        shown = []
        for place, token in enumerate(delta.token_ids):
            text = self._stream.push(token)
            if text and place < delta.num_accepted:
                text = f"{_ACCEPTED}{text}{_PLAIN}"
            shown.append(text)
        rejected = self._tokenizer.decode(list(delta.drafted[delta.num_accepted :]))
        if rejected:
            shown.append(f"{_REJECTED}{rejected}{_PLAIN}")
        if delta.finish_reason is not None:
            shown.append(self._stream.finish())
        return "".join(shown)


def plain_text(delta: Delta) -> str:
    """The text that a delta adds."""
    return delta.text


def draft_colors(llm: LLM) -> Callable[[Delta], str]:
    """A renderer for one answer. Raises RequestError for a checkpoint without a tokenizer."""
    from pilotfish.engine.tokenizer import need_tokenizer

    return DraftColors(need_tokenizer(llm.tokenizer)).render
