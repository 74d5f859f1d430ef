"""Router: where requests go, for any history of them."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from hypothesis import given
from hypothesis import strategies as st

from pilotfish.replicas.router import Router


def names(text: str) -> list[bytes]:
    """Of a request's pages: each names all letters up to its own."""
    return [text[: end + 1].encode() for end in range(len(text))]


def router(num_replicas: int = 2, num_pages: int = 100, max_batch_size: int = 4) -> Router:
    return Router(num_replicas, num_pages=num_pages, max_batch_size=max_batch_size)


def send(one: Router, text: str, among: Sequence[int] | None = None, num_tokens: int = 10) -> int:
    number = one.choose(names(text), range(len(one.loads)) if among is None else among)
    one.begin(number, names(text), num_tokens)
    return number


def test_requests_of_different_beginnings_are_spread() -> None:
    one = router(3)
    assert [send(one, text) for text in "abcdef"] == [0, 1, 2, 0, 1, 2]


def test_of_as_many_requests_the_fewest_tokens_count() -> None:
    one = router()
    send(one, "a", num_tokens=50)
    send(one, "b", num_tokens=10)
    assert send(one, "c") == 1


def test_a_beginning_is_found_where_it_was_sent() -> None:
    one = router()
    send(one, "a")
    owner = send(one, "begin")
    assert owner == 1
    send(one, "c", among=[1])  # the fuller one now
    assert send(one, "begins") == owner
    assert send(one, "bexxxxxx") != owner  # too little of it is the same


def test_what_was_answered_is_part_of_a_beginning() -> None:
    one = router()
    owner = send(one, "ask")
    one.end(owner, names("ask and answer"), 10)
    send(one, "x", among=[owner])
    assert send(one, "ask and answer, more") == owner


def test_a_replica_whose_batch_is_full_is_passed_over() -> None:
    one = router(max_batch_size=2)
    assert [send(one, "begin") for _ in range(5)] == [0, 0, 1, 1, 0]


def test_only_replicas_that_serve_are_chosen() -> None:
    one = router(3)
    send(one, "begin", among=[2])
    assert send(one, "begin", among=[0, 1]) in {0, 1}


def test_what_a_replica_forgot_draws_nobody() -> None:
    one = router()
    owner = send(one, "begin")
    one.forget_pages(owner)
    assert send(one, "begin") != owner


def test_no_more_names_are_kept_than_pages_and_the_first_pages_longest() -> None:
    one = router(1, num_pages=4)
    send(one, "abc")
    send(one, "xy")
    assert one.num_held(0, names("abc")) == 2
    assert one.num_held(0, names("xy")) == 2
    send(one, "abcdefgh")
    assert one.num_held(0, names("abcdefgh")) == 4
    assert len(one.loads[0].names) == 4


@attrs.frozen
class Sent:
    replica: int
    text: str
    num_tokens: int


TEXTS = st.text("ab", max_size=6)
STEPS = st.lists(
    st.one_of(
        st.tuples(TEXTS, st.integers(0, 50), st.sets(st.integers(0, 2), min_size=1)),
        st.integers(0, 20),  # that request ends
        st.sampled_from(["forget"]),
    ),
    max_size=40,
)


@given(steps=STEPS, num_pages=st.integers(0, 8), max_batch_size=st.integers(1, 3))
def test_any_history(steps: list[object], num_pages: int, max_batch_size: int) -> None:
    one, running = router(3, num_pages, max_batch_size), list[Sent]()
    for step in steps:
        if step == "forget":
            one.forget_pages(0)
        elif isinstance(step, int):
            if running:
                ended = running.pop(step % len(running))
                one.end(ended.replica, names(ended.text + "a"), ended.num_tokens)
        else:
            text, num_tokens, among = step  # type: ignore[misc]
            number = one.choose(names(text), among)
            check_choice(one, number, text, among)
            one.begin(number, names(text), num_tokens)
            running.append(Sent(number, text, num_tokens))
        loads = [(load.num_requests, load.num_tokens) for load in one.loads]
        one.recount((sent.replica, sent.num_tokens) for sent in running)
        assert [(load.num_requests, load.num_tokens) for load in one.loads] == loads
        for number, load in enumerate(one.loads):
            mine = [sent for sent in running if sent.replica == number]
            assert load.num_requests == len(mine)
            assert load.num_tokens == sum(sent.num_tokens for sent in mine)
            assert len(load.names) <= num_pages


def check_choice(one: Router, number: int, text: str, among: set[int]) -> None:
    """It is one that was asked for: the owner of the beginning, or the emptiest."""
    assert number in among
    held = {each: one.num_held(each, names(text)) for each in among}
    most = max(held.values())
    is_owner = held[number] == most and 0 < len(text) <= 2 * most
    fewest = min(one.loads[each].num_requests for each in among)
    assert is_owner or one.loads[number].num_requests == fewest
    owners = [each for each in among if held[each] == most]
    has_place = any(one.loads[each].num_requests < 1 for each in owners)
    if 0 < len(text) <= 2 * most and has_place:  # of an owner that has nothing to do
        assert number in owners
