"""Speculation changes no text, whoever drafts and however work is cut; its caches stay right."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.test_engine_faults import PlantedError, check_lengths, planted
from pilotfish.config import SamplingParams
from pilotfish.engine.length_rules import LengthRules
from pilotfish.errors import PilotfishError
from pilotfish.sampling import Sampler
from pilotfish.speculation import Proposal
from pilotfish.speculation.width import AdaptiveWidth, FixedWidth, ScheduledWidth
from pilotfish.state import StateManager
from pilotfish.testing import drafters
from speculation.toy_draft import ToyDraft, ToyShiftedDraft, drafting
from support.engine_strategies import MAX_SEQ_LEN, Job, jobs, sizes, token_lists
from support.toy_model import VOCAB, Drafting, ToyEngine, ToyModel, naive_answer, output_of

KINDS: tuple[type[ToyDraft], ...] = (ToyDraft, ToyShiftedDraft)


def naive_answers(work: list[Job], max_seq_len: int = MAX_SEQ_LEN) -> list[Any]:
    return [naive_answer(*job, max_seq_len=max_seq_len) for job in work]


def check_answers(outputs: list[Any], wanted: list[Any]) -> None:
    found = [(list(one.token_ids), one.text, one.finish_reason) for one in outputs]
    assert found == wanted


def policies() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.integers(1, 6).map(FixedWidth),
        st.just({1: 5, 2: 2, 4: 0}).map(ScheduledWidth),
        st.integers(1, 8).map(AdaptiveWidth),
    )


@settings(max_examples=120)
@given(
    work=jobs(),
    size=sizes(),
    kind=st.sampled_from(KINDS),
    wrong=st.sampled_from([0, 1, 2, 3, 5]),
    policy=policies(),
    limit=st.sampled_from([None, 1, 4, 9, 20]),
)
def test_text_and_caches_are_right_with_any_draft_in_any_mixture(
    *,
    work: list[Job],
    size: dict[str, Any],
    kind: type[ToyDraft],
    wrong: int,
    policy: Any,
    limit: int | None,
) -> None:
    """Penalties, bias, stops, limits, preemption, prefix hits; twice, the second time warm."""
    draft = kind(wrong_one_in=wrong, max_positions=limit)
    engine = ToyEngine(drafting=drafting(draft, policy=policy), **size)
    wanted = naive_answers(work)
    for _ in range(2):
        outputs = engine.run(work)
        check_answers(outputs, wanted)
        if not wrong:
            for output in outputs:
                assert output.speculative is not None
                missed = output.speculative["drafted"] - output.speculative["accepted"]
                assert missed == 0 or output.finish_reason == "stop"  # drafted past its end
    assert draft.broken == 0


@settings(max_examples=60)
@given(work=jobs(4), size=sizes(), kind=st.sampled_from(KINDS), wrong=st.sampled_from([0, 2]))
def test_log_probabilities_are_those_of_plain_decoding(
    work: list[Job], size: dict[str, Any], kind: type[ToyDraft], wrong: int
) -> None:
    plain = ToyEngine(**size).run(work)
    engine = ToyEngine(drafting=drafting(kind(wrong_one_in=wrong)), **size)
    for want, got in zip(plain, engine.run(work), strict=True):
        assert got.logprobs == want.logprobs
        assert got.prompt_logprobs == want.prompt_logprobs


SCRIPTS = ("silent", "repeats", "random", "out of vocabulary", "right", "wrong", "right until 2")


def script(name: str, texts: list[list[int]]) -> drafters.Script:
    right = drafters.known_texts(texts)
    return {
        "silent": drafters.silent,
        "repeats": drafters.repeats,
        "random": drafters.random_tokens(VOCAB),
        "out of vocabulary": drafters.out_of_vocabulary(VOCAB),
        "right": right,
        "wrong": drafters.always_wrong(right, VOCAB),
        "right until 2": drafters.right_until(2, right, VOCAB),
    }[name]


@pytest.mark.parametrize("name", SCRIPTS)
@settings(max_examples=25)
@given(work=jobs(), size=sizes(), policy=policies())
def test_no_adversary_changes_a_text(
    name: str, work: list[Job], size: dict[str, Any], policy: Any
) -> None:
    wanted = naive_answers(work)
    texts = [[*prompt, *tokens] for (prompt, _), (tokens, _, _) in zip(work, wanted, strict=True)]
    proposer = drafters.ScriptedProposer()
    proposer.script = script(name, texts)
    engine = ToyEngine(drafting=Drafting(proposer=proposer, policy=policy), **size)
    check_answers(engine.run(work), wanted)


def one(max_tokens: int = 24, **options: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, **options)


def run_scripted(name: str, width: int = 3) -> dict[str, Any]:
    job: Job = ([1, 2, 3], one())
    tokens = naive_answer(*job)[0]
    proposer = drafters.ScriptedProposer()
    proposer.script = script(name, [[*job[0], *tokens]])
    engine = ToyEngine(drafting=Drafting(proposer=proposer, policy=FixedWidth(width)))
    [output] = engine.run([job])
    assert list(output.token_ids) == tokens
    assert output.speculative is not None
    return dict(output.speculative)


def test_the_counters_count() -> None:
    """23 tokens after the first; width 3: five steps of four, one of three."""
    right = run_scripted("right")
    assert (right["steps"], right["drafted"], right["accepted"]) == (6, 17, 17)
    assert right["mean_committed_per_step"] == 23 / 6
    assert right["accepted_per_position"] == [1.0, 1.0, 1.0]
    wrong = run_scripted("wrong")
    assert (wrong["steps"], wrong["accepted"]) == (23, 0)
    assert wrong["accepted_per_position"] == [0.0, 0.0, 0.0]
    partly = run_scripted("right until 2")
    assert partly["accepted_per_position"] == [1.0, 1.0, 0.0]
    nothing = run_scripted("silent")
    assert (nothing["steps"], nothing["drafted"]) == (23, 0)
    assert nothing["accepted_per_position"] == []


def test_a_right_draft_is_right_again_after_a_rejection() -> None:
    """Pitfall 28: the draft goes on with full blocks once the wrong token is out."""
    for kind in KINDS:
        draft = kind(wrong_one_in=7)
        engine = ToyEngine(drafting=drafting(draft), max_seq_len=64)
        request = engine.add([5, 6], one(60), streams=True)
        while engine.engine.has_work:
            engine.engine.step()
        steps = [delta for delta in request.outbox if delta.drafted]
        assert any(delta.num_accepted < len(delta.drafted) for delta in steps)
        full = [delta.num_accepted == len(delta.drafted) == 3 for delta in steps[:-1]]
        rejected = full.index(False)
        assert any(full[rejected + 1 :])
        assert draft.broken == 0


SHARED: list[tuple[type, str]] = [
    *((StateManager, name) for name in ("claim", "reserve", "commit", "release", "kv_inputs")),
    *((ToyModel, name) for name in ("prepare_initial_token_inputs", "execute", "release")),
    *((ToyDraft, name) for name in ("propose", "forward", "release")),
    (Sampler, "sample"),
]
WORK: list[Job] = [
    ([7] * 8 + [1], one(6)),
    ([7] * 8 + [2], SamplingParams(seed=1, max_tokens=8, prompt_logprobs=0, logprobs=1)),
    ([9], SamplingParams(seed=2, max_tokens=9, stop=["q"])),
]
TIGHT: dict[str, Any] = {"num_pages": 7, "page_size": 4, "max_batch_tokens": 9, "max_seq_len": 24}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [False, True])
def test_an_exception_at_every_call_leaves_lengths_equal_and_texts_alone(
    kind: type[ToyDraft], after: bool
) -> None:
    """Pitfall 14. The toys check every row they read, so equal lengths mean equal caches."""
    wanted = naive_answers(WORK, 24)

    def run(at: set[int]) -> tuple[int, int]:
        draft = kind(wrong_one_in=3)
        engine = ToyEngine(drafting=drafting(draft), **TIGHT)
        requests = [engine.add(*job) for job in WORK]
        raised = 0
        with planted(SHARED, at, after) as plant:
            while engine.engine.has_work:
                try:
                    engine.step()
                except PlantedError:
                    raised += 1
                    check_lengths(engine)
        engine.check_idle()
        check_answers([output_of(request) for request in requests], wanted)
        assert draft.broken == 0
        return plant.num_calls, raised + plant.real_raised

    num_calls, _ = run(set())
    assert num_calls > 100
    for call in range(1, num_calls + 1):
        _, raised = run({call})
        assert raised == 1, call


def test_a_drafter_that_raises_is_heard_and_nothing_is_lost() -> None:
    proposer = drafters.ScriptedProposer()
    proposer.script = drafters.raises
    engine = ToyEngine(drafting=Drafting(proposer=proposer))
    request = engine.add([1, 2, 3], one(9))
    with pytest.raises(drafters.DrafterFailedError):
        engine.engine.step()
    check_lengths(engine)
    proposer.script = drafters.silent
    while engine.engine.has_work:
        engine.engine.step()
    assert list(output_of(request).token_ids) == naive_answer([1, 2, 3], one(9))[0]


def test_a_drafter_that_answers_for_too_few_requests_is_told() -> None:
    class Short(drafters.ScriptedProposer):
        def propose(self, batch: Any) -> list[Proposal]:
            return []

    engine = ToyEngine(drafting=Drafting(proposer=Short()))
    engine.add([1], one(2))
    with pytest.raises(PilotfishError, match=r"Short\.propose returned 0 proposals; wanted one"):
        engine.engine.step()


def test_every_request_that_decodes_gets_a_row_before_drafts_take_the_rest() -> None:
    proposer = drafters.ScriptedProposer()
    proposer.script = drafters.repeats
    engine = ToyEngine(
        drafting=Drafting(proposer=proposer, policy=FixedWidth(8)), max_batch_tokens=6
    )
    for token in (1, 2, 3, 4):
        engine.add([token], one(12))
    for _ in range(3):
        engine.engine.step()
    assert engine.model.passes[-1] == (3, 1, 1, 1)


def test_warm_and_cold_prefixes_accept_alike() -> None:
    """Pitfall 6: a prefix hit restores the draft's rows too."""
    for kind in KINDS:
        draft = kind(wrong_one_in=4)
        engine = ToyEngine(drafting=drafting(draft), max_seq_len=64)
        work: list[Job] = [([7] * 17, one(20)), ([7] * 16, one(20))]
        cold = engine.run(work)
        num_rows = sum(sum(counts) for counts in draft.passes)
        warm = engine.run(work)
        assert token_lists(warm) == token_lists(cold)
        assert [out.speculative for out in warm] == [out.speculative for out in cold]
        assert sum(sum(counts) for counts in draft.passes) - num_rows < num_rows, "hits were taken"
        assert draft.broken == 0


