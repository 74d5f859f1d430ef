"""What promises about drafts run: an engine with a drafter, and texts that make it draft.

Knows: prompts and options that every kind of drafter has something to say to. Does not know: what
is promised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from pilotfish.config import SamplingParams, SpeculativeConfig
from pilotfish.engine import LLM, RequestOutput
from pilotfish.errors import StateError
from pilotfish.registry import Registry
from pilotfish.testing import drafters
from pilotfish.testing.compare import want_same_answer
from pilotfish.testing.outcome import Broken, NotApplicable, want
from pilotfish.testing.subject import PAGE_SIZE, Subject

NUM_TOKENS = 13
WIDTH = 3
NOTHING = "nothing was drafted, for texts that repeat themselves too"
_FORCED = 100.0
"""Added to a logit: no other token comes."""


@attrs.frozen(kw_only=True)
class Work:
    """A prompt and how it goes on."""

    prompt: list[int]
    params: SamplingParams


def echo(subject: Subject, length: int, seed: int = 0, **options: Any) -> Work:
    """A text of three tokens alone, prompt and answer, so that its beginnings come again and again.

    For drafters that copy: of random tokens they have seen none before.
    """
    first, second, third = subject.tokens(3, seed=77 + seed)
    # Every pair of the three, then the same once more.
    pairs = [first, first, second, second, third, third, first, third, second]
    options = {"seed": seed, "max_tokens": NUM_TOKENS, "ignore_eos": True, **options}
    params = SamplingParams(logit_bias=dict.fromkeys((first, second, third), _FORCED), **options)
    return Work(prompt=(pairs * (length // len(pairs) + 1))[:length], params=params)


def texts(subject: Subject, length: int, seed: int = 0) -> Iterator[Work]:
    """A greedy answer to any tokens, and one to a text that repeats itself."""
    greedy = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    yield Work(prompt=subject.tokens(length, seed), params=greedy)
    yield echo(subject, length, seed, temperature=0)


def all_kinds(subject: Subject) -> tuple[list[list[int]], list[SamplingParams]]:
    """Ragged prompts with every kind of option that cuts or changes an answer."""
    lengths = (1, 3, PAGE_SIZE, 2 * PAGE_SIZE + 1, 6, 2, 5)
    prompts = [subject.tokens(length, seed=length) for length in lengths]
    ids = subject.tokens(24, seed=99)
    edits: dict[str, Any] = {"top_k": 12, "top_p": 0.9, "logprobs": 1, "logit_bias": {ids[0]: 2.0}}
    edits |= {"repetition_penalty": 1.3, "presence_penalty": 1.0, "frequency_penalty": 1.0}
    stops: dict[str, Any] = {"stop_token_ids": ids, "prompt_logprobs": 0}
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.7},
        {"temperature": 1.3},
        {"temperature": 0.0, **edits},
        {"temperature": 1.0, **edits},
        {"temperature": 1.3, **stops},
        {"temperature": 1.3, "min_tokens": 6, **stops},
    ]
    params = [
        SamplingParams(seed=number, max_tokens=NUM_TOKENS, **kind)
        for number, kind in enumerate(kinds)
    ]
    repeats = echo(subject, 4 * PAGE_SIZE + 1, temperature=1.0)
    return [*prompts, repeats.prompt], [*params, repeats.params]


def want_same_answers(
    got: Sequence[RequestOutput], wanted: Sequence[RequestOutput], where: str
) -> None:
    """Raises Broken naming the first request whose answer is not that of plain decoding."""
    for number, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
        want_same_answer(ours, theirs, f"request {number} {where}", "as without a draft")


def want_idle(llm: LLM, where: str) -> None:
    """Nothing is held and the books balance."""
    state = llm.engine.runner.state
    try:
        state.check()
    except StateError as error:
        raise Broken(f"{where}: {error}", "books that balance") from error
    held = state.request_ids
    want(not held, f"{where}: {len(held)} requests hold state", "that none does")


def scripted(subject: Subject, dtype: str, **options: Any) -> LLM:
    """With a drafter of the kit's own. Raises NotApplicable for a target that verifies nothing."""
    if "verify" not in subject.capabilities:
        raise NotApplicable("the architecture does not offer 'verify'")
    registry = Registry(plugins=(*subject.registry.plugins, drafters.scripted_plugin()))
    speculative = SpeculativeConfig(method=drafters.METHOD, width=WIDTH)
    return subject.llm(dtype, registry=registry, speculative=speculative, **options)


def under_test(subject: Subject, dtype: str, *, acceptance: Any = None, **options: Any) -> LLM:
    """With the subject's drafter. Raises NotApplicable where none was given."""
    config = _config(subject, dtype)
    assert subject.speculative is not None
    speculative = attrs.evolve(
        subject.speculative,
        width=WIDTH if config.max_draft_tokens is None else min(WIDTH, config.max_draft_tokens),
        acceptance=acceptance or "coupled",
        thinking_tokens=None,
    )
    return subject.llm(dtype, draft=subject.draft, speculative=speculative, **options)


def want_own_drafts(subject: Subject) -> None:
    """Raises NotApplicable where what is drafted for a request may depend on other requests."""
    if getattr(_config(subject, subject.dtype), "learns_across_requests", False):
        raise NotApplicable("the drafter learns across requests, as its config says")


def _config(subject: Subject, dtype: str) -> Any:
    if subject.speculative is None:
        raise NotApplicable("no drafter was given: --draft D --speculative METHOD")
    prepared = subject.prepared(dtype, draft=subject.draft, speculative=subject.speculative)
    assert prepared.draft is not None
    return prepared.draft.config
