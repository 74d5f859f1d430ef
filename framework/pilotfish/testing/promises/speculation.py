"""Promises about drafts: none changes a text, and a draft's caches follow the target's.

Knows: drafters that do their worst, and the drafter under test if there is one. Does not know:
how drafts are verified.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from pilotfish.config import SamplingParams
from pilotfish.engine import LLM
from pilotfish.testing import drafters, listeners
from pilotfish.testing.drafted import (
    NOTHING,
    NUM_TOKENS,
    WIDTH,
    Work,
    all_kinds,
    scripted,
    texts,
    under_test,
    want_idle,
    want_own_drafts,
    want_same_answers,
)
from pilotfish.testing.listeners import Heard
from pilotfish.testing.outcome import NotKnown, want, want_raised
from pilotfish.testing.subject import LONG, PAGE_SIZE, Subject

DEPARTURES = 4
LEARNS = "; a drafter that learns from other requests says `learns_across_requests` in its config"


def no_drafter_changes_a_text(subject: Subject) -> None:
    """Right, wrong, random, silent, out of the vocabulary: tokens and log probabilities stay."""
    prompts, params = all_kinds(subject)
    for dtype in subject.dtypes:
        plain = subject.llm(dtype).generate(prompts, params)
        right = drafters.known_texts(
            [[*prompt, *out.token_ids] for prompt, out in zip(prompts, plain, strict=True)]
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
        llm = scripted(subject, dtype, num_pages=40, max_batch_tokens=13, max_batch_size=3)
        for name, script in scripts.items():
            drafters.play(llm, script)
            got = llm.generate(prompts, params)
            want_same_answers(got, plain, f"in {dtype} with the drafter {name!r}")


def right_drafts_count_and_wrong_ones_do_not(subject: Subject) -> None:
    """Drafts that are the target's own tokens are accepted up to the first wrong one, always."""
    prompt = subject.tokens(5 + subject.longest_restart)  # a restart takes a step of its own
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    for dtype in subject.dtypes:
        text = subject.llm(dtype).generate(prompt, params)[0].token_ids
        right = drafters.known_texts([[*prompt, *text]])
        llm = scripted(subject, dtype)
        # Tokens right in each block -> steps for the 12 tokens after the first.
        for place, steps in ((WIDTH, 3), (2, 4), (1, 6), (0, 12)):
            drafters.play(llm, drafters.right_until(place, right, subject.vocab_size))
            [output] = llm.generate(prompt, params)
            counts: Any = output.speculative
            got = counts["steps"]
            want(got == steps, f"{dtype}: {got} steps, {place} of {WIDTH} right", f"{steps}")


def a_failing_drafter_loses_nothing(subject: Subject) -> None:
    """A drafter that raises is heard; the next run gives the same text, and no page is lost."""
    prompts, params = all_kinds(subject)
    plain = subject.llm().generate(prompts, params)
    for at in (1, 2, 5):
        llm = scripted(subject, subject.dtype)
        drafters.play(llm, drafters.repeats)
        listeners.fail_once(llm.proposer, at, after=False)
        failed, where = drafters.DrafterFailedError, f"after an exception in draft call {at}"
        with want_raised(failed, f"no exception from draft call {at}", "the drafter's own"):
            llm.generate(prompts, params)
        want_idle(llm, where)
        want_same_answers(llm.generate(prompts, params), plain, where)


def the_draft_changes_no_text(subject: Subject) -> None:
    """With the drafter under test every text is that of plain decoding, with few pages too."""
    prompts, params = all_kinds(subject)
    for dtype in subject.dtypes:
        plain = subject.llm(dtype).generate(prompts, params)
        for options in ({}, {"num_pages": 24, "max_batch_tokens": 7, "max_batch_size": 3}):
            llm = under_test(subject, dtype, **options)
            proposals = listeners.Proposals(llm)
            got = llm.generate(prompts, params)
            want(bool(proposals.seen), f"{dtype}, {options}: {NOTHING}", "something")
            want_same_answers(got, plain, f"in {dtype} with the drafter, {options or 'much room'}")
            want_idle(llm, f"{dtype}, {options}")


def the_draft_is_what_was_asked_for(subject: Subject) -> None:
    """At most `width` tokens are proposed, ids of the target, of which no more is asked than said.

    What is asked of a target is what the `needs` of the SpeculatorSpec say.
    """
    prompts, params = all_kinds(subject)
    llm = under_test(subject, subject.dtype)
    proposals = listeners.Proposals(llm)
    llm.generate(prompts, params)
    prepared = subject.prepared(subject.dtype, draft=subject.draft, speculative=subject.speculative)
    spec, draft = prepared.route.speculator, prepared.draft
    asked = set(proposals.asked)
    if draft is not None and draft.config.aux_hidden_state_layers:
        asked.add("aux_hidden_states")
    if spec is not None and asked - spec.needs:
        want(
            False,
            f"{type(llm.proposer).__name__} asks its target for {sorted(asked)}, and the `needs` "
            f"of its SpeculatorSpec are {sorted(spec.needs)}",
            "all that is asked among the `needs`, so that a target without it is refused by name",
        )
    want(bool(proposals.seen), NOTHING, "something")
    for got, wanted in proposals.excess:
        want(False, got, wanted)


