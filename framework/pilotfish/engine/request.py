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

from pilotfish.batch import RequestContext
from pilotfish.config import SamplingParams
from pilotfish.engine.length_rules import LengthRules
from pilotfish.engine.outputs import Delta, FinishReason, RequestOutput, Timing
from pilotfish.engine.stopping import StopRules

if TYPE_CHECKING:
    import torch

    from pilotfish.sampling import SamplingRow, TokenHistory, TokenLogprobs
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
class Request:
    """One live request; what the engine changes about it, it changes through these methods.

    context: id, tokens (prompt and answer so far) and how many of them are computed.
    index: of the prompt in the caller's list. sample: of the answer among those to its prompt.
    seed: of its noise.
    rules: when the answer ends. history: tokens counted for the sampler; None when nothing is
        sampled. detokenizer: None without a tokenizer. new_detokenizer: makes it once more.
    lengths: see LengthRules.
    num_scratch: rows past the scheduled ones that are reserved for drafting in this pass.
    counters: of speculation; None without.
    caller: who waits for it; when it is gone, the engine lets the request go.
    streams: whether the caller reads deltas; if not, only the terminal one is kept.
    keeps_logits: whether the logits of every row are wanted, and no answer.
    """

    context: RequestContext
    index: int
    params: SamplingParams
    seed: int
    rules: StopRules
    history: TokenHistory | None = None
    detokenizer: Detokenizer | None = None
    new_detokenizer: Callable[[], Detokenizer] | None = None
    lengths: LengthRules = attrs.field(factory=LengthRules)
    load_s: float = 0.0
    streams: bool = False
    keeps_logits: bool = False
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
    _started: float | None = None
    _first_token: float | None = None
    _last_token: float | None = None
    _num_taken: int = 0
    """Tokens of the answer that were taken whole, with all that belongs to them."""
    _end_taken: FinishReason | None = None
    """Why the answer ends with them."""

    # What the scheduler asks, all ints

    @property
    def request_id(self) -> str:
        """Unique among live requests."""
        return self.context.request_id

    @property
    def is_finished(self) -> bool:
        """Whether the terminal event is in the outbox, or was."""
        return self.finish_reason is not None

    @property
    def num_pending(self) -> int:
        """Tokens whose rows are not computed: 1 when decoding, more when prefilling."""
        return len(self.context.tokens) - self.context.num_computed

    def cut_draft(self, num_tokens: int) -> None:
        """Keeps only the first so many drafted tokens for verification."""
        self.context.draft_tokens = self.context.draft_tokens[:num_tokens]

    @property
    def salt(self) -> bytes:
        """Of its shared pages."""
        return self.lengths.salt(self.num_started_tokens)

    @property
    def prefix_keys(self) -> Sequence[int]:
        """Keys for a prefix hit; none while rows of the prompt are wanted that a hit leaves out."""
        if self.num_wanted_rows:
            return ()
        context = self.context
        return context.keys(0, len(context.tokens)) if context.images else context.tokens

    def next_keys(self, num_rows: int) -> list[int]:
        """Keys of the next rows."""
        done = self.context.num_computed
        known = self.context.keys(done, min(done + num_rows, len(self.context.tokens)))
        return known + list(self.context.draft_tokens[: num_rows - len(known)])

    @property
    def num_started_tokens(self) -> int:
        """Tokens it had when its rows were first computed, or computed anew on purpose."""
        return max(self.context.num_prompt_tokens, self.context.num_restart_tokens)

    @property
    def is_restart_due(self) -> bool:
        """Whether its model wants all rows computed anew before it goes on."""
        return self.lengths.must_restart(self.num_started_tokens, len(self.context.tokens))

    # What the runner asks

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens given."""
        return self.context.num_prompt_tokens

    @property
    def num_output_tokens(self) -> int:
        """Tokens of the answer so far."""
        return len(self.context.tokens) - self.context.num_prompt_tokens

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
        return self.context.num_scheduled >= self.num_pending and not self.keeps_logits

    @property
    def num_logit_rows(self) -> int:
        """Logit rows wanted of this pass: a run that ends with its last row."""
        first = self.context.num_computed
        stop = first + self.context.num_scheduled
        if self.num_wanted_rows:
            seen = self.num_kept_rows if self.keeps_logits else len(self.prompt_logprobs)
            last_wanted = self.num_prompt_tokens - (0 if self.keeps_logits else 1)
            if max(first, seen) < min(stop, last_wanted):
                return stop - max(first, seen)
        return 1 + len(self.context.draft_tokens) if self.samples_next else 0

    def sampling_row(self, draft_ids: Sequence[int] = ()) -> SamplingRow:
        """The row after all tokens so far and `draft_ids`."""
        from pilotfish.sampling import SamplingRow

        assert self.history is not None
        return SamplingRow.after(
            self.history,
            self.params,
            seed=self.seed,
            draft_ids=draft_ids,
            stop_ids=self.rules.banned_ids,
            request_id=self.request_id,
        )

    # What happens to it

    def keep_logits(self, logits: torch.Tensor) -> None:
        """logits: [n, V] float32, of the next n rows that it keeps; copied."""
        import torch

        if self.kept_logits is None:
            with torch.inference_mode(False):  # it is the caller's
                self.kept_logits = logits.new_empty(self.num_prompt_tokens, logits.shape[1])
        end = self.num_kept_rows + logits.shape[0]
        self.kept_logits[self.num_kept_rows : end] = logits
        self.num_kept_rows = end

    def start(self) -> None:
        """The first pass begins; later calls change nothing."""
        if self._started is None:
            self._started = perf_counter()

    def restart(self) -> None:
        """Its rows were given up because the restart was due: they are computed anew."""
        self.context.num_restart_tokens = len(self.context.tokens)

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
        assert not self.is_finished, "the answer has ended"
        now = perf_counter()
        if self._first_token is None:
            self._first_token = now
        self._last_token = now
        text, taken = "", 0
        is_first = self.num_output_tokens == 0
        reason: FinishReason | None = None
        while reason is None and taken < len(tokens) and not self.is_restart_due:
            added, reason = self._accept_one(tokens[taken])
            text += added
            taken += 1
        records = self._with_texts(logprobs[:taken])
        counters = self.counters
        if counters is not None and not is_first:
            counters = counters.after(len(drafted), min(num_accepted, taken))
        count = self.num_output_tokens
        delta = Delta(
            index=self.index,
            token_ids=tuple(tokens[:taken]),
            text=text,
            logprobs=records if self.params.logprobs is not None else None,
            drafted=tuple(drafted),
            num_accepted=min(num_accepted, taken),
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
        from pilotfish.sampling import TokenHistory

        if self.is_finished:
            return
        tokens, num_prompt = self.context.tokens, self.num_prompt_tokens
        del tokens[num_prompt + self._num_taken :]
        answer = tokens[num_prompt:]
        if self.history is not None:
            self.history = TokenHistory(tokens[:num_prompt], answer)
        if self.new_detokenizer is not None:
            self.detokenizer = self.new_detokenizer()
            for count, token in enumerate(answer, 1):
                if not self.rules.ends_with(token, count):
                    self.detokenizer.add(token, may_stop=self.rules.may_stop(count))
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

    def _accept_one(self, token: int) -> tuple[str, FinishReason | None]:
        self.context.tokens.append(token)
        assert self.history is not None
        self.history.append(token)
        count = self.num_output_tokens
        if self.rules.ends_with(token, count):
            return "", "stop"
        text = ""
        if self.detokenizer is not None:
            text = self.detokenizer.add(token, may_stop=self.rules.may_stop(count))
            if self.detokenizer.stopped_by is not None:
                return text, "stop"
        return text, self.rules.reached_limit(len(self.context.tokens))

    def _flush(
        self, reason: FinishReason, error: str | None
    ) -> tuple[str, FinishReason, str | None]:
        if self.detokenizer is None:
            return "", reason, error
        may_stop = self.rules.may_stop(self.num_output_tokens)
        try:
            text = self.detokenizer.finish(may_stop=may_stop)
        except Exception as failure:  # whatever fails here, the caller must hear of the end
            return "", "error", error or f"{type(failure).__name__}: {failure}"
        if reason == "length" and self.detokenizer.stopped_by is not None:
            reason = "stop"
        return text, reason, error

    def _output(self, reason: FinishReason, error: str | None) -> RequestOutput:
        tokens, num_prompt = self.context.tokens, self.num_prompt_tokens
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
        if self._started is None or first is None or last is None:
            return Timing(load_s=self.load_s)
        return Timing(
            load_s=self.load_s,
            prefill_s=first - self._started,
            decode_s=last - first,
            num_decoded=self.num_output_tokens - 1,
        )
