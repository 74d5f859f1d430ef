"""What the toy's author tells the conformance kit: how to write a checkpoint, and an oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pilotfish.testing import Examples, Oracle
from support.toy_model import context_hash, logits_of, write_toy_checkpoint


class ToyOracle(Oracle):
    """The toy's logits from its definition; its float32 arithmetic is off by a rounding."""

    def exact(self, tokens: Sequence[int], dtype: str) -> torch.Tensor:
        del dtype
        rows = [logits_of(context_hash(tokens[: i + 1])) for i in range(len(tokens))]
        return torch.from_numpy(np.stack(rows)).double()

    def eager(self, tokens: Sequence[int], dtype: str) -> torch.Tensor:
        return (self.exact(tokens, dtype) * (1 + 1e-7)).float()


def save(options: Mapping[str, Any], folder: Path) -> None:
    """Only the context's length is an option of the toy."""
    write_toy_checkpoint(folder, max_length=options["max_position_embeddings"])


def examples(architecture: str) -> Examples:
    """One tiny toy."""
    assert architecture == "ToyHashModel"
    return Examples(
        configs={"short": {"max_position_embeddings": 64}},
        save=save,
        oracle=lambda folder: ToyOracle(),
    )
