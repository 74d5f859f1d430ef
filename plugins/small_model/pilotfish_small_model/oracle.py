"""What a small model should draft: its own greedy answer, by transformers.

Knows: how ids are padded. Does not know: SmallModelProposer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pilotfish.testing.draft_oracle import DraftOracle, spread
from pilotfish.testing.transformers_oracle import TransformersOracle


class SmallModelOracle(DraftOracle):
    """Raises NotKnown where transformers cannot load the draft."""

    def __init__(self, target: Path, draft: Path | None) -> None:
        assert draft is not None, "the method reads a draft"
        self._draft = TransformersOracle(draft)
        self._last_id, self._vocab_size = _vocab_size(draft) - 1, _vocab_size(target)

    def scores(
        self, tokens: Sequence[int], drafted: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor:
        """As `DraftOracle`."""
        text = [min(token, self._last_id) for token in (*tokens, *drafted[:-1])]
        asked = self._draft.exact if dtype == torch.float64 else self._draft.eager
        return spread(asked(text, "float32")[-len(drafted) :], None, self._vocab_size)


def _vocab_size(folder: Path) -> int:
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    return int(config.get_text_config(decoder=True).vocab_size)
