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
from pilotfish.sampling import Sampler, gumbel
from pilotfish.speculation import SequentialProposer
from pilotfish.testing import drafters, listeners
from pilotfish.testing.promise import NotApplicable, want
from pilotfish.testing.subject import LONG, PAGE_SIZE, Subject

NUM_TOKENS = 13
WIDTH = 3
NEAR = 1e-9
"""Of probabilities in float64 that are equal by definition, found by bisection."""
ROUNDING = 1e-12
"""A draft's law may exceed the target's everywhere by so little: what is left of it is nothing."""


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
        llm = _scripted(subject, dtype, num_pages=40, max_batch_tokens=13, max_batch_size=3)
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
    prompt = subject.tokens(5 + subject.longest_restart)  # a restart takes a step of its own
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
            proposals = listeners.Proposals(llm)
            got = _answers(llm, prompts, params)
            want(bool(proposals.seen), f"{dtype}, {options}: nothing was drafted", "something")
            for number, (mine, wanted) in enumerate(zip(got, plain, strict=True)):
                want(mine == wanted, f"{dtype}, {options}, request {number}: {mine}", f"{wanted}")
            _want_idle(llm, f"{dtype}, {options}")


def the_draft_is_what_was_asked_for(subject: Subject) -> None:
    """At most `width` tokens are proposed, all of them ints and ids of the target."""
    prompts, params = _work(subject)
    llm = _drafted(subject, subject.dtype)
    proposals = listeners.Proposals(llm)
    llm.generate(prompts, params)
    want(bool(proposals.seen), "nothing was drafted", "something")
    for got, wanted in proposals.excess:
        want(False, got, wanted)


def a_warm_prefix_drafts_as_a_cold_one(subject: Subject) -> None:
    """A prefix hit restores the draft's state: the same tokens are drafted, and committed."""
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    for dtype in subject.dtypes:
        llm = _drafted(subject, dtype)
        proposals = listeners.Proposals(llm)
        for length in (3 * PAGE_SIZE + 1, 2 * PAGE_SIZE, LONG):
            prompt = subject.tokens(length)
            llm.forget_cached_prefixes()
            texts, drafts, rows = [], [], []
            for _ in range(2):
                proposals.clear()
                texts.append(llm.generate(prompt, params)[0].token_ids)
                drafts.append(list(proposals.seen))
                rows.append(proposals.num_rows)
            where = f"{dtype}, {length} tokens"
            want(
                rows[1] < rows[0], f"{where}: {rows[1]} rows computed warm", f"less than {rows[0]}"
            )
            want(texts[1] == texts[0], f"{where} warm: {texts[1]}", f"{texts[0]}")
            want(drafts[1] == drafts[0], f"{where} warm: drafts {drafts[1]}", f"{drafts[0]}")


def a_draft_batch_equals_singles(subject: Subject) -> None:
    """What is drafted for a request does not depend on the requests beside it."""
    prompts, params = _work(subject)
    llm = _drafted(subject, subject.dtype)
    proposals = listeners.Proposals(llm)
    llm.forget_cached_prefixes()
    llm.generate(prompts, params)
    together = set(proposals.seen)
    for number, (prompt, options) in enumerate(zip(prompts, params, strict=True)):
        llm.forget_cached_prefixes()
        proposals.clear()
        llm.generate(prompt, options)
        alone = set(proposals.seen)
        odd = sorted(alone - together)[:2]
        want(not odd, f"request {number} alone: {odd} drafted", "only what is drafted in a batch")


def residual_acceptance_keeps_the_law(subject: Subject) -> None:
    """Drafts are drawn from the law they say, and what is committed has the target's, exactly."""
    prompts = [subject.tokens(6), subject.tokens(9, seed=1)]
    params = SamplingParams(temperature=0.9, top_k=8, max_tokens=NUM_TOKENS, seed=3)
    llm = _drafted(subject, subject.dtype, acceptance="residual")
    with listeners.Judged() as judged:
        llm.generate(prompts, params)
    want(bool(judged.seen), "no draft was judged", "one at least")
    proposer: Any = llm.proposer
    for _, request in judged.seen:
        row, laws = request.rows[0], request.laws
        if laws is not None and isinstance(proposer, SequentialProposer):
            noise = gumbel(torch.tensor([row.seed]), torch.tensor([row.position]), laws.shape[1])
            drawn, draft = int((laws[0].log() + noise[0]).argmax()), request.drafts[0]
            want(drawn == draft, f"{draft} drafted where its own law draws {drawn}", f"{drawn}")
    p = Sampler().process_logits(judged.seen[0][0], judged.seen[0][1].rows).double().softmax(-1)[0]
    for q in (
        p,
        p * (1 + ROUNDING),
        p.flip(0),
        torch.ones_like(p) / len(p),
        torch.eye(len(p)).double()[int(p.argmax())],
    ):
        law = judged.committed_law(p, q)
        gap = float((law - p).abs().max())
        want(gap <= NEAR, f"a committed token whose law is off by {gap:.2g}", f"at most {NEAR:.0e}")


def an_exception_leaves_target_and_draft_equal(subject: Subject) -> None:
    """After an exception around a draft call the other requests go on, their texts unchanged."""
    prompts, params = _work(subject)
    plain = _answers(subject.llm(), prompts, params)
    for at in (1, 2, 3):
        for after in (False, True):
            llm = _drafted(subject, subject.dtype)
            where = f"an exception {'after' if after else 'before'} draft call {at}"
            streams = [llm.stream(p, o) for p, o in zip(prompts, params, strict=True)]
            got: list[list[int]] = [list(next(stream).token_ids) for stream in streams]
            proposer: Any = llm.proposer
            proposer.propose = listeners.FaultyOnce(proposer, at, after).propose
            broken = 0
            for number, stream in enumerate(streams):
                try:
                    for delta in stream:
                        got[number] += delta.token_ids
                except drafters.DrafterFailedError:
                    broken += 1
                    got[number] = plain[number][0]
            want(broken == 1, f"{broken} streams that raised after {where}", "the one that stepped")
            want(
                got == [tokens for tokens, *_ in plain],
                f"other texts after {where}",
                "those of plain decoding",
            )
            _want_idle(llm, f"after {where}")


# Parts


def _work(subject: Subject) -> tuple[list[list[int]], list[SamplingParams]]:
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
    return prompts, params


def _answers(
    llm: LLM, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
) -> list[tuple[list[int], str, Any]]:
    outputs: list[RequestOutput] = llm.generate(list(prompts), params)
    return [
        (list(out.token_ids), out.finish_reason, (out.logprobs, out.prompt_logprobs))
        for out in outputs
    ]


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
    prepared = subject.prepared(dtype, draft=subject.draft, speculative=subject.speculative)
    assert prepared.draft is not None
    most = prepared.draft.config.max_width
    speculative = attrs.evolve(
        subject.speculative,
        width=WIDTH if most is None else min(WIDTH, most),
        acceptance=acceptance or "coupled",
        thinking_tokens=None,
    )
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
