"""How the deltas of a streamed answer are shown: as text, or with what the drafter got right.

Knows: deltas and terminal colors. Does not know: where deltas come from.
On a terminal accepted drafts are green, rejected ones red and struck out, the model's own tokens
plain. Elsewhere, and with NO_COLOR set, rejected ones stand in [- -] and nothing else is marked.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from pilotfish.cli.parser import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pilotfish.engine import LLM
    from pilotfish.engine.outputs import Delta
    from pilotfish.engine.tokenizer import Tokenizer

_COLORS = (("\x1b[32m", "\x1b[0m"), ("\x1b[31;9m", "\x1b[0m"))
_MARKS = (("", ""), ("[-", "-]"))
"""What stands around accepted drafts, and around rejected ones."""


class DraftColors:
    """Turns the deltas of one answer into marked text, token by token.

    has_color: else in signs. context: ids of the text that is continued.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, has_color: bool, context: Sequence[int] = ()
    ) -> None:
        from pilotfish.engine.text_stream import text_stream

        self._tokenizer = tokenizer
        self._accepted, self._rejected = _COLORS if has_color else _MARKS
        self._stream = text_stream(tokenizer, context=context)

    def render(self, delta: Delta) -> str:
        """The step's tokens, then the drafts that were rejected."""
        shown = []
        for place, token in enumerate(delta.token_ids):
            text = self._stream.push(token)
            if text and place < delta.num_accepted:
                text = text.join(self._accepted)
            shown.append(text)
        rejected = self._tokenizer.decode(list(delta.drafted[delta.num_accepted :]))
        if rejected:
            shown.append(rejected.join(self._rejected))
        if delta.finish_reason is not None:
            shown.append(self._stream.finish())
        return "".join(shown)


def plain_text(delta: Delta) -> str:
    """The text that a delta adds."""
    return delta.text


def draft_colors(llm: LLM, prompt: str | None = None) -> Callable[[Delta], str]:
    """A renderer for one answer. prompt: the text that it continues; None for a chat.

    Raises RequestError for a checkpoint without a tokenizer.
    """
    from pilotfish.engine.tokenizer import need_tokenizer

    has_color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    tokenizer = need_tokenizer(llm.tokenizer, llm.model_path)
    context = [] if prompt is None else tokenizer.encode_prompt(prompt)
    return DraftColors(tokenizer, has_color=has_color, context=context).render


def tell_of_other_text(args: argparse.Namespace) -> None:
    """One line on stderr where the text is not the model's own; JSON says it in its fields."""
    said = {
        "relaxed": "acceptance 'relaxed' is lossy: inside a thinking phase the text is not that of "
        "plain decoding",
        "synthetic": "acceptance 'synthetic' is not real: drafts count whatever they are, and the "
        "text means nothing",
    }.get(args.acceptance)
    if said is not None:
        print(f"pilotfish: {said}", file=sys.stderr)


def check_show_draft(args: argparse.Namespace) -> None:
    """Raises UsageError where --show-draft has nothing to show, or nowhere to show it."""
    if args.show_draft and args.speculative is None:
        raise UsageError("--show-draft shows what a drafter did; wanted --speculative METHOD too")
    if args.show_draft and getattr(args, "json", False):
        raise UsageError("--show-draft colors text and --json prints none; wanted one of the two")
