"""Who runs next: order, budgets, preemption. Counts only; no model."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pilotfish.batch import Proposal
from pilotfish.config import SamplingParams
from pilotfish.engine.length_rules import LengthRules
from pilotfish.engine.request import Request
from pilotfish.engine.scheduler import Scheduler
from pilotfish.engine.stopping import StopRules
from pilotfish.errors import OutOfPagesError, StateError
from pilotfish.state import SlotCache, StateManager
from support.state_toys import ToyRecurrentCache
from support.toy_model import toy_cache


class Bench:
    """A scheduler over a real state; `play` computes what was scheduled, as a runner would."""

    def __init__(
        self,
        *,
        pages: int = 16,
        batch: int = 4,
        rows: int = 8,
        shares: bool = False,
        slot_caches: Sequence[SlotCache] = (),
        lookahead: int = 0,
    ) -> None:
        self.state = StateManager(
            [toy_cache()],
            num_pages=pages,
            page_size_tokens=4,
            prefix_caching=shares,
            slot_caches=slot_caches,
            lookahead=lookahead,
        )
        self.released: list[str] = []
        self.scheduler = Scheduler(
            self.state,
            max_batch_size=batch,
            max_batch_tokens=rows,
            on_release=self.released.append,
        )

    def add(
        self, name: str, prompt: int | Sequence[int], lengths: LengthRules | None = None
    ) -> Request:
        """prompt: its tokens, or how many."""
        tokens = list(range(prompt) if isinstance(prompt, int) else prompt)
        request = Request(
            request_id=name,
            tokens=tokens,
            num_prompt_tokens=len(tokens),
            index=0,
            params=SamplingParams(),
            seed=0,
            rules=StopRules(end_ids=frozenset(), min_tokens=0, max_total_tokens=10**6),
            lengths=lengths or LengthRules(),
        )
        self.scheduler.add(request)
        return request

    def play(self) -> dict[str, int]:
        """Schedules one pass, commits it, and appends a token where the last row was computed."""
        plan = {}
        for request in self.scheduler.schedule():
            plan[request.request_id] = request.num_scheduled
            num_rows = request.num_scheduled - len(request.draft.tokens)
            self.state.commit(request.request_id, num_rows)
            request.num_computed += num_rows
            if not request.num_pending:
                request.tokens.append(0)
        self.state.check()
        return plan


def test_prompts_are_cut_to_the_budget_in_order_of_arrival() -> None:
    bench = Bench(rows=8)
    for name, length in (("a", 3), ("b", 10), ("c", 2)):
        bench.add(name, length)
    assert bench.play() == {"a": 3, "b": 5}
    assert bench.play() == {"a": 1, "b": 5, "c": 2}
    assert bench.play() == {"a": 1, "b": 1, "c": 1}


def test_decoding_comes_before_an_older_prompt() -> None:
    bench = Bench(rows=4)
    bench.add("short", 2)
    bench.play()
    bench.add("long", 9)
    bench.add("next", 2)
    assert bench.play() == {"short": 1, "long": 3}
    assert bench.play() == {"short": 1, "long": 3}
    assert bench.play() == {"short": 1, "long": 3}
    assert bench.play() == {"short": 1, "long": 1, "next": 2}


def test_no_more_requests_than_asked_run_at_once() -> None:
    bench = Bench(batch=2)
    first, *_ = [bench.add(name, 1) for name in "abc"]
    assert bench.play() == {"a": 1, "b": 1}
    bench.scheduler.remove(first)
    assert bench.released == ["a"]
    assert bench.play() == {"b": 1, "c": 1}


def test_the_newest_gives_way_and_comes_back_first() -> None:
    bench = Bench(pages=4, rows=16)
    old, new = bench.add("old", 7), bench.add("new", 3)
    bench.add("later", 1)
    seen = [bench.play() for _ in range(2)]
    assert seen == [{"old": 7, "new": 3}, {"old": 1, "new": 1}]
    while not new.num_preemptions:
        bench.play()
    assert [request.request_id for request in bench.scheduler.waiting] == ["new", "later"]
    assert (new.num_computed, old.num_preemptions) == (0, 0)
    assert bench.released[-1] == "new"
    bench.scheduler.remove(old)
    num_again = len(new.tokens)
    assert bench.play() == {"new": num_again, "later": 1}


def test_a_request_that_does_not_fit_is_not_overtaken() -> None:
    bench = Bench(pages=4, rows=16)
    bench.add("first", 4)
    bench.play()
    bench.add("large", 12)
    bench.add("small", 1)
    assert set(bench.play()) == {"first"}
    assert [request.request_id for request in bench.scheduler.waiting] == ["large", "small"]


def test_a_waiting_prompt_is_not_claimed_again_before_anything_was_given_back() -> None:
    bench = Bench(pages=4, rows=16)
    bench.add("first", 4)
    bench.play()
    bench.add("large", 12)
    claims = []
    real = bench.state.claim

    def claim(request_id: str, keys: object, salt: bytes) -> int:
        claims.append(request_id)
        return real(request_id, keys, salt)  # type: ignore[arg-type]

    bench.state.claim = claim  # type: ignore[method-assign,assignment]
    for _ in range(4):
        assert set(bench.play()) == {"first"}
    assert claims == ["large"]


def test_everybody_ends_however_many_wait() -> None:
    bench = Bench(pages=6, batch=3, rows=5)
    left = {name: bench.add(name, 1 + i % 17) for i, name in enumerate("abcdefghijkl")}
    for _ in range(400):
        bench.play()
        for name, request in list(left.items()):
            if request.num_output_tokens >= 5:
                bench.scheduler.remove(left.pop(name))
    assert not left
    assert not bench.scheduler.has_work
    assert bench.state.pool.num_free == 6


def test_a_request_that_can_never_fit_is_an_error_not_a_hang() -> None:
    bench = Bench(pages=1)
    bench.add("huge", 9)
    with pytest.raises(StateError, match="nothing can run"):
        bench.play()


def test_removing_what_waits_or_is_unknown_holds_nothing() -> None:
    bench = Bench()
    request = bench.add("a", 3)
    bench.scheduler.remove(request)
    bench.scheduler.remove(request)
    assert not bench.scheduler.has_work
    assert bench.scheduler.schedule() == []


def test_what_is_computed_anew_after_a_fault_is_not_computed_twice() -> None:
    bench = Bench(rows=8)
    bench.add("longer", 4, LengthRules(recompute_length=4))
    assert bench.play() == {"longer": 4}
    bench.scheduler.restart()
    assert [bench.play() for _ in range(3)] == [{"longer": 5}, {"longer": 1}, {"longer": 1}]


# A beginning that several share

BEGINNING = list(range(9))


def test_a_shared_beginning_is_computed_once() -> None:
    bench = Bench(rows=32, shares=True)
    for number in range(3):
        bench.add(f"r{number}", [*BEGINNING, 100 + number])
    assert bench.play() == {"r0": 10}
    assert bench.play() == {"r0": 1, "r1": 2, "r2": 2}, "two pages of four rows are shared"


def test_without_prefix_caching_nobody_waits() -> None:
    bench = Bench(rows=32)
    for number in range(3):
        bench.add(f"r{number}", [*BEGINNING, 100 + number])
    assert bench.play() == {"r0": 10, "r1": 10, "r2": 10}


def test_a_request_waits_only_to_where_it_departs() -> None:
    bench = Bench(rows=8, shares=True, pages=32)
    bench.add("long", 30)
    bench.add("departs", [0, 1, 2, 3, 100, 101])
    bench.add("other", [200, 201, 202])
    assert bench.play() == {"long": 8}
    assert bench.play() == {"long": 8}, "prompts that run come first"
    bench = Bench(rows=12, shares=True, pages=32)
    bench.add("long", 9)
    bench.add("departs", [0, 1, 2, 3, 100, 101])
    bench.add("other", [200, 201, 202])
    assert bench.play() == {"long": 9, "other": 3}, "those behind it are admitted"
    assert bench.play() == {"long": 1, "other": 1, "departs": 2}


@pytest.mark.parametrize("how", ["removed", "requeued", "restarted"])
def test_when_the_leader_goes_the_next_one_leads(how: str) -> None:
    bench = Bench(rows=4, shares=True, pages=32)
    leader, second = bench.add("a", [*BEGINNING, 100]), bench.add("b", [*BEGINNING, 101])
    bench.add("c", [*BEGINNING, 102])
    assert bench.play() == {"a": 4}
    if how == "removed":
        bench.scheduler.remove(leader)
        assert bench.play() == {"b": 4}, "one page of a's is found"
        assert second.num_computed == 8
    elif how == "requeued":
        bench.scheduler.requeue(leader)
        assert bench.play() == {"a": 4}
    else:
        bench.scheduler.restart()
        assert bench.play() == {"a": 4}
    while any(request.num_pending > 1 for request in bench.scheduler.requests):
        bench.play()
    bench.state.check()


def test_what_a_page_depends_on_behind_it_is_waited_for() -> None:
    bench = Bench(rows=8, shares=True, lookahead=1)
    bench.add("a", [*BEGINNING, 100])
    bench.add("b", [*BEGINNING, 101])
    assert bench.play() == {"a": 8}
    assert bench.play() == {"a": 2}, "the second page is found when row 8 is committed"
    assert bench.play() == {"a": 1, "b": 2}


class EndsOfPasses(ToyRecurrentCache):
    """Keeps a snapshot only of where a pass ends."""

    def keep(self, request_id: str, page: int, num_tokens: int) -> None:
        if num_tokens == self.lengths[request_id] + self.room[request_id]:
            self.snapshots[page] = None

    def commit(self, request_id: str, num_tokens: int) -> None:
        self.lengths[request_id] += num_tokens


def test_a_state_is_kept_where_those_that_wait_depart() -> None:
    bench = Bench(rows=32, shares=True, slot_caches=[EndsOfPasses()])
    bench.add("a", [*BEGINNING, 100])
    bench.add("b", [*BEGINNING, 101])
    bench.add("c", [0, 1, 2, 3, 102])
    assert bench.play() == {"a": 4}, "there c departs"
    assert bench.play() == {"a": 4, "c": 1}, "and b there"
    assert bench.play() == {"c": 1, "a": 2, "b": 2}


class FewRows(ToyRecurrentCache):
    """A cache that has room for so many reserved rows, of all requests together."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.taken = most, dict[str, int]()

    def reserve(self, request_id: str, num_tokens: int) -> None:
        others = sum(rows for name, rows in self.taken.items() if name != request_id)
        if others + num_tokens > self.most:
            raise OutOfPagesError("no room for so many rows")
        super().reserve(request_id, num_tokens)
        self.taken[request_id] = num_tokens

    def commit(self, request_id: str, num_tokens: int) -> None:
        self.lengths[request_id] += num_tokens
        self.taken.pop(request_id, None)

    def release(self, request_id: str) -> None:
        super().release(request_id)
        self.taken.pop(request_id, None)


def test_drafts_take_no_room_of_others_in_a_cache_without_pages() -> None:
    """Nobody counts such a cache's room before it is asked for."""
    bench = Bench(rows=16, slot_caches=[FewRows(4)])
    requests = [bench.add(name, 1) for name in "abc"]
    for _ in range(4):
        for request in requests:
            request.draft = Proposal(tokens=(1, 2, 3)) if request.num_computed else request.draft
        assert bench.play() == dict.fromkeys("abc", 1)
    assert bench.scheduler.num_preemptions == 0


def test_nobody_is_let_in_by_a_pass_that_must_preempt() -> None:
    bench = Bench(pages=5, rows=16)
    old, new = bench.add("old", 7), bench.add("new", 7)
    bench.play()
    bench.play()
    bench.add("later", 1)
    assert bench.play() == {"old": 1}
    assert (old.num_preemptions, new.num_preemptions) == (0, 1)
    assert [request.request_id for request in bench.scheduler.waiting] == ["new", "later"]
