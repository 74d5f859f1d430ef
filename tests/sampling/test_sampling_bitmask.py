"""Token bitmasks against sets of ids."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pilotfish.sampling.bitmask import apply_bitmask


def packed(allowed: list[set[int]], vocab: int) -> torch.Tensor:
    words = -(-vocab // 32)
    rows = [
        [sum(1 << (t % 32) for t in ids if t // 32 == word) for word in range(words)]
        for ids in allowed
    ]
    signed = [[n - (1 << 32) if n >= 1 << 31 else n for n in row] for row in rows]
    return torch.tensor(signed, dtype=torch.int32).view(len(allowed), words)


@given(st.data(), st.integers(1, 100), st.integers(1, 4))
def test_only_the_tokens_of_the_set_are_left(data: st.DataObject, vocab: int, rows: int) -> None:
    allowed = [data.draw(st.sets(st.integers(0, vocab - 1))) for _ in range(rows)]
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(vocab))
    before = logits.clone()
    masked = apply_bitmask(logits, packed(allowed, vocab))
    assert torch.equal(logits, before)
    for row, ids in enumerate(allowed):
        for token in range(vocab):
            wanted = logits[row, token] if token in ids else float("-inf")
            assert masked[row, token] == wanted


@pytest.mark.parametrize(
    "masks",
    [torch.zeros(2, 1).int(), torch.zeros(1, 2).int(), torch.zeros(1, 1).long()],
)
def test_masks_of_another_shape_are_refused(masks: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"wanted \[1, 1\] torch.int32"):
        apply_bitmask(torch.zeros(1, 20), masks)
