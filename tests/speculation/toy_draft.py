"""A toy draft that checks its own cache: whatever is wrong with rows, lengths or features shows.

Each row of its paged cache holds the hash of the text up to the token the row reads. Every row that
a pass reads must continue the one before; `broken` counts those that do not.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from pilotfish.sampling import Sampler
from pilotfish.speculation import DraftOutputs, DraftRows, SequentialProposer, WidthPolicy
from pilotfish.speculation.acceptance import Acceptance, CoupledAcceptance
from pilotfish.speculation.width import FixedWidth
from pilotfish.state import PagedStateSpec
from support.toy_model import Drafting, context_hash_step, logits_of

DRAFT_CACHE = PagedStateSpec(name="toy.draft", num_layers=1, row_shape=(2,), dtype="float32")


class ToyDraft(SequentialProposer):
    """Knows the target's law, so that under the same noise it is always right.

    wrong_one_in: it is wrong where the hash is divisible by it; 0: never.
    """

    shift: ClassVar[int] = 0

    def __init__(
        self, *, wrong_one_in: int = 0, max_positions: int | None = None, keeps_probs: bool = False
    ) -> None:
        super().__init__(
            cache_name=DRAFT_CACHE.name,
            device=torch.device("cpu"),
            max_positions=max_positions,
            keeps_probs=keeps_probs,
        )
        self.wrong_one_in = wrong_one_in
        self.broken = 0
        self.passes: list[tuple[int, ...]] = []

    def load_model(self, weights: object) -> None:
        """Nothing to load."""

    def forward(self, rows: DraftRows) -> DraftOutputs:
        kv, memory = rows.kv, rows.kv.blocks[0].numpy()
        self.passes.append(kv.row_counts)
        size, tokens = kv.page_size_tokens, rows.tokens.tolist()
        offsets, slots = rows.input_row_offsets.tolist(), kv.write_slots.tolist()
        last: list[int] = []
        for b, length in enumerate(kv.lengths):
            table = kv.lookup_table[b].numpy()
            for position, i in enumerate(range(offsets[b], offsets[b + 1]), start=length):
                context = memory[table].reshape(-1, 2)[:position].astype(np.float64)
                before = self._before(rows, b, i, context)
                if not np.isfinite(context).all():
                    self.broken += 1
                if self.max_positions is not None and position >= self.max_positions:
                    self.broken += 1
                number = context_hash_step(before, tokens[i])
                memory[slots[i] // size, slots[i] % size] = divmod(number, 65536)
            last.append(number)
        chosen = [number for number, wanted in zip(last, rows.wanted, strict=True) if wanted]
        logits = np.stack([self._logits(n) for n in chosen]) if chosen else np.zeros((0, 1))
        halves = [divmod(number, 65536) for number in chosen]
        return DraftOutputs(
            logits=torch.from_numpy(logits.astype(np.float32)),
            prev_hidden_states=torch.tensor(halves, dtype=torch.float32),
        )

    def _before(self, rows: DraftRows, b: int, i: int, context: np.ndarray) -> int:
        """The hash that row i continues, from its own rows."""
        return _number(context[-1]) if len(context) else 7

    def _logits(self, number: int) -> np.ndarray:
        logits = logits_of(number)
        if self.wrong_one_in and number % self.wrong_one_in == 0:
            return np.roll(logits, 1)
        return logits


class ToyShiftedDraft(ToyDraft):
    """Reads the next token beside the target's feature, which is the hash up to the row's token."""

    shift: ClassVar[int] = 1

    def _before(self, rows: DraftRows, b: int, i: int, context: np.ndarray) -> int:
        before = rows.prev_hidden_states
        source = before[b] if rows.features is None else rows.features[i]  # type: ignore[index]
        number = _number(source.numpy().astype(np.float64))
        if len(context) and _number(context[-1]) != number:
            self.broken += 1
        return number


def _number(halves: np.ndarray) -> int:
    return -1 if not np.isfinite(halves).all() else int(halves[0] * 65536 + halves[1])


def drafting(
    proposer: ToyDraft, *, policy: WidthPolicy | None = None, acceptance: Acceptance | None = None
) -> Drafting:
    """A ToyEngine's part for a toy draft."""
    policy = policy or FixedWidth(3)
    shifted = isinstance(proposer, ToyShiftedDraft)
    return Drafting(
        proposer=proposer,
        policy=policy,
        acceptance=acceptance or CoupledAcceptance(Sampler()),
        paged_caches=[DRAFT_CACHE],
        lookahead=1 if shifted else 0,
        num_scratch=max(0, policy.most - 1) if shifted else policy.most,
    )
