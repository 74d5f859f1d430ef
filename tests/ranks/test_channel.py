"""Channel: whole messages, to who has the key alone."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from pilotfish.ranks.channel import Channel, HungUp, Listener


@pytest.fixture
def ends() -> Any:
    listener, made = Listener(), []
    thread = threading.Thread(
        target=lambda: made.append(Channel.connect(listener.address, listener.key, 3))
    )
    thread.start()
    found = listener.accept(5.0, 0.5)
    thread.join()
    assert found is not None
    assert found[0] == 3
    yield found[1], made[0]
    for end in (found[1], made[0], listener):
        end.close()


@pytest.mark.parametrize("size", [0, 1, 100, 1 << 16, 3 << 20])
def test_messages_come_whole_and_in_order(ends: Any, size: int) -> None:
    mine, theirs = ends
    sent = [bytes([i]) * size for i in range(3)]
    thread = threading.Thread(target=lambda: [theirs.send(one) for one in sent])
    thread.start()
    assert [bytes(mine.recv()) for _ in sent] == sent
    thread.join()


def test_a_peer_that_is_gone_is_the_end(ends: Any) -> None:
    mine, theirs = ends
    theirs.close()
    with pytest.raises(HungUp):
        mine.recv()
    with pytest.raises(ConnectionError):
        mine.send(bytes(64 << 20))


def test_a_peer_that_does_not_read_is_given_up(ends: Any) -> None:
    mine, _ = ends
    with pytest.raises(TimeoutError):
        mine.send(bytes(64 << 20))


def test_who_has_another_key_is_let_go() -> None:
    listener, ended = Listener(), []

    def try_it() -> None:
        channel = Channel.connect(listener.address, bytes(32), 1)
        try:
            channel.recv()
        except HungUp:
            ended.append(True)
        channel.close()

    thread = threading.Thread(target=try_it)
    thread.start()
    assert listener.accept(5.0, 1.0) is None
    thread.join()
    assert ended
    listener.close()


def test_who_connects_and_goes_is_no_worker() -> None:
    listener = Listener()
    socket.create_connection(listener.address).close()
    assert listener.accept(5.0, 1.0) is None
    assert listener.accept(0.01, 1.0) is None
    listener.close()
