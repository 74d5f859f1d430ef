"""NgramProposer: proposes what followed the last tokens when they came before.

Source: prompt lookup decoding (Saxena 2023). Knows: token ids. Does not know: any model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pilotfish.speculation import DraftBatch, DraftRequest, Proposal, ProposerSetup
from pilotfish.weights import WeightSource
from pilotfish_ngram.config import NgramConfig

Ngram = tuple[int, ...]


class NgramProposer:
    """Looks the last tokens up in prompt and answer; the longest and latest match is continued.

    Each request keeps an index from n-gram to the place after it, so that a step costs the same
    however long the text is.
    """

    config_class: ClassVar[type[NgramConfig]] = NgramConfig

    def __init__(self, setup: ProposerSetup) -> None:
        self._config: NgramConfig = setup.config
        self._indices: dict[str, tuple[int, dict[Ngram, int]]] = {}

    def load_model(self, weights: WeightSource | None) -> None:
        """There is nothing to load."""

    def propose(self, batch: DraftBatch) -> Sequence[Proposal]:
        """One continuation a request, or none."""
        return list(map(self._continue, batch.requests))

    def release(self, request_id: str) -> None:
        """Forgets the request's index."""
        self._indices.pop(request_id, None)

    def _continue(self, request: DraftRequest) -> Proposal:
        tokens = request.tokens
        if not request.num_draft_tokens:
            return Proposal()
        places = self._index(request.request_id, tokens)
        for length in range(self._config.longest, self._config.shortest - 1, -1):
            place = places.get(tuple(tokens[-length:])) if length < len(tokens) else None
            if place is not None:
                return Proposal(tokens=_follow(tokens, place, request.num_draft_tokens))
        return Proposal()

    def _index(self, request_id: str, tokens: Sequence[int]) -> dict[Ngram, int]:
        """n-gram -> the place after its latest occurrence, the end of the text left out.

        Tokens never change once they count, so the index only grows.
        """
        done, places = self._indices.get(request_id, (0, {}))
        for end in range(max(done, 1), len(tokens)):
            for length in range(self._config.shortest, min(self._config.longest, end) + 1):
                places[tuple(tokens[end - length : end])] = end
        self._indices[request_id] = (len(tokens), places)
        return places


def _follow(tokens: Sequence[int], place: int, width: int) -> list[int]:
    """`width` tokens from `place` on; a match that reaches the end goes round."""
    period = len(tokens) - place
    return [tokens[place + step % period] for step in range(width)]
