"""Promises about drafts: none changes a text, and a draft's caches follow the target's.

Knows: drafters that do their worst, and the drafter under test if there is one. Does not know:
how drafts are verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch

from pilotfish.config import CacheConfig, SamplingParams, SpeculativeConfig
from pilotfish.engine import LLM, RequestOutput
from pilotfish.registry import Registry
from pilotfish.sampling import Sampler, SamplingRow, gumbel
from pilotfish.sampling.acceptance import (
    ResidualAcceptance,
    VerifyRequest,
    acceptance_probability,
    residual_law,
)
from pilotfish.speculation import DraftBatch, Proposal, SequentialProposer
from pilotfish.testing import drafters
from pilotfish.testing.promise import NotApplicable, want
from pilotfish.testing.subject import LONG, PAGE_SIZE, Subject

NUM_TOKENS = 13
WIDTH = 3
EXACT = 1e-12
"""Of probabilities in float64 that are equal by definition."""


def no_drafter_changes_a_text(subject: Subject) -> None:
    """Right, wrong, random, silent, out of the vocabulary: tokens and log probabilities stay."""
    prompts, params = _work(subject)
    for dtype in subject.dtypes:
        plain = _answers(subject.llm(dtype), prompts, params)
        right = drafters.known_texts(
            [[*prompt, *tokens] for prompt, (tokens, *_) in zip(prompts, plain, strict=True)]
        )
        scripts = {
            "silent": drafters.silent,
            "repeats": drafters.repeats,
            "random": drafters.random_tokens(subject.vocab_size),
            "out of the vocabulary": drafters.out_of_vocabulary(subject.vocab_size),
            "always right": right,
            "always wrong": drafters.always_wrong(right, subject.vocab_size),
            "right until 2": drafters.right_until(2, right, subject.vocab_size),
        }
        llm = _scripted(subject, dtype, num_pages=40, max_batch_tokens=11, max_batch_size=3)
        for name, script in scripts.items():
            drafters.play(llm, script)
            got = _answers(llm, prompts, params)
            for number, (mine, wanted) in enumerate(zip(got, plain, strict=True)):
                want(
                    mine == wanted,
                    f"{dtype}, request {number} with the drafter {name!r}: {mine}",
                    f"{wanted}, as without a draft",
                )


def right_drafts_count_and_wrong_ones_do_not(subject: Subject) -> None:
    """Drafts that are the target's own tokens are accepted up to the first wrong one, always."""
    prompt = subject.tokens(5)
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    for dtype in subject.dtypes:
        text = subject.llm(dtype).generate(prompt, params)[0].token_ids
        right = drafters.known_texts([[*prompt, *text]])
        llm = _scripted(subject, dtype)
        # Tokens right in each block -> steps for the 12 tokens after the first.
        for place, steps in ((WIDTH, 3), (2, 4), (1, 6), (0, 12)):
            drafters.play(llm, drafters.right_until(place, right, subject.vocab_size))
            [output] = llm.generate(prompt, params)
            counts: Any = output.speculative
            got = counts["steps"]
            want(got == steps, f"{dtype}: {got} steps, {place} of {WIDTH} right", f"{steps}")


def a_failing_drafter_loses_nothing(subject: Subject) -> None:
    """A drafter that raises is heard; the next run gives the same text, and no page is lost."""
    prompts, params = _work(subject)
    plain = _answers(subject.llm(), prompts, params)
    for at in (1, 2, 5):
        llm = _scripted(subject, subject.dtype)
        calls = [0]

        def script(request: Any, at: int = at, calls: list[int] = calls) -> Sequence[int]:
            calls[0] += 1
            return drafters.raises(request) if calls[0] == at else drafters.repeats(request)

        drafters.play(llm, script)
        raised = False
        try:
            llm.generate(prompts, params)
        except drafters.DrafterFailedError:
            raised = True
        want(raised, f"no exception from draft call {at}", "the drafter's own")
        _want_idle(llm, f"after an exception in draft call {at}")
        want(
            _answers(llm, prompts, params) == plain,
            f"other texts after an exception in draft call {at}",
            "those of plain decoding",
        )


