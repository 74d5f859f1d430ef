"""Request: one prompt from its arrival to its one terminal event.

Knows: tokens, text, log probabilities and times of one request. Does not know: other requests,
pages or models.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from threading import get_ident
from time import perf_counter
from typing import TYPE_CHECKING, Any

import attrs
import torch

from pilotfish.batch import NO_DRAFT, RequestContext
from pilotfish.config import SamplingParams
from pilotfish.engine.length_rules import LengthRules
from pilotfish.engine.outputs import Delta, FinishReason, RequestOutput, Timing
from pilotfish.engine.stopping import StopRules
from pilotfish.sampling.penalties import TokenHistory
from pilotfish.sampling.row import SamplingRow
from pilotfish.speculation.acceptance import VerifyRequest

if TYPE_CHECKING:
    from pilotfish.sampling import TokenLogprobs
    from pilotfish.speculation import SpeculationCounters
    from pilotfish.tokenization.detokenizer import Detokenizer


@attrs.define(eq=False)
class Caller:
    """Who waits for some requests: one call of `generate`, or one stream.

    is_gone: no longer. thread: that made it.
    """

    is_gone: bool = False
    thread: int = attrs.field(factory=get_ident)


@attrs.define(kw_only=True, eq=False)
class Request(RequestContext):
    """One live request; what the engine changes about it, it changes through these methods.

    index: of the prompt in the caller's list. sample: of the answer among those to its prompt.
    seed: of its noise.
    rules: when the answer ends. history: tokens counted for penalties; None without those.
    detokenizer: None without a tokenizer. new_detokenizer: makes it once more.
    lengths: see LengthRules. restart_above: tokens from which its model wants all rows computed
        anew before it goes on; None: never, or done.
    num_scratch: rows past the scheduled ones that are reserved for drafting in this pass.
    counters: of speculation; None without.
    caller: who waits for it; when it is gone, the engine lets the request go.
    streams: whether the caller reads deltas; if not, only the terminal one is kept.
    started: when its first pass began, by `perf_counter`.
    keeps_logits: whether the logits of every row are wanted, and no answer. wants_prompt_rows:
        whether any logits of the prompt's rows are.
    """

    index: int
    params: SamplingParams
    seed: int
    rules: StopRules
    history: TokenHistory | None = attrs.field(init=False, default=None)
    detokenizer: Detokenizer | None = None
    new_detokenizer: Callable[[], Detokenizer] | None = None
    lengths: LengthRules = attrs.field(factory=LengthRules)
    restart_above: int | None = attrs.field(init=False, default=None)
    load_s: float = 0.0
    streams: bool = False
    keeps_logits: bool = False
    wants_prompt_rows: bool = attrs.field(init=False)
    sample: int = 0
    logprobs: list[TokenLogprobs] = attrs.field(factory=list)
    prompt_logprobs: list[TokenLogprobs] = attrs.field(factory=list)
    kept_logits: torch.Tensor | None = None
    num_kept_rows: int = 0
    num_preemptions: int = 0
    num_scratch: int = 0
    counters: SpeculationCounters | None = None
    caller: Caller = attrs.field(factory=Caller)
    outbox: deque[Delta] = attrs.field(factory=deque)
    finish_reason: FinishReason | None = None
    error: str | None = None
    started: float | None = None
    _first_token: float | None = None
    _last_token: float | None = None
    _num_taken: int = 0
    """Tokens of the answer that were taken whole, with all that belongs to them."""
    _end_taken: FinishReason | None = None
    """Why the answer ends with them."""

    def __attrs_post_init__(self) -> None:
        self.restart_above = self.lengths.restart_above(self.num_started_tokens)
        self.wants_prompt_rows = self.keeps_logits or self.params.prompt_logprobs is not None
        if self.params.has_penalties:
            self.history = TokenHistory(self.tokens)

    # What the scheduler asks, all ints

    @property
    def is_finished(self) -> bool:
        """Whether the terminal event is in the outbox, or was."""
        return self.finish_reason is not None

    @property
    def num_pending(self) -> int:
        """Tokens whose rows are not computed: 1 when decoding, more when prefilling."""
        return len(self.tokens) - self.num_computed

    @property
    def salt(self) -> bytes:
        """The salt of the pages that it shares with others."""
        return self.lengths.salt(self.num_started_tokens)

    @property
    def prefix_keys(self) -> Sequence[int]:
        """Keys for a prefix hit; none while rows of the prompt are wanted that a hit leaves out."""
        if self.num_wanted_rows:
            return ()
        return self.keys(0, len(self.tokens)) if self.images else self.tokens

    def next_keys(self, num_rows: int) -> list[int]:
        """Keys of the next rows."""
        stop = min(self.num_computed + num_rows, len(self.tokens))
        keys = self.tokens[self.num_computed : stop]
        if self.images:
            keys = self.keys(self.num_computed, stop)
        keys += self.draft.tokens[: num_rows - len(keys)]
        return keys

    @property
    def is_restart_due(self) -> bool:
        """Whether its model wants all rows computed anew before it goes on."""
        return self.restart_above is not None and len(self.tokens) > self.restart_above

    def drop_state(self) -> None:
        """Nothing of it is computed, and nothing drafted."""
        self.num_computed = self.num_scheduled = 0
        self.draft = NO_DRAFT

    # What the runner asks

    @property
    def num_output_tokens(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def num_wanted_rows(self) -> int:
        """Rows of the prompt whose logits are still to be seen, all but those seen so far.

        For prompt log probabilities the last row is not among them: it tells of the answer.
        """
        if self.keeps_logits:
            return self.num_prompt_tokens - self.num_kept_rows
        if self.params.prompt_logprobs is None:
            return 0
        return self.num_prompt_tokens - 1 - len(self.prompt_logprobs)

    @property
    def samples_next(self) -> bool:
        """Whether the scheduled rows end with the last token, so that a token follows."""
        is_last = self.num_computed + self.num_scheduled >= len(self.tokens)
        return is_last and not self.keeps_logits

    @property
    def num_logit_rows(self) -> int:
        """Logit rows wanted of this pass: a run that ends with its last row."""
        if self.wants_prompt_rows and self.num_wanted_rows:
            first = self.num_computed
            stop = first + self.num_scheduled
            seen = self.num_kept_rows if self.keeps_logits else len(self.prompt_logprobs)
            last_wanted = self.num_prompt_tokens - (0 if self.keeps_logits else 1)
            if max(first, seen) < min(stop, last_wanted):
                return stop - max(first, seen)
        return 1 + len(self.draft.tokens) if self.samples_next else 0

    def sampling_row(self, draft_ids: Sequence[int] = ()) -> SamplingRow:
        """The row after all tokens so far and `draft_ids`.

        End tokens are banned while the answer, draft included, is shorter than `min_tokens`.
        """
        position = len(self.tokens) + len(draft_ids)
        banned = self.params.suppress_tokens
        if position - self.num_prompt_tokens < self.rules.min_tokens:
            banned = (*self.rules.banned_ids, *banned)
        return SamplingRow(
            params=self.params,
            seed=self.seed,
            position=position,
            history=self.history,
            draft_ids=draft_ids,
            banned_ids=banned,
            request_id=self.request_id,
        )

    def verify_request(self) -> VerifyRequest:
        """Its drafted tokens, and the rows that judge them."""
        drafts = self.draft.tokens
        rows = [self.sampling_row(drafts[:place]) for place in range(len(drafts) + 1)]
        return VerifyRequest(rows=rows, draft=self.draft, context=self.tokens)

    # What happens to it

    def keep_logits(self, logits: torch.Tensor) -> None:
        """logits: [n, V] float32, of the next n rows that it keeps; copied."""
        if self.kept_logits is None:
            with torch.inference_mode(False):  # it is the caller's
                self.kept_logits = logits.new_empty(self.num_prompt_tokens, logits.shape[1])
        end = self.num_kept_rows + logits.shape[0]
        self.kept_logits[self.num_kept_rows : end] = logits
        self.num_kept_rows = end

    def restart(self) -> None:
        """Its rows were given up because the restart was due: they are computed anew."""
        self.num_restart_tokens = len(self.tokens)
        self.restart_above = None

    def accept(
        self,
        tokens: Sequence[int],
        logprobs: Sequence[TokenLogprobs | None],
        drafted: Sequence[int] = (),
        num_accepted: int = 0,
    ) -> FinishReason | None:
        """Takes what one step sampled, up to where a rule ends the answer.

        tokens: one or more, in order; those after the end are dropped, and those after a length
            at which the model wants all rows computed anew: see `is_restart_due`.
        logprobs: one record each. drafted, num_accepted: what was verified, for those who watch.
        Returns why the answer ends, if it does: the caller must then `finish` it.
        After an exception `settle` takes back what was taken in part.
        """
        assert self.finish_reason is None, "the answer has ended"
        now = perf_counter()
        if self._first_token is None:
            self._first_token = now
        self._last_token = now
        is_first = len(self.tokens) == self.num_prompt_tokens
        text, taken, reason = self._take(tokens)
        wants_records = self.params.logprobs is not None
        records = self._with_texts(logprobs[:taken]) if wants_records else []
        num_accepted = min(num_accepted, taken)
        counters = self.counters
        if counters is not None and not is_first:
            counters = counters.after(len(drafted), num_accepted)
        count = len(self.tokens) - self.num_prompt_tokens
        delta = Delta(
            index=self.index,
            token_ids=tuple(tokens[:taken]),
            text=text,
            logprobs=records if wants_records else None,
            drafted=tuple(drafted),
            num_accepted=num_accepted,
        )
        # All of it counts from here: Python sees to signals after calls, so none parts these lines.
        self._num_taken, self._end_taken, self.counters = count, reason, counters
        self.logprobs += records
        if self.streams:
            self.outbox.append(delta)
        return reason

    def settle(self) -> None:
        """Takes back what an interrupted step took in part, and ends an answer whose end it took.

        For a request whose rows are all computed anew. May itself be begun again.
        """
        if self.is_finished:
            return
        tokens, num_prompt = self.tokens, self.num_prompt_tokens
        del tokens[num_prompt + self._num_taken :]
        answer = tokens[num_prompt:]
        if self.history is not None:
            self.history = TokenHistory(tokens[:num_prompt], answer)
        if self.new_detokenizer is not None:
            self.detokenizer = self.new_detokenizer()
            for count, token in enumerate(answer, 1):
                may_stop = count >= self.rules.min_tokens
                if not (may_stop and token in self.rules.end_ids):
                    self.detokenizer.add(token, may_stop=may_stop)
        if self._end_taken is not None:
            self.finish(self._end_taken)

    def finish(self, reason: FinishReason, error: str | None = None) -> None:
        """Puts the one terminal event in the outbox.

        Text that was held for a stop string is given now, and may turn out to hold one.
        """
        assert not self.is_finished, "a request has one terminal event"
        text, reason, error = self._flush(reason, error)
        output = self._output(reason, error)
        delta = Delta(index=self.index, text=text, finish_reason=reason, output=output)
        self.error = error
        self.finish_reason = reason  # no signal parts these lines: see `accept`
        self.outbox.append(delta)

    def _take(self, new: Sequence[int]) -> tuple[str, int, FinishReason | None]:
        """Takes tokens one by one: their text, how many were taken, and why the answer ends."""
        tokens, rules, detokenizer = self.tokens, self.rules, self.detokenizer
        most = len(new)
        if self.restart_above is not None:
            most = max(0, min(most, self.restart_above + 1 - len(tokens)))
        text = ""
        for taken, token in enumerate(new[:most], 1):
            tokens.append(token)
            if self.history is not None:
                self.history.append(token)
            may_stop = len(tokens) - self.num_prompt_tokens >= rules.min_tokens
            if may_stop and token in rules.end_ids:
                return text, taken, "stop"
            if detokenizer is not None:
                text += detokenizer.add(token, may_stop=may_stop)
                if detokenizer.stopped_by is not None:
                    return text, taken, "stop"
            if len(tokens) >= rules.max_total_tokens:
                return text, taken, "length"
        return text, most, None

    def _flush(
        self, reason: FinishReason, error: str | None
    ) -> tuple[str, FinishReason, str | None]:
        if self.detokenizer is None:
            return "", reason, error
        may_stop = self.num_output_tokens >= self.rules.min_tokens
        try:
            text = self.detokenizer.finish(may_stop=may_stop)
        except Exception as failure:  # whatever fails here, the caller must hear of the end
            return "", "error", error or f"{type(failure).__name__}: {failure}"
        if reason == "length" and self.detokenizer.stopped_by is not None:
            reason = "stop"
        return text, reason, error

    def _output(self, reason: FinishReason, error: str | None) -> RequestOutput:
        tokens, num_prompt = self.tokens, self.num_prompt_tokens
        prompt_records = [None, *self._with_texts(self.prompt_logprobs)]
        return RequestOutput(
            index=self.index,
            prompt_token_ids=tokens[:num_prompt],
            token_ids=tokens[num_prompt:],
            text=self.detokenizer.text if self.detokenizer is not None else "",
            finish_reason=reason,
            logprobs=self.logprobs if self.params.logprobs is not None else None,
            prompt_logprobs=prompt_records if self.params.prompt_logprobs is not None else None,
            seed=self.seed,
            timing=self._timing(),
            error=error,
            sample=self.sample,
            speculative=self._speculative(),
        )

    def _with_texts(self, records: Sequence[TokenLogprobs | None]) -> list[TokenLogprobs]:
        found = [record for record in records if record is not None]
        if self.detokenizer is None:
            return found
        text_of = self.detokenizer.tokenizer.token_text
        return [record.with_texts(text_of) for record in found]

    def _speculative(self) -> dict[str, Any] | None:
        if self.counters is None:
            return None
        return self.counters.to_json(max(0, self.num_output_tokens - 1))

    def _timing(self) -> Timing:
        first, last = self._first_token, self._last_token
        if self.started is None or first is None or last is None:
            return Timing(load_s=self.load_s)
        return Timing(
            load_s=self.load_s,
            prefill_s=first - self.started,
            decode_s=last - first,
            num_decoded=self.num_output_tokens - 1,
        )
