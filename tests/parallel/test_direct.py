"""Direct: bytes of any length between ranks, as threads; who is gone, silent or a stranger."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from pilotfish.parallel import direct as direct_module
from pilotfish.parallel.direct import PIECE_BYTES, Direct


def on_ranks(size: int, work: Callable[[Direct], Any], timeout_s: float = 20.0) -> list[Any]:
    store = dist.HashStore()

    def one(rank: int) -> Any:
        return work(Direct(store, rank, size, timeout_s=timeout_s, host="127.0.0.1"))

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def exchanged(direct: Direct, lengths: list[list[int]]) -> list[bytes]:
    """What rank i has for rank j is lengths[i][j] bytes of their own."""
    rank, size = direct.rank, direct.size
    sent = [message(rank, other, lengths[rank][other]) for other in range(size)]
    received = [bytearray(lengths[other][rank]) for other in range(size)]
    direct.exchange([*map(memoryview, sent)], [*map(memoryview, received)])
    return [bytes(one) for one in received]


def message(sender: int, receiver: int, length: int) -> bytes:
    return random.Random(f"{sender} {receiver}").randbytes(length)


LENGTHS = st.one_of(
    st.integers(0, 9),
    st.sampled_from([PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 40 * PIECE_BYTES + 7]),
)


@given(st.integers(2, 4).flatmap(lambda n: st.lists(LENGTHS, min_size=n * n, max_size=n * n)))
def test_each_rank_gets_what_the_others_have_for_it(drawn: list[int]) -> None:
    size = {4: 2, 9: 3, 16: 4}[len(drawn)]
    lengths = [drawn[rank * size : (rank + 1) * size] for rank in range(size)]

    def work(direct: Direct) -> None:
        for _ in range(2):
            found = exchanged(direct, lengths)
            for other, one in enumerate(found):
                assert one == message(other, direct.rank, lengths[other][direct.rank])

    on_ranks(size, work)


def test_a_rank_that_runs_ahead_is_waited_for_and_loses_nothing() -> None:
    """It sends much, many times, to a rank that is slow."""
    rounds, length = 40, 3 * PIECE_BYTES

    def work(direct: Direct) -> bool:
        is_root, empty = direct.rank == 0, memoryview(bytearray())
        for number in range(rounds):
            sent = memoryview(bytes([number]) * length)
            room = memoryview(bytearray(length))
            if is_root and number % 8 == 0:
                time.sleep(0.01)
            own = [sent, empty]
            direct.exchange(own, [room, room] if is_root else [empty, empty])
            if is_root and bytes(room) != bytes([number]) * length:
                return False
        return True

    assert all(on_ranks(2, work))


def test_who_does_not_know_the_key_is_let_go() -> None:
    store = dist.HashStore()

    def stranger() -> None:
        host, port = store.get("address 0").decode().split()
        with suppress(ConnectionError), socket.create_connection((host, int(port)), 5) as connected:
            connected.sendall(b"k" * 36)
            assert connected.recv(1) == b""

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(Direct, store, 0, 2, timeout_s=20.0, host="127.0.0.1")
        pool.submit(stranger).result()
        second = pool.submit(Direct, store, 1, 2, timeout_s=20.0, host="127.0.0.1")
        ranks = [first.result(), second.result()]
        found = list(pool.map(lambda one: exchanged(one, [[1, 2], [3, 4]]), ranks))
    assert [list(map(len, one)) for one in found] == [[1, 3], [2, 4]]


def test_who_says_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_module, "_GREETING_S", 0.2)
    store = dist.HashStore()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(Direct, store, 0, 2, timeout_s=20.0, host="127.0.0.1")
        host, port = store.get("address 0").decode().split()
        with socket.create_connection((host, int(port)), 5) as silent:
            second = pool.submit(Direct, store, 1, 2, timeout_s=20.0, host="127.0.0.1")
            ranks = [first.result(), second.result()]
            assert silent.recv(1) == b""
        found = list(pool.map(lambda one: exchanged(one, [[1, 2], [3, 4]]), ranks))
    assert [list(map(len, one)) for one in found] == [[1, 3], [2, 4]]


@pytest.mark.parametrize(
    "theirs", [[(4, 8), (4, 8)], [(0, 8), (8, 8)], [(8, 8), (0, 8), (8, 8)], [(8, 8), (9, 8)]]
)
def test_no_message_is_taken_for_another(theirs: list[tuple[int, int]]) -> None:
    """Where a rank sends more or less than is wanted of it, or nothing for once."""

    def work(direct: Direct) -> str:
        other = 1 - direct.rank
        try:
            for length, wanted in theirs if direct.rank else [(8, 8)] * len(theirs):
                sent, received = ([memoryview(bytearray())] * 2 for _ in range(2))
                sent[other] = memoryview(bytes(length))
                received[other] = memoryview(bytearray(wanted))
                direct.exchange(sent, received)
        except (ValueError, ConnectionError) as error:
            direct.close()
            return f"{type(error).__name__}: {error}"
        return ""

    first, _ = on_ranks(2, work)
    assert first.startswith("ValueError: rank 1 of the group sent"), first


def test_a_call_that_waits_ends_when_the_connections_are_let_go() -> None:
    def work(direct: Direct) -> None:
        if direct.rank:
            time.sleep(0.3)
            return
        closing = threading.Timer(0.1, direct.close)
        closing.start()
        with pytest.raises(ConnectionError):
            exchanged(direct, [[1, 1], [1, 1]])
        direct.close()

    on_ranks(2, work)


def test_a_rank_that_never_comes_is_said() -> None:
    for rank in (0, 1):
        with pytest.raises((TimeoutError, RuntimeError), match=r"(?i)timed? ?out"):
            Direct(dist.HashStore(), rank, 2, timeout_s=0.2, host="127.0.0.1")