def the_draft_changes_no_text(subject: Subject) -> None:
    """With the drafter under test every text is that of plain decoding, with few pages too."""
    prompts, params = _work(subject)
    for dtype in subject.dtypes:
        plain = _answers(subject.llm(dtype), prompts, params)
        for options in ({}, {"num_pages": 24, "max_batch_tokens": 7, "max_batch_size": 3}):
            llm = _drafted(subject, dtype, **options)
            got = _answers(llm, prompts, params)
            for number, (mine, wanted) in enumerate(zip(got, plain, strict=True)):
                want(mine == wanted, f"{dtype}, {options}, request {number}: {mine}", f"{wanted}")
            _want_idle(llm, f"{dtype}, {options}")


def a_warm_prefix_drafts_as_a_cold_one(subject: Subject) -> None:
    """A prefix hit restores the draft's state: the same tokens, drafted and accepted alike."""
    prompt = subject.tokens(3 * PAGE_SIZE + 1)
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    for dtype in subject.dtypes:
        llm = _drafted(subject, dtype)
        for length in (len(prompt), 2 * PAGE_SIZE, LONG):
            ids = subject.tokens(length) if length > len(prompt) else prompt[:length]
            llm.forget_cached_prefixes()
            cold, warm = (llm.generate(ids, params)[0] for _ in range(2))
            for what in ("token_ids", "speculative"):
                got, wanted = getattr(warm, what), getattr(cold, what)
                want(got == wanted, f"{dtype}, {length} tokens warm: {what} {got}", f"{wanted}")


def a_draft_batch_equals_singles(subject: Subject) -> None:
    """What is drafted for a request does not depend on the requests beside it."""
    prompts, params = _work(subject)
    llm = _drafted(subject, subject.dtype)
    llm.forget_cached_prefixes()
    together = [out.speculative for out in llm.generate(prompts, params)]
    for number, (prompt, options) in enumerate(zip(prompts, params, strict=True)):
        llm.forget_cached_prefixes()
        alone = llm.generate(prompt, options)[0].speculative
        want(
            together[number] == alone,
            f"request {number} in a batch: {together[number]}",
            f"{alone}",
        )


def residual_acceptance_keeps_the_law(subject: Subject) -> None:
    """Drafts are drawn from the law they say, and what is committed has the target's, exactly."""
    prompts = [subject.tokens(6), subject.tokens(9, seed=1)]
    params = SamplingParams(temperature=0.9, top_k=8, max_tokens=NUM_TOKENS, seed=3)
    llm = _drafted(subject, subject.dtype, acceptance="residual")
    with _Recorded() as seen:
        llm.generate(prompts, params)
    want(bool(seen.pairs), "no draft was judged", "one at least")
    proposer: Any = llm.proposer
    for p, q, draft, row in seen.pairs:
        if isinstance(proposer, SequentialProposer):
            noise = gumbel(torch.tensor([row.seed]), torch.tensor([row.position]), q.shape[0])[0]
            drawn = int((q.log() + noise).argmax())
            want(drawn == draft, f"{draft} drafted where its own law draws {drawn}", f"{drawn}")
        for other in (q, p):  # a draft of the very law leaves nothing over
            kept = other * acceptance_probability(p, other)
            law = kept + (1 - kept.sum()) * residual_law(p, other)
            gap = float((law - p).abs().max())
            want(gap <= EXACT, f"a law that is off by {gap}", f"at most {EXACT}")


def an_exception_leaves_target_and_draft_equal(subject: Subject) -> None:
    """After an exception before or after a draft call no page is lost or wrong: texts stay."""
    prompts, params = _work(subject)
    plain = _answers(subject.llm(), prompts, params)
    for at in (1, 2, 3):
        for after in (False, True):
            llm = _drafted(subject, subject.dtype)
            proposer: Any = llm.proposer
            proposer.propose = _FaultyOnce(proposer, at, after).propose
            where = f"an exception {'after' if after else 'before'} draft call {at}"
            raised = False
            try:
                llm.generate(prompts, params)
            except drafters.DrafterFailedError:
                raised = True
            want(raised, f"nothing raised from {where}", "the drafter's exception")
            _want_idle(llm, f"after {where}")
            want(
                _answers(llm, prompts, params) == plain,
                f"other texts after {where}",
                "those of plain decoding",
            )


# Parts


