"""Direct: messages between ranks, over a socket for each two of them.

Knows: sockets, and bytes. Does not know: tensors, or what the ranks are.
Why not Gloo alone: it hands each message from thread to thread four times. Between two processes of
a machine with two cores, which multiply between messages of 8 KB, that took 1.4 ms and this 0.3.
Of long messages it is a small part, and they are Gloo's.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

SHORT_BYTES = 1 << 16
"""Of a message; and of a piece of a longer one. A socket takes four of them from who sends before
who receives looks, and ranks are never two pieces apart: so no two wait for each other."""

_WHO = struct.Struct("<32sI")
"""What a rank says first: the key, which the store has, and its number."""

Answer = TypeVar("Answer")


class Direct:
    """This rank's sockets to all others. Every rank makes the same calls.

    store: nobody else's; here ranks find one another. host: this machine's address that the others
    reach. timeout_s: seconds after which a rank that does not answer is given up.

    Every call, and making it, raises ConnectionError where a rank is gone, and TimeoutError where
    one is silent.
    """

    def __init__(self, store: Store, rank: int, size: int, *, timeout_s: float, host: str) -> None:
        self.rank, self.size = rank, size
        self._peers: dict[int, socket.socket] = {}
        deadline = monotonic() + timeout_s
        if rank == 0:
            store.set("key", secrets.token_hex(16))
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            with socket.create_server((host, 0), family=family) as listening:
                store.set(f"address {rank}", f"{host} {listening.getsockname()[1]}")
                names = ["key", *(f"address {other}" for other in range(rank))]
                store.wait(names, timedelta(seconds=timeout_s))
                key = store.get("key")
                for other in range(rank):
                    there, _, port = store.get(f"address {other}").decode().partition(" ")
                    peer = socket.create_connection((there, int(port)), timeout_s)
                    peer.sendall(_WHO.pack(key, rank))
                    self._keep(other, peer, timeout_s)
                while len(self._peers) < size - 1:
                    listening.settimeout(max(0.001, deadline - monotonic()))
                    self._accept(listening, key, timeout_s)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets go of the connections, also under a call that waits. May be called twice."""
        for peer in self._peers.values():
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
            peer.close()

    def exchange(self, sent: Sequence[memoryview], received: Sequence[memoryview]) -> None:
        """sent: what each rank gets of this one. received: filled with what each has for it. Both
        in the order of ranks; of other ranks' lengths each knows those that it receives.
        """
        received[self.rank][:] = sent[self.rank]
        longest = max(map(len, (*sent, *received)))
        for start in range(0, longest, SHORT_BYTES):
            piece = slice(start, start + SHORT_BYTES)
            for other, peer in self._peers.items():
                if part := sent[other][piece]:
                    _told(partial(peer.sendall, part))
            for other, peer in self._peers.items():
                _fill(peer, received[other][piece])

    def _accept(self, listening: socket.socket, key: bytes, timeout_s: float) -> None:
        """The next rank that comes; who does not know the key is let go."""
        peer, _ = listening.accept()
        peer.settimeout(timeout_s)
        said = bytearray(_WHO.size)
        with suppress(OSError):
            _fill(peer, memoryview(said))
            told, rank = _WHO.unpack(said)
            if hmac.compare_digest(told, key) and self.rank < rank < self.size:
                self._keep(rank, peer, timeout_s)
                return
        peer.close()

    def _keep(self, rank: int, peer: socket.socket, timeout_s: float) -> None:
        peer.settimeout(timeout_s)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            peer.setsockopt(socket.SOL_SOCKET, buffer, 4 * SHORT_BYTES)
        self._peers[rank] = peer


def _fill(peer: socket.socket, into: memoryview) -> None:
    """Waits for as many bytes as there is room for."""
    while into:
        count = _told(partial(peer.recv_into, into))
        if not count:
            raise ConnectionError("a rank is gone")
        into = into[count:]


def _told(call: Callable[[], Answer]) -> Answer:
    """What a socket cannot do for another reason than time, it cannot do since one end is gone."""
    try:
        return call()
    except (TimeoutError, ConnectionError):
        raise
    except OSError as error:
        raise ConnectionError(f"a rank is gone: {error}") from error
