"""BlockProposer: the driver of drafts that propose a whole block in one pass.

Knows: which rows a draft takes in and runs in a step, and how its tokens are chosen. Does not
know: networks.
Axis letters: B requests, T packed rows, F feature width, R rows of logits, V vocabulary of the
target.

A step of one request, with rows p .. p+n-1 that count now, the newest token t and width w:

    take in   rows p .. p+n-1: each row's keys and values are made of the target's features of that
              row and nothing else, so they are what any other cutting into steps would have left
    block     rows p+n .. p+n+w, all scratch: the first reads t, the others the mask token, and all
              of them see the rows before and, as the layer says, each other; row p+n+i proposes
              the token at its own position (i = 1 .. w)
    or, with `samples_anchor`, rows p+n .. p+n+w-1, and row p+n+i proposes the token after it

Features of t do not exist before the next step: its row in the block is a guess like the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import torch

from pilotfish.batch import Proposal, RaggedBatch
from pilotfish.protocols import NO_LIMIT
from pilotfish.speculation.choosing import Chosen, TokenChooser, proposal_of
from pilotfish.speculation.proposer import DraftBatch, DraftRequest

if TYPE_CHECKING:
    from pilotfish.state import KVCacheInputs

MOST_CONTEXT_ROWS = 512
"""Rows taken in at once: what lives while they are does not grow with a prefill chunk."""


@attrs.frozen(kw_only=True)
class ContextRows:
    """Rows that count, to be taken in; they read no other row.

    features: [T, F] of the target. input_row_offsets: [B+1] int32. kv: where the rows lie in the
        draft's paged cache. num_started_tokens: [B] host, see DraftRequest.
    """

    features: torch.Tensor
    input_row_offsets: torch.Tensor
    kv: KVCacheInputs
    num_started_tokens: tuple[int, ...]


@attrs.frozen(kw_only=True)
class BlockRows:
    """One block a request.

    tokens: [T] int64, what each row reads. input_row_offsets: [B+1] int32. kv: where the rows lie
        in the draft's paged cache; rows see their request's earlier rows. wanted_rows: [R] host,
        rows that propose, in order. num_started_tokens: [B] host, see DraftRequest.
    """

    tokens: torch.Tensor
    input_row_offsets: torch.Tensor
    kv: KVCacheInputs
    wanted_rows: tuple[int, ...]
    num_started_tokens: tuple[int, ...]


@attrs.frozen
class _Live:
    """A request that drafts: its place in the batch, its tokens to draft, its first logit row."""

    place: int
    request: DraftRequest
    width: int
    first: int
    chosen: list[Chosen] = attrs.field(factory=list)


@attrs.frozen
class _Piece:
    """Some of the rows that a request takes in; `start` of them come before.

    rows: which they are of the features.
    """

    request: DraftRequest
    start: int
    rows: range


class BlockProposer:
    """Base of such drafts; a subclass implements `take_in` and `forward`.

    cache_name: its paged cache. device: of its tensors. mask_token_id: what the rows after the
    first read.
    samples_anchor: see above. max_positions: rows past it are never run: drafting pauses there.
    keeps_probs: whether proposals say which law each token was drawn from ("residual" acceptance
    needs it). whose: draft, for messages.
    shared_calls: see `shared_calls_of`.
    """

    shared_calls: ClassVar[tuple[str, ...]] = ("take_in", "forward")
    config_class: ClassVar[type[Any]]

    def __init__(
        self,
        *,
        cache_name: str,
        device: torch.device,
        mask_token_id: int,
        samples_anchor: bool = False,
        max_positions: int | None = None,
        keeps_probs: bool = False,
        whose: str = "the draft",
    ) -> None:
        self.cache_name = cache_name
        self.device = device
        self.mask_token_id = mask_token_id
        self.max_positions = NO_LIMIT if max_positions is None else max_positions
        self.num_silent_rows = 0 if samples_anchor else 1
        self._chooser = TokenChooser(keeps_probs=keeps_probs, whose=whose)

    def take_in(self, rows: ContextRows) -> None:
        """Writes the rows' keys and values."""
        raise NotImplementedError

    def forward(self, rows: BlockRows) -> torch.Tensor:
        """One pass over the blocks: [R, V] float32 over the target's ids, of the wanted rows."""
        raise NotImplementedError

    def release(self, request_id: str) -> None:
        """A draft keeps nothing outside its pages."""

    @torch.inference_mode()
    def propose(self, batch: DraftBatch) -> Sequence[Proposal]:
        """Takes in what counts, then drafts every request's block in one pass."""
        self._take_in(batch)
        live = self._live(batch)
        proposals = [Proposal() for _ in batch.requests]
        if live:
            logits = self.forward(self._block_rows(batch, live))
            self._choose(live, logits)
            for one in live:
                proposals[one.place] = proposal_of(one.chosen)
        return proposals

    # Taking in

    def _take_in(self, batch: DraftBatch) -> None:
        """All rows that count and lie within the positions, whether or not anything is drafted."""
        features = batch.features
        if features is None:
            raise ValueError("the batch has no features; wanted the target's, of every row")
        pieces: list[_Piece] = []
        num_rows = 0
        for piece in self._pieces(batch.requests):
            if pieces and num_rows + len(piece.rows) > MOST_CONTEXT_ROWS:
                self.take_in(self._context_rows(batch, features, pieces))
                pieces, num_rows = [], 0
            pieces.append(piece)
            num_rows += len(piece.rows)
        if pieces:
            self.take_in(self._context_rows(batch, features, pieces))

    def _pieces(self, requests: Sequence[DraftRequest]) -> Iterator[_Piece]:
        """Pieces of at most MOST_CONTEXT_ROWS rows."""
        first = 0
        for request in requests:
            count = self._num_context_rows(request)
            for start in range(0, count, MOST_CONTEXT_ROWS):
                stop = min(start + MOST_CONTEXT_ROWS, count)
                yield _Piece(request, start, range(first + start, first + stop))
            first += request.num_new

    def _context_rows(
        self, batch: DraftBatch, features: torch.Tensor, pieces: list[_Piece]
    ) -> ContextRows:
        start, stop = pieces[0].rows.start, pieces[-1].rows.stop
        counts = [len(piece.rows) for piece in pieces]
        if sum(counts) == stop - start:
            taken = features[start:stop]
        else:
            index = [row for piece in pieces for row in piece.rows]
            taken = features[torch.tensor(index, device=features.device)]
        return ContextRows(
            features=taken,
            input_row_offsets=torch.tensor(
                [0, *accumulate(counts)], dtype=torch.int32, device=self.device
            ),
            kv=batch.kv_inputs(
                [piece.request.request_id for piece in pieces],
                counts,
                self.cache_name,
                [piece.start for piece in pieces],
            ),
            num_started_tokens=tuple(piece.request.num_started_tokens for piece in pieces),
        )

    def _num_context_rows(self, request: DraftRequest) -> int:
        return max(0, min(request.num_new, self.max_positions - request.num_before))

    # Drafting

    def _live(self, batch: DraftBatch) -> list[_Live]:
        live: list[_Live] = []
        first = 0
        for place, request in enumerate(batch.requests):
            width = self._width(request)
            if width > 0:
                live.append(_Live(place, request, width, first))
                first += width
        return live

    def _width(self, request: DraftRequest) -> int:
        """Tokens to draft, the positions of the whole block within the limit."""
        if len(request.tokens) <= request.num_after:
            return 0
        room = self.max_positions - request.num_after - self.num_silent_rows
        return max(0, min(request.num_draft_tokens, room))

    def _block_rows(self, batch: DraftBatch, live: list[_Live]) -> BlockRows:
        counts = [one.width + self.num_silent_rows for one in live]
        anchors = [one.request.tokens[one.request.num_after] for one in live]
        ragged = RaggedBatch.pack(
            [
                [anchor] + [self.mask_token_id] * (count - 1)
                for anchor, count in zip(anchors, counts, strict=True)
            ],
            self.device,
        )
        wanted: list[int] = []
        for one, end in zip(live, accumulate(counts), strict=True):
            wanted += range(end - one.width, end)
        return BlockRows(
            tokens=ragged.tokens,
            input_row_offsets=ragged.input_row_offsets,
            kv=batch.kv_inputs(
                [one.request.request_id for one in live],
                counts,
                self.cache_name,
                [one.request.num_new for one in live],
            ),
            wanted_rows=tuple(wanted),
            num_started_tokens=tuple(one.request.num_started_tokens for one in live),
        )

    def _choose(self, live: list[_Live], logits: torch.Tensor) -> None:
        """Chooses place by place: penalties at a place count the tokens drafted before it."""
        place = 0
        while live:
            rows = [one.request.sampling_row([c.token for c in one.chosen]) for one in live]
            index = torch.tensor([one.first + place for one in live], device=logits.device)
            found = self._chooser.choose(logits.index_select(0, index), rows)
            place += 1
            going = []
            for one, chosen in zip(live, found, strict=True):
                if chosen is not None:
                    one.chosen.append(chosen)
                    if place < one.width:
                        going.append(one)
            live = going
