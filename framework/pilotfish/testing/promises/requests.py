"""Promises about requests: each has one terminal event, and what cannot be served is refused.

Knows: `LLM`. Does not know: scheduling.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from pilotfish.config import SamplingParams
from pilotfish.errors import UserError
from pilotfish.protocols import NO_LIMIT
from pilotfish.testing.outcome import NotApplicable, want, want_raised
from pilotfish.testing.subject import Subject

CONTEXT = 24


def every_request_ends_once(subject: Subject) -> None:
    """Every request has exactly one end, the refused ones too, and says why; nothing stays held."""
    greedy = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    prompts = [
        subject.tokens(5),
        subject.tokens(CONTEXT),
        [],
        subject.tokens(CONTEXT - 1),
        [subject.vocab_size],
        subject.tokens(3 * CONTEXT),
        subject.tokens(1),
    ]
    reasons = ["length", "error", "error", "length", "error", "error", "length"]
    with subject.llm(max_length=CONTEXT, max_batch_tokens=6) as llm:
        outputs = llm.generate(prompts, greedy, progress=False)
        got = [output.finish_reason for output in outputs]
        want(got == reasons, f"ends {got}", f"{reasons}")
        for output in outputs:
            named = bool(output.error) == (output.finish_reason == "error")
            told = f"the error {output.error!r} of request {output.index}"
            want(named, told, "one that says why")
        want(len(outputs[3].token_ids) == 1, "an answer past the context", "one token")
        deltas = list(llm.stream(prompts[0], greedy))
        ends = [delta.finish_reason for delta in deltas if delta.finish_reason is not None]
        want(ends == ["length"], f"terminal events {ends} of a stream", "['length'], once")
        streamed = [token for delta in deltas for token in delta.token_ids]
        want(streamed == list(outputs[0].token_ids), f"streamed {streamed}", "the same tokens")
        for prompt in (prompts[1], prompts[4]):
            with _want_refused(f"a single prompt of {len(prompt)} tokens"):
                llm.generate(prompt, greedy)


def limits_are_refused(subject: Subject) -> None:
    """A context that the model cannot reach is refused before weights are read."""
    if subject.max_seq_len >= NO_LIMIT:
        raise NotApplicable("the model has no limit of its own")
    with _want_refused("max_length of 2**40"):
        subject.prepared(subject.dtype, max_length=1 << 40)


def _want_refused(what: str) -> AbstractContextManager[None]:
    return want_raised(UserError, f"{what} was accepted", "a UserError that says why")
