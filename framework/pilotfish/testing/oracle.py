"""Oracle: what a checkpoint should compute, from an implementation that is not ours.

Knows: which answers are asked for. Does not know: who gives them.
Axis letters: T tokens, V vocabulary, D model width, L blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch


class Oracle:
    """The answers of another implementation; an author whose model transformers lacks writes one.

    `exact` and `eager` are wanted; the others can be left as they are.
    """

    def exact(self, tokens: Sequence[int], dtype: str) -> torch.Tensor:
        """[T, V] float64: logits in float64 arithmetic, with weights rounded to `dtype` first."""
        raise NotImplementedError

    def eager(self, tokens: Sequence[int], dtype: str) -> torch.Tensor:
        """[T, V]: logits in ordinary `dtype` arithmetic; its error sets the tolerance."""
        raise NotImplementedError

    def nudged(self, tokens: Sequence[int], dtype: str) -> Iterator[torch.Tensor]:
        """`exact` again and again, each time with every weight moved by about its rounding.

        That shows which rows hang on a choice between scores that are equal but for rounding, as
        of experts. Nothing where it is not known.
        """
        del tokens, dtype
        yield from ()

    def hidden_states(self, tokens: Sequence[int], dtype: str) -> list[torch.Tensor]:
        """The stream at boundaries 0 to L, each [T, D] float64, of `exact`; the last before the
        final norm. [] where it is not known.
        """
        del tokens, dtype
        return []

    def generate(self, tokens: Sequence[int], count: int) -> list[int]:
        """The greedy answer in float32."""
        text = list(tokens)
        for _ in range(count):
            text.append(int(self.eager(text, "float32")[-1].argmax()))
        return text[len(tokens) :]
