"""Direct: messages between ranks, over a socket for each pair of them.

Knows: sockets, and bytes. Does not know: tensors, or what the ranks are.
Why not Gloo alone: it hands each message from thread to thread four times. Between two processes of
a machine with two cores, which multiply between messages of 8 KB, that took 1.4 ms and this 0.3.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

PIECE_BYTES = 1 << 16
"""Longer messages go in pieces of so many: after each, a rank hears the others. A socket takes some
of them before who receives looks, so the rank that has got least far is never held up by another.
"""

_WHO = struct.Struct("<32sI")
"""What a rank says first: the key, which the store has, and its number."""
_HEAD = struct.Struct("<QQ")
"""In front of a message: the number of the call, and how long it is."""
_GREETING_S = 5.0
"""How long who connects may take to say so."""

Answer = TypeVar("Answer")


class Direct:
    """This rank's sockets to all others. Every rank makes the same calls.

    store: nobody else's; here ranks find one another. host: this machine's address that the others
    reach. timeout_s: seconds after which a rank that does not answer is given up.

    Calls raise ConnectionError where a rank is gone, TimeoutError where one is silent, and
    ValueError where one makes another call. Making it may raise the store's RuntimeError too.
    """

    def __init__(self, store: Store, rank: int, size: int, *, timeout_s: float, host: str) -> None:
        self.rank, self.size = rank, size
        self._peers: dict[int, socket.socket] = {}
        self._num_calls, self._in_use = 0, threading.RLock()
        deadline = monotonic() + timeout_s
        if rank == 0:
            store.set("key", secrets.token_hex(16))
        try:
            with listen(host) as listening:
                store.set(f"address {rank}", f"{host} {listening.getsockname()[1]}")
                names = ["key", *(f"address {other}" for other in range(rank))]
                store.wait(names, timedelta(seconds=timeout_s))
                # Read before the first rank hears of this one: it has the store, and may go.
                key, *addresses = (store.get(name) for name in names)
                for other, address in enumerate(addresses):
                    there, _, port = address.decode().partition(" ")
                    peer = socket.create_connection((there, int(port)), timeout_s)
                    self._keep(other, peer, timeout_s)
                    peer.sendall(_WHO.pack(key, rank))
                while len(self._peers) < size - 1:
                    listening.settimeout(max(0.001, deadline - monotonic()))
                    self._accept(listening, key, timeout_s)
        except BaseException:
            self.close()
            raise

    def exchange(self, sent: Sequence[memoryview], received: Sequence[memoryview]) -> None:
        """sent: what each rank gets of this one. received: filled with what each has for it. Both
        in the order of ranks; of other ranks' lengths each knows those that it receives.
        """
        with self._in_use:
            self._num_calls += 1
            received[self.rank][:] = sent[self.rank]
            longest = max(map(len, (*sent, *received)))
            for start in range(0, longest, PIECE_BYTES):
                piece = slice(start, start + PIECE_BYTES)
                for other in self._peers:
                    if part := sent[other][piece]:
                        head = b"" if start else _HEAD.pack(self._num_calls, len(sent[other]))
                        self._told(
                            other, partial(self._peers[other].sendall, b"".join((head, part)))
                        )
                for other in self._peers:
                    if part := received[other][piece]:
                        if not start:
                            self._want_head(other, len(received[other]))
                        self._fill(other, part)

    def close(self) -> None:
        """Lets go of the connections; a call that waits raises. May be called twice."""
        for peer in self._peers.values():
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        with self._in_use:
            self.abandon()

    def abandon(self) -> None:
        """In a fork of the process: the connections are the other's, and end with it."""
        for peer in self._peers.values():
            peer.close()

    def _want_head(self, other: int, length: int) -> None:
        head = bytearray(_HEAD.size)
        self._fill(other, memoryview(head))
        found, wanted = _HEAD.unpack(head), (self._num_calls, length)
        if found != wanted:
            raise ValueError(
                f"rank {other} of the group sent {found[1]} bytes in its call {found[0]}; wanted "
                f"{length} in call {self._num_calls}: the ranks have computed different things"
            )

    def _fill(self, other: int, into: memoryview) -> None:
        """Waits for as many bytes as there is room for."""
        while into:
            count = self._told(other, partial(self._peers[other].recv_into, into))
            if not count:
                raise ConnectionError(f"rank {other} of the group is gone")
            into = into[count:]

    def _told(self, other: int, call: Callable[[], Answer]) -> Answer:
        """What a socket cannot do, for another reason than time, is since an end is gone."""
        try:
            return call()
        except TimeoutError:
            raise
        except OSError as error:
            raise ConnectionError(f"rank {other} of the group is gone: {error}") from error

    def _accept(self, listening: socket.socket, key: bytes, timeout_s: float) -> None:
        """The next rank that comes; who does not know the key is let go."""
        peer, _ = listening.accept()
        peer.settimeout(_GREETING_S)
        with suppress(OSError):
            said = peer.recv(_WHO.size)  # so few bytes come as they were sent
            told, rank = _WHO.unpack(said) if len(said) == _WHO.size else (b"", 0)
            if hmac.compare_digest(told, key) and self.rank < rank < self.size:
                self._keep(rank, peer, timeout_s)
                return
        peer.close()

    def _keep(self, rank: int, peer: socket.socket, timeout_s: float) -> None:
        peer.settimeout(timeout_s)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            peer.setsockopt(socket.SOL_SOCKET, buffer, 4 * PIECE_BYTES)
        self._peers[rank] = peer


def listen(host: str) -> socket.socket:
    """A socket that listens on some port of one address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family)
