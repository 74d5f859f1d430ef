"""What is run in a benchmark: prompts for any checkpoint, and how long they are.

Knows: texts and random ids. Does not know: sides, clocks or rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from pilotfish.errors import ConfigError

if TYPE_CHECKING:
    from pilotfish.engine import LLM
    from pilotfish.tokenization.tokenizer import Tokenizer

TokenIds = list[int]

MOST_DECODED, MOST_SHARED = 64, 200
"""Tokens where the context has room for them; half the context where it has not."""

TEXTS = (
    "The history of the Roman empire begins with",
    "def fibonacci(n):\n    ",
    "To bake a loaf of bread, first",
    "The three laws of thermodynamics say that",
    "Once upon a time there was a small fish who",
    "In the year 1969, two astronauts",
    "The capital of France is Paris. The capital of Italy is",
    "A good way to learn a new language is",
)


PASSAGES = (
    "The keeper climbed the narrow stairs each evening, trimmed the wick, and wrote the wind and "
    "the state of the sea into the log before the first ship came past the point.",
    "To join two tables, name the columns they share, choose which rows without a partner are "
    "kept, and check that no key stands twice on the side that should be unique.",
    "Water expands when it freezes, so ice floats; lakes therefore freeze from the top, and fish "
    "live through the winter in the water below.",
    "def area(width, height):\n    if min(width, height) < 0:\n"
    "        raise ValueError('a negative side')\n    return width * height\n",
)
"""Texts that are quoted and rewritten in the copy-heavy set."""

QUOTED = tuple(f"Quote: {text}\nQuote: {text}\nQuote: {text[:20]}" for text in PASSAGES)


@attrs.frozen(kw_only=True)
class Workload:
    """Prompts that a checkpoint can be asked.

    vocab_size: ids are drawn below it. max_seq_len: of the model. tokenizer: None for a checkpoint
    without one; then short prompts are random ids too. reserved: ids that prompts cannot have.
    """

    vocab_size: int
    max_seq_len: int
    tokenizer: Tokenizer | None
    reserved: frozenset[int] = frozenset()

    @classmethod
    def of(cls, llm: LLM) -> Workload:
        """For a loaded model."""
        return cls(
            vocab_size=llm.vocab_size,
            max_seq_len=llm.max_seq_len,
            tokenizer=llm.tokenizer,
            reserved=llm.placeholder_ids,
        )

    @property
    def num_decoded(self) -> int:
        """Tokens of an answer that are timed, after the first."""
        return min(MOST_DECODED, self.max_seq_len // 2)

    @property
    def num_shared(self) -> int:
        """Tokens of the prompt that is repeated with a cached prefix."""
        return min(MOST_SHARED, self.max_seq_len // 2)

    @property
    def num_prompt(self) -> int:
        """Most tokens of a prompt made of text: what the context has beside the answer's."""
        return self.max_seq_len - self.num_decoded - 1

    def cut_note(self, texts: Sequence[str]) -> str:
        """What a row's name says where prompts of these texts do not fit the context whole."""
        longest = max((len(self._encoded(text)) for text in texts), default=0)
        return f", prompts cut to {self.num_prompt} tokens" if longest > self.num_prompt else ""

    def _encoded(self, text: str) -> TokenIds:
        return [] if self.tokenizer is None else list(self.tokenizer.encode(text))

    def _fitting(self, prompts: Sequence[TokenIds]) -> list[TokenIds]:
        if self.num_prompt < 1:
            raise ConfigError(
                f"the context is {self.max_seq_len} tokens; wanted 3 at least, for a prompt and an "
                "answer that are timed"
            )
        return [prompt[-self.num_prompt :] for prompt in prompts]

    def short(self) -> list[TokenIds]:
        """One short prompt for each of TEXTS; its end, where the context is shorter."""
        if self.tokenizer is None:
            return self._fitting([self.random(8 + place, place) for place in range(len(TEXTS))])
        return self._fitting([self._encoded(text) for text in TEXTS])

    def copies(self) -> list[TokenIds]:
        """Prompts whose answers quote: each passage, twice, and the beginning of a third time.

        Where the context is shorter, the end of that.
        """
        if self.tokenizer is None:
            return self._fitting([self.random(12, place) * 3 for place in range(len(PASSAGES))])
        return self._fitting([self._encoded(text) for text in QUOTED])

    def random(self, num_tokens: int, seed: int) -> TokenIds:
        """Ids drawn evenly; the lowest, which are often special, are left out."""
        import torch

        lowest = min(1000, self.vocab_size // 2)
        generator = torch.Generator().manual_seed(seed % 2**31)
        drawn = torch.randint(lowest, self.vocab_size, (num_tokens,), generator=generator)
        ids: TokenIds = drawn.tolist()
        return [lowest - 1 if token in self.reserved else token for token in ids]

    def text(self, token_ids: TokenIds) -> str:
        """The ids as text, or as numbers without a tokenizer."""
        if self.tokenizer is None:
            return " ".join(map(str, token_ids))
        return self.tokenizer.decode(token_ids)
