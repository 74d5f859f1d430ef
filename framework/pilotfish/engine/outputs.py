"""What a caller gets: RequestOutput for a whole answer, Delta for a piece of a streamed one.

Knows: the fields and their JSON. Does not know: how they came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import attrs

from pilotfish.config.peer_attributes import AnswersAsOutput
from pilotfish.errors import UserError

if TYPE_CHECKING:
    from pilotfish.sampling import TokenLogprobs

FinishReason = Literal["stop", "length", "abort", "error"]


@attrs.frozen(kw_only=True)
class Timing:
    """Seconds on the wall clock.

    load_s: of the model, once. prefill_s: from the request's first pass to its first token.
    decode_s: from the first token to the last one. num_decoded: tokens that came in decode_s.
    """

    load_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    num_decoded: int = 0

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens after the first one, per second; 0 where there were none."""
        return self.num_decoded / self.decode_s if self.decode_s > 0 else 0.0

    def to_json(self) -> dict[str, float]:
        """The record as plain data."""
        return {
            "load_s": self.load_s,
            "prefill_s": self.prefill_s,
            "decode_s": self.decode_s,
            "decode_tokens_per_s": self.decode_tokens_per_s,
        }


@attrs.frozen(kw_only=True, repr=False)
class RequestOutput(AnswersAsOutput):
    """One answer, the first of those that were asked for.

    index: of the prompt in the call. sample: of the answer among those to its prompt.
    prompt_token_ids: as run, special tokens included.
    token_ids: of the answer, the token that ended it included. text: of the answer, without that
        token, cut at the stop string; "" where the checkpoint has no tokenizer.
    finish_reason: "stop" (an end token, a stop id or a stop string), "length" (max_tokens or the
        context), "abort" (taken back by the caller) or "error".
    logprobs: one record a token of `token_ids`; None when not asked for.
    prompt_logprobs: one record a prompt token, None for the first; None when not asked for.
    seed: of the request's noise: given, or drawn for it.
    speculative: counters of speculation; None without.
    error: what was wrong, for finish_reason "error".
    others: the other answers to the prompt, where `SamplingParams.n` asked for more than one.
    """

    index: int
    prompt_token_ids: Sequence[int]
    token_ids: Sequence[int]
    text: str
    finish_reason: FinishReason
    logprobs: Sequence[TokenLogprobs] | None = None
    prompt_logprobs: Sequence[TokenLogprobs | None] | None = None
    seed: int | None = None
    speculative: Mapping[str, Any] | None = None
    timing: Timing = attrs.field(factory=Timing)
    error: str | None = None
    sample: int = 0
    others: Sequence[RequestOutput] = ()

    @property
    def outputs(self) -> tuple[RequestOutput, ...]:
        """All answers to the prompt: this one and the others."""
        return (self, *self.others)

    def __repr__(self) -> str:
        """What a person looks for first; the fields have the rest."""
        shown = [f"text={self.text!r}"] if self.text or not self.token_ids else []
        shown += [f"finish_reason={self.finish_reason!r}", f"token_ids={_few(self.token_ids)}"]
        if self.error is not None:
            shown.append(f"error={self.error!r}")
        if self.others:
            shown.append(f"others={len(self.others)}")
        return f"RequestOutput({', '.join(shown)})"

    def _repr_html_(self) -> str:
        """For notebooks: the text, and how it ended."""
        from html import escape

        ended = f"{self.finish_reason}: {self.error}" if self.error else self.finish_reason
        count = f"{len(self.token_ids)} tokens, {ended}"
        return (
            f'<div><div style="white-space: pre-wrap">{escape(self.text)}</div>'
            f'<div style="opacity: 0.6">{escape(count)}</div></div>'
        )

    @classmethod
    def refused(
        cls, index: int, prompt_token_ids: Any, seed: int | None, error: UserError
    ) -> RequestOutput:
        """The output of a request that never ran. prompt_token_ids: shown if it is a list."""
        return cls(
            index=index,
            prompt_token_ids=prompt_token_ids if isinstance(prompt_token_ids, list | tuple) else [],
            token_ids=[],
            text="",
            finish_reason="error",
            seed=seed,
            error=str(error),
        )

    def to_json(self) -> dict[str, Any]:
        """The record as plain data; log probabilities and the error only where there are any."""
        found: dict[str, Any] = {
            "index": self.index,
            "prompt_token_ids": list(self.prompt_token_ids),
            "token_ids": list(self.token_ids),
            "text": self.text,
            "finish_reason": self.finish_reason,
            "seed": self.seed,
            "speculative": None if self.speculative is None else dict(self.speculative),
            "timing": self.timing.to_json(),
        }
        if self.logprobs is not None:
            found["logprobs"] = [_plain(record) for record in self.logprobs]
        if self.prompt_logprobs is not None:
            found["prompt_logprobs"] = [_plain(record) for record in self.prompt_logprobs]
        if self.error is not None:
            found["error"] = self.error
        if self.sample or self.others:
            found["sample"] = self.sample
        if self.others:
            found["others"] = [other.to_json() for other in self.others]
        return found


@attrs.frozen(kw_only=True)
class Delta:
    """What one step added to a streamed answer.

    token_ids: new tokens. text: text that is now certain; it may come later than its tokens.
    logprobs: one record a new token; None when not asked for.
    drafted: tokens that the step verified; the first num_accepted of them begin token_ids.
    finish_reason, output: of the last delta of an answer only; there is exactly one such.
    """

    index: int
    token_ids: Sequence[int] = ()
    text: str = ""
    logprobs: Sequence[TokenLogprobs] | None = None
    drafted: Sequence[int] = ()
    num_accepted: int = 0
    finish_reason: FinishReason | None = None
    output: RequestOutput | None = None


def _plain(record: TokenLogprobs | None) -> dict[str, Any] | None:
    if record is None:
        return None
    texts = record.top_texts or (None,) * len(record.top)
    return {
        "token_id": record.token_id,
        **({} if record.text is None else {"text": record.text}),
        "logprob": record.logprob,
        "rank": record.rank,
        "top": [
            {"token_id": token, **({} if text is None else {"text": text}), "logprob": logprob}
            for (token, logprob), text in zip(record.top, texts, strict=True)
        ],
    }


def _few(ids: Sequence[int]) -> str:
    """A list of ids, cut where it is long."""
    first = ", ".join(map(str, ids[:8]))
    return f"[{first}]" if len(ids) <= 8 else f"[{first}, ... {len(ids)} in all]"