def sizes_that_just_fit() -> list[tuple[list[Job], dict[str, Any]]]:
    """Two requests that need every page of the pool, prompts of every offset to the page."""
    found = []
    for first in range(1, 6):
        for second in range(1, 6):
            work: list[Job] = [([1] * first, one(13)), ([2] * second, one(13))]
            num_pages = sum(-(-(len(prompt) + 12) // 4) for prompt, _ in work)
            found.append((work, {"num_pages": num_pages, "page_size": 4, "max_seq_len": 40}))
    return found


def test_drafts_cost_no_preemption_whatever_the_lengths() -> None:
    for work, size in sizes_that_just_fit():
        plain, wanted = ToyEngine(prefix_caching=False, **size), naive_answers(work)
        plain.run(work)
        for draft in (ToyDraft(), ToyDraft(wrong_one_in=2)):
            engine = ToyEngine(drafting=drafting(draft), prefix_caching=False, **size)
            check_answers(engine.run(work), wanted)
            assert engine.scheduler.num_preemptions <= plain.scheduler.num_preemptions, work


def test_drafts_leave_rows_for_prompts_that_wait() -> None:
    """One request drafts as wide as a pass: another's prompt still begins in the next pass."""
    proposer = drafters.ScriptedProposer()
    proposer.script = drafters.repeats
    engine = ToyEngine(
        drafting=Drafting(proposer=proposer, policy=FixedWidth(8)), max_batch_tokens=8
    )
    first = engine.add([1], one(60))
    for _ in range(3):
        engine.engine.step()
    second = engine.add([2, 3, 4], one(5))
    engine.engine.step()
    assert second.num_computed == 3
    assert not first.is_finished


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_after_a_wrong_draft_may_be_unusable(temperature: float) -> None:
    """The logits after a token that the text does not have are NaN: nobody may notice."""
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=9, ignore_eos=True)
    tokens = naive_answer([1, 2, 3], params)[0]
    poison = next(token for token in range(200, 256) if token not in tokens)
    for place in range(3):
        proposer = drafters.ScriptedProposer()
        right = drafters.known_texts([[1, 2, 3, *tokens]])

        def script(request: Any, place: int = place, right: Any = right) -> list[int]:
            known = list(right(request))
            return [*known[:place], *([poison] * (len(known) - place))]

        proposer.script = script
        engine = ToyEngine(drafting=Drafting(proposer=proposer))
        engine.model.nan_token = poison
        [output] = engine.run([([1, 2, 3], params)])
        assert (list(output.token_ids), output.finish_reason) == (tokens, "length")


def test_a_stop_inside_a_block_counts_only_what_is_kept() -> None:
    tokens = naive_answer([1, 2, 3], one(24))[0]
    stop = next(i for i in range(2, 20) if tokens[i] not in tokens[:i])
    proposer = drafters.ScriptedProposer()
    proposer.script = drafters.known_texts([[1, 2, 3, *tokens]])
    engine = ToyEngine(drafting=Drafting(proposer=proposer, policy=FixedWidth(20)))
    params = SamplingParams(
        temperature=0, max_tokens=24, ignore_eos=True, stop_token_ids=[tokens[stop]]
    )
    [output] = engine.run([([1, 2, 3], params)])
    assert list(output.token_ids) == tokens[: stop + 1]
    assert output.speculative is not None
    assert output.speculative["accepted"] == stop


def test_a_release_that_fails_at_a_restart_is_made_up_for() -> None:
    """The rows are given up at the next step; the text is that of a request that never failed."""
    rules = LengthRules(recompute_length=6)

    def run(fails: bool) -> list[int]:
        engine = ToyEngine(drafting=drafting(ToyDraft(wrong_one_in=3)))
        request = engine.add([1, 2, 3], one(12))
        request.lengths, request.restart_above = rules, rules.restart_above(3)
        raised = 0
        with pytest.MonkeyPatch.context() as patch:
            real = StateManager.release

            def release(self: Any, request_id: str) -> None:
                patch.setattr(StateManager, "release", real)
                raise PlantedError("planted in a release")

            if fails:
                patch.setattr(StateManager, "release", release)
            while engine.engine.has_work:
                try:
                    engine.step()
                except PlantedError:
                    raised += 1
                    check_lengths(engine)
        assert raised == fails
        assert request.num_preemptions == (not fails)  # a fault's restart is no preemption
        return list(output_of(request).token_ids)

    assert run(True) == run(False) == naive_answer([1, 2, 3], one(12))[0]


class OneList:
    """A drafter that fills one list anew for every request: right tokens, of a known answer."""

    def __init__(self, text: list[int]) -> None:
        self.text, self.buffer = text, list[int]()

    def propose(self, batch: Any) -> list[Proposal]:
        found = []
        for request in batch.requests:
            start = len(request.tokens)
            self.buffer[:] = self.text[start : start + request.num_draft_tokens]
            found.append(Proposal(tokens=self.buffer))
        return found

    def release(self, request_id: str) -> None:
        pass


def test_a_drafter_may_keep_its_list() -> None:
    params = one(12)
    answer = naive_answer([1, 2, 3], params)[0]
    proposer: Any = OneList([1, 2, 3, *answer])
    engine = ToyEngine(drafting=Drafting(proposer=proposer, policy=FixedWidth(3)))
    [output] = engine.run([([1, 2, 3], params)])
    assert list(output.token_ids) == answer
    assert output.speculative is not None
    assert output.speculative["accepted"] == output.speculative["drafted"] > 5


def test_logits_that_are_no_numbers_are_told_alike_with_and_without_a_drafter() -> None:
    said = []
    for proposer in (None, drafters.ScriptedProposer()):
        engine = ToyEngine(drafting=Drafting(proposer=proposer), with_text=False)
        engine.model.nan_token = 2
        params = SamplingParams(temperature=0, max_tokens=3, prompt_logprobs=1)
        said.append(engine.run([([1, 3, 2], params)])[0].error)
    assert said[0] == said[1] is not None
