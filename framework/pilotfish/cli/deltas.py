"""How the deltas of a streamed answer are shown: as text, or with what the drafter got right.

Knows: deltas and terminal colors. Does not know: where deltas come from.
On a terminal accepted drafts are green, rejected ones red and struck out, the model's own tokens
plain. Without colors accepted ones stand in {+ +} and rejected ones in [- -].
"""

from __future__ import annotations

import argparse
import re
import sys
import unicodedata
from typing import TYPE_CHECKING

from pilotfish.cli.parser import UsageError
from pilotfish.cli.terminal import has_color, say_dim

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pilotfish.engine import LLM
    from pilotfish.engine.outputs import Delta, RequestOutput
    from pilotfish.tokenization.tokenizer import Tokenizer

_COLORS = (("\x1b[32m", "\x1b[0m"), ("\x1b[31;9m", "\x1b[0m"))
_MARKS = (("{+", "+}"), ("[-", "-]"))
"""What stands around accepted drafts, and around rejected ones."""


class DraftColors:
    """Turns the deltas of one answer into marked text. Without its marks it is the answer.

    has_color: else in signs. context: ids of the text that is continued.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, has_color: bool, context: Sequence[int] = ()
    ) -> None:
        from pilotfish.tokenization.text_stream import text_stream

        self._tokenizer = tokenizer
        self._accepted, self._rejected = _COLORS if has_color else _MARKS
        self._stream = text_stream(tokenizer, context=context)

    def render(self, delta: Delta) -> str:
        """The step's tokens, then the drafts that were rejected."""
        texts = [self._stream.push(token) for token in delta.token_ids]
        accepted = "".join(texts[: delta.num_accepted])
        # Line by line: a mark that is open at a line's end would be part of the next one.
        shown = [re.sub(r"[^\r\n]+", lambda line: line[0].join(self._accepted), accepted)]
        shown += texts[delta.num_accepted :]
        rejected = self._tokenizer.decode(list(delta.drafted[delta.num_accepted :]))
        if rejected:
            shown.append(visible(rejected).join(self._rejected))
        if delta.finish_reason is not None:
            shown.append(self._stream.finish())
        return "".join(shown)


def visible(text: str) -> str:
    """The text with a sign for each letter that would move the cursor: ⏎ for a new line."""
    return "".join(map(_sign, text))


def _sign(letter: str) -> str:
    if letter in "\n\t\x7f":
        return {"\n": "⏎", "\t": "⇥", "\x7f": "␡"}[letter]
    if letter < " ":
        return chr(0x2400 + ord(letter))  # the picture that Unicode has of it
    if unicodedata.category(letter) in ("Cc", "Cf", "Zl", "Zp"):
        return f"<U+{ord(letter):04X}>"
    return letter


def plain_text(delta: Delta) -> str:
    """The text that a delta adds."""
    return delta.text


def draft_colors(llm: LLM, prompt: str | None = None) -> Callable[[Delta], str]:
    """A renderer for one answer. prompt: the text that it continues; None for a chat.

    Raises RequestError for a checkpoint without a tokenizer.
    """
    from pilotfish.tokenization.tokenizer import need_tokenizer

    tokenizer = need_tokenizer(llm.tokenizer, llm.model_path)
    context = [] if prompt is None else tokenizer.encode_prompt(prompt)
    return DraftColors(tokenizer, has_color=has_color(sys.stdout), context=context).render


def tell_of_other_text(args: argparse.Namespace) -> None:
    """On stderr: how drafts are marked, and where the text is not the model's own.

    JSON says it in its fields.
    """
    if args.show_draft:
        print(f"pilotfish: {_legend()} drafts; the rest is the model's own", file=sys.stderr)
    said = {
        "relaxed": "acceptance 'relaxed' is lossy: inside a thinking phase the text is not that of "
        "plain decoding",
        "synthetic": "acceptance 'synthetic' is not real: drafts count whatever they are, and the "
        "text means nothing",
    }.get(args.acceptance)
    if said is not None:
        print(f"pilotfish: {said}", file=sys.stderr)


def _legend() -> str:
    if not has_color(sys.stdout):
        accepted, rejected = _MARKS
        return f"{'accepted'.join(accepted)} and {'rejected'.join(rejected)}"
    accepted, rejected = _COLORS if has_color(sys.stderr) else (("", ""), ("", ""))
    return f"{'green: accepted'.join(accepted)}, {'red, struck out: rejected'.join(rejected)}"


def check_show_draft(args: argparse.Namespace) -> None:
    """Raises UsageError where --show-draft has nothing to show, or nowhere to show it."""
    if args.show_draft and args.speculative is None:
        raise UsageError("--show-draft shows what a drafter did; wanted --speculative METHOD too")
    if args.show_draft and getattr(args, "json", False):
        raise UsageError("--show-draft colors text and --json prints none; wanted one of the two")


def say_if_cut(llm: LLM, output: RequestOutput) -> None:
    """A remark on stderr where an answer ended before the model did: what cut it."""
    if output.finish_reason != "length":
        return
    num_tokens = len(output.prompt_token_ids) + len(output.token_ids)
    if num_tokens >= llm.max_seq_len:
        say_dim(f"[the context of {llm.max_seq_len} tokens is full]")
    elif num_tokens > (num_rows := llm.memory_plan.max_cached_tokens):
        say_dim(f"[the cache of {num_rows} tokens is full; --num-pages]")
    else:
        say_dim(f"[cut at {len(output.token_ids)} tokens; --max-tokens]")
