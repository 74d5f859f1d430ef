"""Exceptions planted at every call: lengths stay equal, and the text does not change."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish.config import SamplingParams
from pilotfish.sampling import Sampler
from pilotfish.state import StateManager
from pilotfish.tokenization.detokenizer import Detokenizer
from support.engine_strategies import Job, jobs, sizes
from support.toy_model import ToyEngine, ToyModel, naive_answer, output_of

pytestmark = pytest.mark.usefixtures("one_thread")

SHARED: list[tuple[type, str]] = [
    *((StateManager, name) for name in ("claim", "reserve", "commit", "release", "kv_inputs")),
    *((ToyModel, name) for name in ("prepare_initial_token_inputs", "execute", "release")),
    (Sampler, "sample"),
]
"""Calls that concern a whole pass."""
OWN: list[tuple[type, str]] = [(Detokenizer, "add"), (Detokenizer, "finish")]
"""Calls that concern one request."""


class PlantedError(Exception):
    """Raised on purpose."""


class Plant:
    """Raises at the given calls, counted over all watched functions; before or after the call.

    real_raised: whether such a call raised something of its own, so that nothing was planted.
    """

    def __init__(self, at: set[int], after: bool, error: type[BaseException]) -> None:
        self.at, self.after, self.error = at, after, error
        self.num_calls = 0
        self.real_raised = False

    def wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.num_calls += 1
            hit = self.num_calls in self.at
            if hit and not self.after:
                raise self.error(f"planted before call {self.num_calls} of {real.__name__}")
            try:
                result = real(*args, **kwargs)
            except Exception:
                self.real_raised |= hit
                raise
            if hit:
                raise self.error(f"planted after call {self.num_calls} of {real.__name__}")
            return result

        return call


@contextmanager
def planted(
    where: list[tuple[type, str]],
    at: set[int],
    after: bool,
    error: type[BaseException] = PlantedError,
) -> Iterator[Plant]:
    plant = Plant(at, after, error)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in where:
            patch.setattr(owner, name, plant.wrap(getattr(owner, name)))
        yield plant


def check_lengths(engine: ToyEngine) -> None:
    """Every running request is as long as its state; nobody else holds any. Pitfall 14."""
    engine.state.check()
    running = engine.scheduler.running
    assert set(engine.state.request_ids) == {request.request_id for request in running}
    for request in running:
        assert engine.state.num_committed(request.request_id) == request.num_computed
    for request in engine.scheduler.waiting:
        assert request.num_computed == 0


def run_through(engine: ToyEngine, work: list[Job]) -> tuple[list[Any], int]:
    """Steps on after every planted error; returns the outputs and how many errors came through."""
    requests = [engine.add(prompt, params) for prompt, params in work]
    raised = 0
    while engine.engine.has_work:
        try:
            engine.step()
        except PlantedError:
            raised += 1
            engine.engine.take_release_failure()  # a second error, as all began anew
            check_lengths(engine)
    engine.check_idle()
    return [output_of(request) for request in requests], raised


WORK: list[Job] = [
    ([7] * 8 + [1], SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)),
    ([7] * 8 + [2], SamplingParams(seed=1, max_tokens=8, prompt_logprobs=0, logprobs=1)),
    ([9], SamplingParams(seed=2, max_tokens=9, stop=["q"])),
]
TIGHT: dict[str, Any] = {"num_pages": 6, "page_size": 4, "max_batch_tokens": 5, "max_seq_len": 24}


@pytest.mark.parametrize("after", [False, True])
def test_an_exception_at_every_single_call_changes_nothing(after: bool) -> None:
    with planted(SHARED, set(), after) as plant:
        expected, _ = run_through(ToyEngine(**TIGHT), WORK)
    assert plant.num_calls > 100
    for call in range(1, plant.num_calls + 1):
        with planted(SHARED, {call}, after):
            outputs, raised = run_through(ToyEngine(**TIGHT), WORK)
        assert raised == 1, call
        for output, want in zip(outputs, expected, strict=True):
            assert output.token_ids == want.token_ids, call
            assert (output.text, output.logprobs) == (want.text, want.logprobs), call
            assert output.prompt_logprobs == want.prompt_logprobs, call


@settings(max_examples=60)
@given(
    work=jobs(4),
    size=sizes(),
    at=st.sets(st.integers(1, 120), min_size=1, max_size=12),
    after=st.booleans(),
)
def test_many_exceptions_change_nothing(
    work: list[Job], size: dict[str, Any], at: set[int], after: bool
) -> None:
    with planted(SHARED, at, after):
        outputs, _ = run_through(ToyEngine(**size), work)
    for (prompt, options), output in zip(work, outputs, strict=True):
        wanted = naive_answer(prompt, options, max_seq_len=40)
        assert (list(output.token_ids), output.text, output.finish_reason) == wanted


@settings(max_examples=60)
@given(work=jobs(4), size=sizes(), at=st.integers(1, 60), after=st.booleans())
def test_a_request_whose_own_part_fails_ends_alone(
    work: list[Job], size: dict[str, Any], at: int, after: bool
) -> None:
    with planted(OWN, {at}, after) as plant:
        outputs, raised = run_through(ToyEngine(**size), work)
    assert raised == 0
    failed = [output for output in outputs if output.finish_reason == "error"]
    assert len(failed) == (1 if plant.num_calls >= at else 0)
    assert all("planted" in str(output.error) for output in failed)
    for (prompt, options), output in zip(work, outputs, strict=True):
        if output.finish_reason != "error":
            assert list(output.token_ids) == naive_answer(prompt, options, max_seq_len=40)[0]


@pytest.mark.parametrize("bad_place", [0, 1, 2])
def test_logits_that_are_nan_end_their_request_alone(bad_place: int) -> None:
    engine = ToyEngine()
    engine.model.nan_token = 200
    work = [*WORK[:2]]
    work.insert(bad_place, ([200, 1], SamplingParams(temperature=0)))
    outputs = engine.run(work)
    assert outputs[bad_place].finish_reason == "error"
    assert "NaN" in str(outputs[bad_place].error)
    assert outputs[bad_place].token_ids == []
    for i, (prompt, options) in enumerate(work):
        if i != bad_place:
            assert list(outputs[i].token_ids) == naive_answer(prompt, options)[0]


def test_nan_in_the_prompt_rows_ends_the_request_that_asked_for_them() -> None:
    engine = ToyEngine(max_batch_tokens=64)
    engine.model.nan_token = 200
    options = SamplingParams(temperature=0, max_tokens=3, prompt_logprobs=1)
    bad, good = engine.run([([1, 200, 2], options), ([1, 2], options)])
    assert (bad.finish_reason, good.finish_reason) == ("error", "length")


@pytest.mark.parametrize("when", range(0, 12))
def test_an_abort_at_any_step_is_invisible_to_the_others(when: int) -> None:
    engine = ToyEngine(**TIGHT)
    requests = [engine.add(prompt, params) for prompt, params in WORK]
    for _ in range(when):
        engine.engine.step()
    was_finished = requests[1].is_finished
    engine.engine.abort([requests[1]])
    check_lengths(engine)
    while engine.engine.has_work:
        engine.engine.step()
    engine.check_idle()
    outputs = [output_of(request) for request in requests]
    assert (outputs[1].finish_reason == "abort") == (not was_finished)
    for i in (0, 2):
        prompt, options = WORK[i]
        assert list(outputs[i].token_ids) == naive_answer(prompt, options, max_seq_len=24)[0]
    prompt, options = WORK[1]
    whole = naive_answer(prompt, options, max_seq_len=24)[0]
    assert list(outputs[1].token_ids) == whole[: len(outputs[1].token_ids)]


def test_an_abort_whose_release_fails_gives_the_pages_back_at_the_next_step() -> None:
    engine = ToyEngine()
    requests = [engine.add(prompt, params) for prompt, params in WORK]
    engine.engine.step()
    with planted([(StateManager, "release")], {1}, False), pytest.raises(PlantedError):
        engine.engine.abort(requests[:2])
    assert [request.finish_reason for request in requests[:2]] == ["abort", "abort"]
    while engine.engine.has_work:
        engine.engine.step()
    engine.check_idle()


def test_a_request_never_has_a_second_terminal_event() -> None:
    engine = ToyEngine()
    request = engine.add(*WORK[0])
    engine.engine.abort([request])
    engine.engine.abort([request])
    assert output_of(request).finish_reason == "abort"
    with pytest.raises(AssertionError, match="one terminal event"):
        request.finish("stop")


def test_a_step_that_is_interrupted_at_its_end_keeps_no_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody asks for another step, so that what it would have returned must not wait for one."""

    def interrupted(work: Any) -> None:
        real(work)
        raise KeyboardInterrupt

    toy = ToyEngine()
    request = toy.add([1, 2], SamplingParams(temperature=0, max_tokens=1, ignore_eos=True))
    real = toy.engine._whole
    monkeypatch.setattr(toy.engine, "_whole", interrupted)
    with pytest.raises(KeyboardInterrupt):
        toy.engine.step()
    monkeypatch.undo()
    assert request.is_finished
    toy.engine.tidy()
    engine, ended = toy.engine, weakref.ref(request)
    del request, toy
    gc.collect()
    assert ended() is None
    assert not engine.has_work