def a_warm_prefix_drafts_as_a_cold_one(subject: Subject) -> None:
    """A prefix hit restores the draft's state: the same tokens are drafted, and committed.

    Warmed with the same prompt, and with one that departs from it right at a page's end.
    """
    want_own_drafts(subject)
    for dtype in subject.dtypes:
        llm = under_test(subject, dtype)
        drafted = 0
        for length in (3 * PAGE_SIZE + 1, 2 * PAGE_SIZE, LONG):
            for work in texts(subject, length):
                drafted += _want_warm_as_cold(llm, work, work, f"{dtype}, {length} tokens")
        for seed in range(DEPARTURES):
            length = (2 + seed % 2) * PAGE_SIZE
            for work, other in zip(
                texts(subject, length + 1, seed), _departing(subject, length, seed), strict=True
            ):
                where = f"{dtype}, {length + 1} tokens, after a text with another last one"
                drafted += _want_warm_as_cold(llm, work, other, where)
        if not drafted:
            raise NotKnown(NOTHING)


def _departing(subject: Subject, length: int, seed: int) -> list[Work]:
    """The same `texts` of so many tokens and one more, and that one is another."""
    made = []
    for work in texts(subject, length + 1, seed):
        known = [token for token in subject.tokens(8, seed=5) if token != work.prompt[-1]]
        made.append(Work(prompt=[*work.prompt[:-1], known[0]], params=work.params))
    return made


def _want_warm_as_cold(llm: LLM, work: Work, before: Work, where: str) -> int:
    """A text by itself, then after another one; how often something was drafted."""
    proposals = listeners.Proposals(llm)
    try:
        got, drafts, rows = [], [], []
        for first in (None, before):
            llm.forget_cached_prefixes()
            if first is not None:
                llm.generate(first.prompt, first.params)
            proposals.clear()
            got.append(llm.generate(work.prompt, work.params)[0].token_ids)
            drafts.append(list(proposals.seen))
            rows.append(proposals.num_rows)
    finally:
        proposals.stop()
    want(rows[1] < rows[0], f"{where}: {rows[1]} rows computed warm", f"less than {rows[0]}")
    want(got[1] == got[0], f"{where}, warm: {got[1]}", f"{got[0]}")
    for warm, cold in zip_longest(*reversed(drafts)):
        want(
            warm == cold,
            f"{where}, warm: {_said(warm)}",
            f"{_said(cold)}, as cold: where a draft's row depends on the next token its config "
            f"says `lookahead` 1{LEARNS}",
        )
    return len(drafts[0])


def _said(heard: Heard | None) -> str:
    """A proposal in words."""
    if heard is None:
        return "no more drafts"
    return f"{list(heard[1])} drafted after {len(heard[0])} tokens"


def a_draft_batch_equals_singles(subject: Subject) -> None:
    """What is drafted for a request does not depend on the requests beside it."""
    want_own_drafts(subject)
    prompts, params = all_kinds(subject)
    llm = under_test(subject, subject.dtype)
    proposals = listeners.Proposals(llm)
    llm.forget_cached_prefixes()
    llm.generate(prompts, params)
    together = set(proposals.seen)
    if not together:
        raise NotKnown(NOTHING)
    for number, (prompt, options) in enumerate(zip(prompts, params, strict=True)):
        llm.forget_cached_prefixes()
        proposals.clear()
        llm.generate(prompt, options)
        alone = set(proposals.seen)
        for odd in sorted(alone - together):
            said = f"request {number} alone: {_said(odd)}"
            want(False, said, f"only what is drafted in a batch{LEARNS}")


def an_exception_leaves_target_and_draft_equal(subject: Subject) -> None:
    """After an exception around a draft call the other requests go on, their texts unchanged."""
    prompts, params = all_kinds(subject)
    plain = subject.llm().generate(prompts, params)
    for at in (1, 2, 3):
        for after in (False, True):
            llm = under_test(subject, subject.dtype)
            where = f"an exception {'after' if after else 'before'} draft call {at}"
            streams = [llm.stream(p, o) for p, o in zip(prompts, params, strict=True)]
            got: list[list[int]] = [list(next(stream).token_ids) for stream in streams]
            listeners.fail_once(llm.proposer, at, after=after)
            broken = 0
            for number, stream in enumerate(streams):
                try:
                    for delta in stream:
                        got[number] += delta.token_ids
                except drafters.DrafterFailedError:
                    broken += 1
                    got[number] = list(plain[number].token_ids)
            want(broken == 1, f"{broken} streams that raised after {where}", "the one that stepped")
            want(
                got == [list(output.token_ids) for output in plain],
                f"other texts after {where}",
                "those of plain decoding",
            )
            want_idle(llm, f"after {where}")
