"""A toy block draft that checks its own cache: whatever is wrong with rows or features shows.

Each row of its paged cache holds the hash of the text up to the row's own token, which is the
target's feature of that row. Rows of a block hold nothing that may be read; `broken` counts what
was read and should not have been, and anchors that do not continue the rows before.
"""

from __future__ import annotations

import numpy as np
import torch

from pilotfish.sampling import Sampler
from pilotfish.speculation import BlockProposer, BlockRows, ContextRows, WidthPolicy
from pilotfish.speculation.acceptance import CoupledAcceptance
from pilotfish.speculation.width import FixedWidth
from speculation.toy_draft import DRAFT_CACHE
from support.toy_model import Drafting, context_hash_step, logits_of

MASK = 1
JUNK = 54321.0


class ToyBlock(BlockProposer):
    """Knows the target's law, and follows its likeliest tokens: right whenever the text does.

    wrong_one_in: it is wrong where the hash is divisible by it; 0: never.
    """

    def __init__(
        self,
        *,
        wrong_one_in: int = 0,
        max_positions: int | None = None,
        samples_anchor: bool = False,
    ) -> None:
        super().__init__(
            cache_name=DRAFT_CACHE.name,
            device=torch.device("cpu"),
            mask_token_id=MASK,
            samples_anchor=samples_anchor,
            max_positions=max_positions,
        )
        self.wrong_one_in = wrong_one_in
        self.broken = 0
        self.blocks: list[tuple[int, ...]] = []

    def load_model(self, weights: object) -> None:
        """Nothing to load."""

    def take_in(self, rows: ContextRows) -> None:
        kv = rows.kv
        kv.blocks[0].flatten(0, 1)[kv.write_slots] = rows.features
        self._want_positions(kv.lengths, kv.row_counts)

    def forward(self, rows: BlockRows) -> torch.Tensor:
        kv, memory = rows.kv, rows.kv.blocks[0]
        self.blocks.append(kv.row_counts)
        self._want_positions(kv.lengths, kv.row_counts)
        offsets, tokens = rows.input_row_offsets.tolist(), rows.tokens.tolist()
        memory.flatten(0, 1)[kv.write_slots] = JUNK
        found: list[np.ndarray] = []
        for b, length in enumerate(kv.lengths):
            start, stop = offsets[b], offsets[b + 1]
            self.broken += tokens[start + 1 : stop] != [MASK] * (stop - start - 1)
            context = memory[kv.lookup_table[b].long()].flatten(0, 1)[:length].numpy()
            if not np.isfinite(context).all() or (context == JUNK).any():
                self.broken += 1
                found += [np.zeros(257)] * (stop - start - self.num_silent_rows)
                continue
            number = 7 if not length else int(context[-1].astype(np.float64) @ [65536, 1])
            number = context_hash_step(number, tokens[start])
            for _ in range(stop - start - self.num_silent_rows):
                found.append(self._logits(number))
                number = context_hash_step(number, int(found[-1].argmax()))
        return torch.from_numpy(np.stack(found).astype(np.float32))

    def _logits(self, number: int) -> np.ndarray:
        logits = logits_of(number)
        if self.wrong_one_in and number % self.wrong_one_in == 0:
            return np.roll(logits, 1)
        return logits

    def _want_positions(self, lengths: tuple[int, ...], counts: tuple[int, ...]) -> None:
        limit = self.max_positions
        if limit is not None and any(a + b > limit for a, b in zip(lengths, counts, strict=True)):
            self.broken += 1


def block_drafting(proposer: ToyBlock, *, policy: WidthPolicy | None = None) -> Drafting:
    """A ToyEngine's part for a toy block draft."""
    policy = policy or FixedWidth(4)
    return Drafting(
        proposer=proposer,
        policy=policy,
        acceptance=CoupledAcceptance(Sampler()),
        paged_caches=[DRAFT_CACHE],
        lookahead=0,
        num_scratch=policy.most + proposer.num_silent_rows,
    )
