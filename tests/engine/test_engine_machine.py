"""Requests that come, run, are aborted and fail over tiny pools, against the naive answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine.test_engine_faults import SHARED, PlantedError, planted
from pilotfish.engine.request import Request
from pilotfish.engine.runner import Runner
from pilotfish.engine.scheduler import Scheduler
from pilotfish.errors import StateError
from pilotfish.state import StateManager
from support.engine_strategies import MAX_SEQ_LEN, Job, params, prompts, sizes
from support.toy_model import ToyEngine, context_hash, naive_answer, output_of

pytestmark = pytest.mark.usefixtures("one_thread")


class EngineMachine(RuleBasedStateMachine):
    """An engine with poisoned pages, and for every request what it must say in the end."""

    @initialize(size=sizes())
    def start(self, size: dict[str, Any]) -> None:
        self.toy = ToyEngine(**size)
        self.live: dict[Request, Job] = {}

    @rule(prompt=prompts(), options=params())
    def add(self, prompt: list[int], options: Any) -> None:
        if len(self.live) < 8:
            self.live[self.toy.add(prompt, options)] = (prompt, options)

    @precondition(lambda self: self.live)
    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.toy.engine.step()
        self._settle()

    @precondition(lambda self: self.live)
    @rule(at=st.integers(1, 12), after=st.booleans())
    def step_with_an_exception(self, at: int, after: bool) -> None:
        with planted(SHARED, {at}, after), suppress(PlantedError):
            self.toy.step()
        self._settle()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(list(self.live)))
        prompt, options = self.live.pop(request)
        self.toy.engine.abort([request])
        output = output_of(request)
        assert output.finish_reason == "abort"
        wanted = naive_answer(prompt, options, max_seq_len=MAX_SEQ_LEN)[0]
        assert list(output.token_ids) == wanted[: len(output.token_ids)]

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        running = self.toy.scheduler.running
        if running:
            self.toy.scheduler.requeue(data.draw(st.sampled_from(running)))

    @rule()
    def forget_cached(self) -> None:
        self.toy.state.forget_cached()

    def teardown(self) -> None:
        if not hasattr(self, "toy"):
            return
        for _ in range(3000):
            if not self.toy.engine.has_work:
                break
            self.toy.engine.step()
        self._settle()
        assert not self.live, "a request never ended"
        self.toy.check_idle()

    def _settle(self) -> None:
        for request, (prompt, options) in list(self.live.items()):
            if not request.is_finished:
                assert request.outbox == type(request.outbox)()
                continue
            del self.live[request]
            output = output_of(request)
            tokens, text, reason = naive_answer(prompt, options, max_seq_len=MAX_SEQ_LEN)
            assert list(output.token_ids) == tokens
            assert (output.text, output.finish_reason) == (text, reason)
            records = output.prompt_logprobs
            assert (records is None) == (options.prompt_logprobs is None)
            assert records is None or len(records) == len(prompt)

    @invariant()
    def every_page_is_somewhere(self) -> None:
        if not hasattr(self, "toy"):
            return
        state = self.toy.state
        state.check()
        owned = {page for name in state.request_ids for page in state.pages_of(name)}
        cached, free = state.pool.num_cached, state.pool.num_free
        assert len(owned) + cached + free == state.num_pages

    @invariant()
    def lengths_agree_and_rows_are_right(self) -> None:
        if not hasattr(self, "toy"):
            return
        state = self.toy.state
        running = {r.request_id: r for r in self.toy.scheduler.running}
        assert set(state.request_ids) == set(running)
        assert len(running) <= self.toy.max_batch_size
        for name, request in running.items():
            done = request.num_computed
            assert state.num_committed(name) == done
            memory = state.paged_cache("toy").blocks[0]
            rows = memory[list(state.pages_of(name))].flatten(0, 1)[:done]
            assert rows[:, 2].tolist() == request.tokens[:done]
            if done:
                number = context_hash(request.tokens[:done])
                assert divmod(number, 65536) == (int(rows[-1, 0]), int(rows[-1, 1]))

    @invariant()
    def pages_of_nobody_are_poisoned(self) -> None:
        if not hasattr(self, "toy"):
            return
        state = self.toy.state
        memory = state.paged_cache("toy").blocks[0]
        assert torch.isnan(memory[state.pool.free_pages()]).all()


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(max_examples=60, stateful_step_count=25)

HUNT = settings(
    max_examples=400,
    stateful_step_count=25,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@contextmanager
def replaced(owner: type, name: str, fake: Callable[..., Any]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, fake)
        yield


def loses_the_preempted(self: Scheduler, request: Request) -> None:
    """A preempted request waits nowhere: the caller hears nothing more."""
    self._give_up(request)
    self.num_preemptions += 1


def keeps_pages_of_the_finished(self: Scheduler, request: Request) -> None:
    """A request that ended is taken out of the lists only."""
    for place in (self._running, self._waiting):
        if request in place:
            place.remove(request)


def ignores_the_prompt(self: Request) -> Any:
    """A hit is taken although the rows left out are wanted."""
    return self.tokens


def counts_before_the_commit(self: Runner, request: Request, result: Any) -> None:
    """An exception of the commit leaves the request one step ahead of its state."""
    request.num_computed += result.num_rows
    self.state.commit(request.request_id, result.num_rows)


def samples_too_early(self: Request) -> bool:
    """Every chunk ends with a token. Pitfalls 12 and 13."""
    return self.num_scheduled > 0


def shares_the_seed(self: Request, draft_ids: Any = ()) -> Any:
    """Every request draws from one stream: the noise of its place in the process."""
    row = ORIGINAL_ROW(self, draft_ids)
    import attrs

    return attrs.evolve(row, position=row.position + self.index + len(self.request_id))


def commits_one_row_less(self: StateManager, request_id: str, num_tokens: int) -> None:
    ORIGINAL_COMMIT(self, request_id, max(0, num_tokens - 1))


ORIGINAL_ROW = Request.sampling_row
ORIGINAL_COMMIT = StateManager.commit

CAUGHT = (AssertionError, StateError, ExceptionGroup)
"""What the machine finds, or the books; a group when one bug shows in several ways."""

MUTANTS: list[tuple[type, str, Any]] = [
    (Scheduler, "requeue", loses_the_preempted),
    (Scheduler, "remove", keeps_pages_of_the_finished),
    (Request, "prefix_keys", property(ignores_the_prompt)),
    (Runner, "commit", counts_before_the_commit),
    (Request, "samples_next", property(samples_too_early)),
    (Request, "sampling_row", shares_the_seed),
    (StateManager, "commit", commits_one_row_less),
]


@pytest.mark.parametrize(("owner", "name", "fake"), MUTANTS, ids=[str(m[1]) for m in MUTANTS])
def test_the_machine_catches_a_planted_bug(owner: type, name: str, fake: Any) -> None:
    class Hunted(EngineMachine):
        pass

    with replaced(owner, name, fake), pytest.raises(CAUGHT):
        run_state_machine_as_test(Hunted, settings=HUNT)