class _FaultyOnce:
    """A proposer whose `propose` raises once."""

    def __init__(self, proposer: Any, at: int, after: bool) -> None:
        self._real, self._at, self._after = proposer.propose, at, after
        self._calls = 0

    def propose(self, batch: DraftBatch) -> Sequence[Proposal]:
        """As the real one, but for the one call."""
        self._calls += 1
        hit = self._calls == self._at
        if hit and not self._after:
            raise drafters.DrafterFailedError("planted before a draft call")
        found: Sequence[Proposal] = self._real(batch)
        if hit:
            raise drafters.DrafterFailedError("planted after a draft call")
        return found


class _Recorded:
    """Remembers the pairs of laws that residual acceptance judges while it is entered."""

    def __init__(self) -> None:
        self.pairs: list[tuple[torch.Tensor, torch.Tensor, int, SamplingRow]] = []

    def __enter__(self) -> _Recorded:
        self._real = real = ResidualAcceptance.judge
        pairs, sampler = self.pairs, Sampler()

        def judge(rule: Any, logits: torch.Tensor, request: VerifyRequest) -> list[int]:
            laws = sampler.process_logits(logits, request.rows).double().softmax(-1)
            for place, draft in enumerate(request.drafts):
                q = torch.zeros_like(laws[place])
                q[draft] = 1.0
                if request.laws is not None:
                    q = request.laws[place].double()
                    q /= q.sum()
                pairs.append((laws[place], q, draft, request.rows[place]))
            return real(rule, logits, request)

        ResidualAcceptance.judge = judge  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *_: object) -> None:
        ResidualAcceptance.judge = self._real  # type: ignore[method-assign]


def _work(subject: Subject) -> tuple[list[list[int]], list[SamplingParams]]:
    """Ragged prompts with every kind of option."""
    lengths = (1, 3, PAGE_SIZE, 2 * PAGE_SIZE + 1, 6)
    prompts = [subject.tokens(length, seed=length) for length in lengths]
    edits: dict[str, Any] = {"top_k": 12, "top_p": 0.9, "logprobs": 1}
    edits |= {"repetition_penalty": 1.3, "presence_penalty": 1.0, "frequency_penalty": 1.0}
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.7},
        {"temperature": 1.3},
        {"temperature": 0.0, **edits},
        {"temperature": 1.0, **edits},
    ]
    params = [
        SamplingParams(seed=number, max_tokens=NUM_TOKENS, **kind)
        for number, kind in enumerate(kinds)
    ]
    return prompts, params


def _answers(
    llm: LLM, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
) -> list[tuple[list[int], str, Any]]:
    outputs: list[RequestOutput] = llm.generate(list(prompts), params)
    return [(list(out.token_ids), out.finish_reason, out.logprobs) for out in outputs]


def _want_idle(llm: LLM, where: str) -> None:
    """Nothing is held and the books balance."""
    state = llm.engine.runner.state
    state.check()
    held = state.request_ids
    want(not held, f"{where}: {len(held)} requests hold state", "that none does")


def _scripted(subject: Subject, dtype: str, **options: Any) -> LLM:
    if "verify" not in subject.capabilities:
        raise NotApplicable("the architecture does not offer 'verify'")
    registry = Registry(plugins=(*subject.registry.plugins, drafters.scripted_plugin()))
    speculative = SpeculativeConfig(method=drafters.METHOD, width=WIDTH)
    return _llm(subject, dtype, registry, None, speculative, **options)


def _drafted(subject: Subject, dtype: str, *, acceptance: Any = None, **options: Any) -> LLM:
    if subject.speculative is None:
        raise NotApplicable("no drafter was given: --draft D --speculative METHOD")
    speculative = attrs.evolve(subject.speculative, width=WIDTH)
    if acceptance is not None:
        speculative = attrs.evolve(speculative, acceptance=acceptance)
    return _llm(subject, dtype, subject.registry, subject.draft, speculative, **options)


def _llm(
    subject: Subject,
    dtype: str,
    registry: Registry,
    draft: str | None,
    speculative: SpeculativeConfig,
    *,
    num_pages: int = 256,
    **options: Any,
) -> LLM:
    return LLM(
        subject.model,
        draft=draft,
        speculative=speculative,
        dtype=dtype,
        device=subject.device,
        backend=subject.backend,
        registry=registry,
        cache=CacheConfig(page_size_tokens=PAGE_SIZE, num_pages=num_pages),
        **options,
    )
