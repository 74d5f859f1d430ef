"""Task: a request as it is sent to a replica. News: what a pass there gave it.

Knows: which facts of a request travel. Does not know: channels, or who computes.
Axis letters: T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import attrs
import torch

from pilotfish.batch import PlacedImage
from pilotfish.config import SamplingParams
from pilotfish.engine.outputs import FinishReason
from pilotfish.engine.request import Request
from pilotfish.engine.stopping import StopRules

if TYPE_CHECKING:
    from pilotfish.engine.length_rules import LengthRules
    from pilotfish.engine.outputs import Delta
    from pilotfish.sampling import TokenLogprobs

SUBMIT, ABORT, FORGET = "submit", "abort", "forget_cached_prefixes"
"""Calls of a replica: with a task; with the ids of requests; without anything."""
MEET, JOIN = "meet", "join"
"""Of replicas that share experts: with a store's address, and how many requests there were so far;
with that number, when there is another one, of any of them."""
NEWS, RELEASE_FAILED, CLOSED = "news", "release_failed", "closed"
"""What it says: the news of a pass and how often it preempted so far; a kind of error and its
text; when it was told to close, at last, nothing."""


@attrs.frozen(kw_only=True, eq=False)
class News:
    """What one pass gave one request.

    num_computed: rows in the caches so far. waited_s: since its first pass began.
    tokens, logprobs, drafted, num_accepted: as of `Request.accept`; no tokens: nothing was sampled.
    prompt_records: of further tokens of its prompt. kept_logits: [n, V] float32, further rows.
    finish_reason, error: why it has ended there; None while it goes on.
    """

    request_id: str
    num_computed: int
    waited_s: float
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    drafted: tuple[int, ...] = ()
    num_accepted: int = 0
    prompt_records: tuple[TokenLogprobs, ...] = ()
    kept_logits: torch.Tensor | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None


@attrs.define(kw_only=True, eq=False)
class ServedRequest(Request):
    """A request in a replica's engine: what it gets is sent, and the text is made elsewhere.

    rows: [n, V] float32, those of a pass that are wanted whole. num_told: of its rows and of its
    prompt's records, how many are known.
    """

    rows: list[torch.Tensor] = attrs.field(factory=list)
    num_told: tuple[int, int] = (0, 0)

    def keep_logits(self, logits: torch.Tensor) -> None:
        """Those that `take_news` hands on."""
        self.rows.append(logits.clone())
        self.num_kept_rows += logits.shape[0]

    def take_news(self, now: float) -> News | None:
        """What it got since the last call; None for nothing. now: by `perf_counter`."""
        known, told = (self.num_computed, len(self.prompt_logprobs)), self.num_told
        if known == told and not self.outbox:
            return None
        gained: list[Delta] = [*self.outbox]
        self.outbox.clear()
        rows, self.rows, self.num_told = self.rows, [], known
        return News(
            request_id=self.request_id,
            num_computed=self.num_computed,
            waited_s=now - (self.started or now),
            tokens=tuple(token for one in gained for token in one.token_ids),
            logprobs=tuple(record for one in gained for record in one.logprobs or ()),
            drafted=tuple(token for one in gained for token in one.drafted),
            num_accepted=sum(one.num_accepted for one in gained),
            prompt_records=tuple(self.prompt_logprobs[told[1] :]),
            kept_logits=torch.cat(rows) if rows else None,
            finish_reason=self.finish_reason,
            error=self.error,
        )


@attrs.frozen(kw_only=True, eq=False)
class Task:
    """A request. tokens: [T] int64, its prompt. end_ids, min_tokens, max_total_tokens: see
    StopRules.
    """

    request_id: str
    tokens: torch.Tensor
    images: tuple[PlacedImage, ...]
    params: SamplingParams
    seed: int
    end_ids: tuple[int, ...]
    min_tokens: int
    max_total_tokens: int
    keeps_logits: bool

    @classmethod
    def of(cls, request: Request) -> Self:
        """Of one that was admitted and has no answer yet."""
        rules = request.rules
        return cls(
            request_id=request.request_id,
            tokens=torch.tensor(request.tokens),
            images=request.images,
            params=request.params,
            seed=request.seed,
            end_ids=rules.banned_ids,
            min_tokens=rules.min_tokens,
            max_total_tokens=rules.max_total_tokens,
            keeps_logits=request.keeps_logits,
        )

    def request(self, lengths: LengthRules) -> ServedRequest:
        """The same in another process. Stop strings are found where the text is made."""
        tokens = self.tokens.tolist()
        rules = StopRules(
            end_ids=frozenset(self.end_ids),
            min_tokens=self.min_tokens,
            max_total_tokens=self.max_total_tokens,
        )
        return ServedRequest(
            request_id=self.request_id,
            tokens=tokens,
            num_prompt_tokens=len(tokens),
            images=self.images,
            index=0,
            params=self.params,
            seed=self.seed,
            rules=rules,
            lengths=lengths,
            streams=True,
            keeps_logits=self.keeps_logits,
        )
