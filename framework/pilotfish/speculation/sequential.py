"""SequentialProposer: the driver of drafts that propose one token a pass.

Knows: which rows a draft runs in a step, and how its tokens are chosen. Does not know: networks.
Axis letters: B requests, T packed rows, D draft width, F feature width, G drafted tokens,
V vocabulary of the target.

A step of one request, with rows p .. p+n-1 that count now and the newest token t:

    shift 1 (reads features) pass 1: rows p .. p+n-1, row i reads token i+1 beside the target's
                             features of row i; the last one reads t. Later passes: row p+n+k
                             reads the token drafted last.
    shift 0 (a small model)  pass 1: rows p .. p+n, row i reads token i; the last one is t's, and
                             scratch. Later passes: row p+n+1+k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import torch

from pilotfish.batch import Proposal, RaggedBatch
from pilotfish.protocols import NO_LIMIT
from pilotfish.speculation.choosing import Chosen, TokenChooser, proposal_of
from pilotfish.speculation.proposer import DraftBatch, DraftRequest

if TYPE_CHECKING:
    from pilotfish.state import KVCacheInputs


@attrs.frozen(kw_only=True)
class DraftRows:
    """One pass of a draft.

    request_ids: B of them. tokens: [T] int64, what each row reads. input_row_offsets: [B+1] int32.
    kv: where the rows lie in the draft's paged cache; rows see their request's earlier rows.
    features: [T, F] of the target in pass 1 of a draft of shift 1, else None.
    prev_hidden_states: [B, D], what the pass before returned for these requests, else None.
    wanted: [B] host, whether a token is drafted.
    """

    request_ids: tuple[str, ...]
    tokens: torch.Tensor
    input_row_offsets: torch.Tensor
    kv: KVCacheInputs
    features: torch.Tensor | None = None
    prev_hidden_states: torch.Tensor | None = None
    wanted: tuple[bool, ...]

    @property
    def wanted_rows(self) -> list[int]:
        """The last row of each request that drafts."""
        ends = self.input_row_offsets.tolist()[1:]
        return [end - 1 for end, wanted in zip(ends, self.wanted, strict=True) if wanted]


@attrs.frozen(kw_only=True)
class DraftOutputs:
    """logits: [B', V] float32 over the target's ids, -inf for ids the draft does not know; B' the
    requests that draft. prev_hidden_states: [B', D] for their next rows; None for a draft that
    needs none.
    """

    logits: torch.Tensor
    prev_hidden_states: torch.Tensor | None = None


@attrs.define
class _Live:
    """A request while it is drafted: its place in the batch, and what was chosen."""

    place: int
    request: DraftRequest
    skip: int
    chosen: list[Chosen] = attrs.field(factory=list)

    @property
    def drafted(self) -> list[int]:
        """The tokens chosen so far."""
        return [one.token for one in self.chosen]


class SequentialProposer:
    """Base of such drafts; a subclass implements `forward`.

    cache_name: its paged cache. shift: see above. max_positions: rows past it are never run:
    drafting pauses there. device: of its tensors. keeps_probs: whether proposals say which law each
    token was drawn from ("residual" acceptance needs it). whose: draft, for messages.
    shared_calls: see `shared_calls_of`.
    """

    shift: ClassVar[int]
    shared_calls: ClassVar[tuple[str, ...]] = ("forward",)
    config_class: ClassVar[type[Any]]

    def __init__(
        self,
        *,
        cache_name: str,
        device: torch.device,
        max_positions: int | None = None,
        keeps_probs: bool = False,
        whose: str = "the draft",
    ) -> None:
        self.cache_name = cache_name
        self.device = device
        self.max_positions = NO_LIMIT if max_positions is None else max_positions
        self._chooser = TokenChooser(keeps_probs=keeps_probs, whose=whose)

    def forward(self, rows: DraftRows) -> DraftOutputs:
        """One pass: writes the rows' keys and values, returns logits for the next tokens."""
        raise NotImplementedError

    def release(self, request_id: str) -> None:
        """A draft keeps nothing outside its pages."""

    @torch.inference_mode()
    def propose(self, batch: DraftBatch) -> Sequence[Proposal]:
        """Takes the rows in, then drafts token by token."""
        proposals = [Proposal() for _ in batch.requests]
        live, outputs = self._first_pass(batch)
        while live:
            live, prev_hidden_states = self._choose(live, outputs, proposals)
            if live:
                outputs = self._next_pass(batch, live, prev_hidden_states)
        return proposals

    def _first_pass(self, batch: DraftBatch) -> tuple[list[_Live], DraftOutputs]:
        """The rows that count, of every request whose positions are within the limit."""
        running: list[_Live] = []
        tokens: list[list[int]] = []
        feature_rows: list[int] = []
        first_row = 0
        for place, request in enumerate(batch.requests):
            count = self._num_first_rows(request)
            if count:
                start = request.num_before + self.shift
                tokens.append(list(request.tokens[start : start + count]))
                running.append(_Live(place, request, skip=count))
                feature_rows.extend(range(first_row, first_row + count))
            first_row += request.num_new
        if not running:
            return [], DraftOutputs(logits=torch.empty(0, 0))
        features = batch.features if self.shift else None
        if features is not None and len(feature_rows) != features.shape[0]:
            features = features[torch.tensor(feature_rows, device=features.device)]
        wanted = tuple(self._width(live.request) > 0 for live in running)
        outputs = self.forward(
            self._rows(
                batch, running, tokens, skip=[0] * len(running), features=features, wanted=wanted
            )
        )
        return [live for live, wants in zip(running, wanted, strict=True) if wants], outputs

    def _next_pass(
        self, batch: DraftBatch, live: list[_Live], prev_hidden_states: torch.Tensor | None
    ) -> DraftOutputs:
        rows = self._rows(
            batch,
            live,
            [one.drafted[-1:] for one in live],
            skip=[one.skip for one in live],
            prev_hidden_states=prev_hidden_states,
            wanted=(True,) * len(live),
        )
        for one in live:
            one.skip += 1
        return self.forward(rows)

    def _rows(
        self,
        batch: DraftBatch,
        live: list[_Live],
        tokens: list[list[int]],
        *,
        skip: list[int],
        wanted: tuple[bool, ...],
        features: torch.Tensor | None = None,
        prev_hidden_states: torch.Tensor | None = None,
    ) -> DraftRows:
        ids = tuple(one.request.request_id for one in live)
        ragged = RaggedBatch.pack(tokens, self.device)
        return DraftRows(
            request_ids=ids,
            tokens=ragged.tokens,
            input_row_offsets=ragged.input_row_offsets,
            kv=batch.kv_inputs(ids, list(map(len, tokens)), self.cache_name, skip),
            features=features,
            prev_hidden_states=prev_hidden_states,
            wanted=wanted,
        )

    def _choose(
        self, live: list[_Live], outputs: DraftOutputs, proposals: list[Proposal]
    ) -> tuple[list[_Live], torch.Tensor | None]:
        """Chooses one token each; returns the requests that draft on, and their hidden states."""
        rows = [one.request.sampling_row(one.drafted) for one in live]
        going: list[_Live] = []
        kept: list[int] = []
        found = self._chooser.choose(outputs.logits, rows)
        for index, (one, chosen) in enumerate(zip(live, found, strict=True)):
            if chosen is not None:
                one.chosen.append(chosen)
                proposals[one.place] = proposal_of(one.chosen)
                if len(one.chosen) < self._width(one.request):
                    going.append(one)
                    kept.append(index)
        states = outputs.prev_hidden_states
        if states is not None and len(kept) != len(live):
            states = states[torch.tensor(kept, dtype=torch.int64, device=states.device)]
        return going, states

    def _num_first_rows(self, request: DraftRequest) -> int:
        """Rows of pass 1. Rows that count are run also where nothing is drafted."""
        known = len(request.tokens) - self.shift - request.num_before
        count = min(request.num_new, known)
        if not self.shift and self._width(request):
            count += 1  # the newest token's own row
        return max(0, min(count, self.max_positions - request.num_before))

    def _width(self, request: DraftRequest) -> int:
        """Tokens to draft, the positions of all their rows within the limit."""
        first = request.num_after if not self.shift else request.num_after - 1
        return max(0, min(request.num_draft_tokens, self.max_positions - first))
