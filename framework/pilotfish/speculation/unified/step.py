"""One step's inputs on the host, and where the rows of the draft's passes lie.

Knows: plain ints, page tables, sampling options. Does not know: models.
Axis letters: B requests, T packed rows, G drafted tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

import attrs
import torch

from pilotfish.batch import Proposal
from pilotfish.config import SamplingParams
from pilotfish.sampling import SamplingRow
from pilotfish.speculation.acceptance import Accepted, VerifyRequest
from pilotfish.speculation.proposer import DraftRequest
from pilotfish.speculation.unified.inputs import UnifiedInputs
from pilotfish.state import KVCacheInputs


@attrs.frozen(kw_only=True)
class Step:
    """B requests. rows: tokens that count for certain; drafts: to be verified; following: the
    prompt's token after a chunk, -1 where the model gives it. lengths: rows committed before.
    wants: whether a token is to be sampled. thinks: whether relaxed acceptance may relax.
    """

    rows: Sequence[list[int]]
    drafts: Sequence[Proposal]
    following: Sequence[int]
    lengths: Sequence[int]
    wants: Sequence[bool]
    thinks: Sequence[bool]
    params: Sequence[SamplingParams]
    seeds: Sequence[int]

    @classmethod
    def of(cls, inputs: UnifiedInputs, kv: KVCacheInputs) -> Self:
        """Reads the inputs back to the host."""
        offsets, tokens = inputs.input_row_offsets.tolist(), inputs.tokens.tolist()
        count = len(offsets) - 1
        wanted = inputs.return_n_logits.tolist()
        drafts = _listed(inputs.draft_tokens, (), count)
        probs = [None] * count if inputs.draft_probs is None else list(inputs.draft_probs)
        return cls(
            rows=[tokens[a:b] for a, b in pairwise(offsets)],
            drafts=[
                Proposal(tokens=tuple(row), probs=own)
                for row, own in zip(drafts, probs, strict=True)
            ],
            following=_listed(inputs.following_tokens, -1, count),
            lengths=kv.lengths,
            wants=[bool(n) for n in (wanted * count if len(wanted) == 1 else wanted)],
            thinks=_listed(inputs.in_thinking_phase, False, count),
            params=[
                SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k)
                for temperature, top_p, top_k in zip(
                    _listed(inputs.temperature, 0.0, count),
                    _listed(inputs.top_p, 1.0, count),
                    _listed(inputs.top_k, -1, count),
                    strict=True,
                )
            ],
            seeds=_listed(inputs.seed, 0, count),
        )

    def sampling_row(self, place: int, ahead: int) -> SamplingRow:
        """The row `ahead` tokens after the one that follows a request's certain rows."""
        position = self.lengths[place] + len(self.rows[place]) + ahead
        return SamplingRow(params=self.params[place], seed=self.seeds[place], position=position)

    def verify_request(self, place: int) -> VerifyRequest:
        """What is to be judged of a request."""
        proposal = self.drafts[place]
        return VerifyRequest(
            rows=[self.sampling_row(place, i) for i in range(len(proposal.tokens) + 1)],
            draft=proposal,
            thinks=self.thinks[place],
        )

    def draft_request(self, place: int, one: Accepted, width: int) -> DraftRequest:
        """What follows a request's rows that count, of which `one` accepted some.

        Tokens committed before are not known here and nobody reads them: zeros stand in.
        """
        following = list(one.tokens) or [self.following[place]]
        return DraftRequest(
            request_id=str(place),
            tokens=[0] * self.lengths[place] + self.rows[place] + following,
            num_before=self.lengths[place],
            num_new=len(self.rows[place]) + one.num_accepted,
            num_draft_tokens=width if one.tokens else 0,
            sampling_row=lambda drafted: self.sampling_row(place, len(one.tokens) + len(drafted)),
        )


@attrs.frozen
class DraftPages:
    """The draft's paged cache over the page tables of the target's pass. kv: of that pass; blocks:
    per layer, the draft's memory.
    """

    kv: KVCacheInputs
    blocks: tuple[torch.Tensor, ...]

    def view(
        self,
        request_ids: Sequence[str],
        row_counts: Sequence[int],
        cache_name: str,
        skip: Sequence[int],
    ) -> KVCacheInputs:
        """The view of one pass of the draft; `kv_inputs` of a DraftBatch.

        request_ids: places in the batch, as text. Raises ValueError when a table ends too early.
        """
        del cache_name
        kv, places = self.kv, [int(name) for name in request_ids]
        size, device = kv.page_size_tokens, kv.lookup_table.device
        lengths = [kv.lengths[place] + more for place, more in zip(places, skip, strict=True)]
        for place, start, count in zip(places, lengths, row_counts, strict=True):
            if start + count > kv.capacities[place]:
                raise ValueError(
                    f"the draft writes row {start + count - 1} of request {place}, whose pages end "
                    f"at {kv.capacities[place]}; wanted pages for its scratch rows: reserve them "
                    "before the step"
                )
        table = kv.lookup_table[torch.tensor(places, device=device)]
        slots = []
        for place, (start, count) in enumerate(zip(lengths, row_counts, strict=True)):
            rows = torch.arange(start, start + count, device=device)
            slots.append(table[place, rows // size].long() * size + rows % size)
        return KVCacheInputs(
            blocks=self.blocks,
            lookup_table=table,
            cache_lengths=torch.tensor(lengths, dtype=torch.int32, device=device),
            write_slots=torch.cat(slots),
            page_size_tokens=size,
            lengths=tuple(lengths),
            row_counts=tuple(row_counts),
            page_counts=tuple(kv.page_counts[place] for place in places) if kv.page_counts else (),
        )


def _listed(tensor: torch.Tensor | None, default: Any, count: int) -> list[Any]:
    return [default] * count if tensor is None else list(tensor.tolist())
