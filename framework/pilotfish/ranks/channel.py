"""Channel: whole messages of bytes between the driver and one worker, over a socket.

Knows: lengths, a key that both ends must know. Does not know: what a message says.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Self

from pilotfish.parallel.direct import listen

Address = tuple[str, int]
"""Host and port."""

_LENGTH = struct.Struct("<Q")
_WHO = struct.Struct("<II")
"""A worker's rank and process."""
_NONCE_BYTES = 32
_GREETING_S = 10.0
"""How long a process that connects may take to prove that it has the key."""


class HungUp(EOFError):
    """The other end of a channel is gone."""


class Channel:
    """One end. timeout_s: seconds after which a send, or a message that has begun, is given up with
    TimeoutError; None for never.

    pid: the worker's process, to the driver.

    A peer that is gone is HungUp to who receives, and ConnectionError to who sends.
    """

    def __init__(
        self, connected: socket.socket, timeout_s: float | None = None, pid: int = 0
    ) -> None:
        self.pid = pid
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.settimeout(timeout_s)
        self._socket = connected

    @classmethod
    def connect(cls, address: Address, key: bytes, rank: int) -> Self:
        """The worker's end, which no call of gives up; it says which rank it is."""
        made = cls(socket.create_connection(address, _GREETING_S), _GREETING_S)
        nonce, who = bytes(made.recv()), _WHO.pack(rank, os.getpid())
        made.send(who + _proof(key, nonce, who))
        made.give_up_after(None)
        return made

    @staticmethod
    def ready(channels: Iterable[Channel], wait_s: float) -> list[Channel]:
        """Those with a message, or whose peer is gone; none where none has in time."""
        of_socket = {one._socket.fileno(): one for one in channels}
        found = wait([*of_socket], wait_s)
        return [one for number, one in of_socket.items() if number in found]

    def send(self, message: bytes | bytearray) -> None:
        """Sends a message whole."""
        # Small ones in one piece: two would be two packets.
        length = _LENGTH.pack(len(message))
        if len(message) < 1 << 16:
            self._socket.sendall(length + message)
        else:
            self._socket.sendall(length)
            self._socket.sendall(message)

    def recv(self) -> bytearray:
        """Waits for the next message. Raises HungUp where the peer is gone."""
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        return self._exactly(length)

    def give_up_after(self, timeout_s: float | None) -> None:
        """See the class; from here on."""
        self._socket.settimeout(timeout_s)

    @property
    def host(self) -> str:
        """This machine's address that the peer reaches."""
        return str(self._socket.getsockname()[0])

    @property
    def is_of_this_machine(self) -> bool:
        """Whether the peer is."""
        return bool(self._socket.getpeername()[0] == self.host)

    @property
    def is_gone(self) -> bool:
        """Whether the peer has ended, or this end is closed. Takes nothing of what was sent."""
        try:
            return bool(wait([self._socket], 0)) and not self._socket.recv(1, socket.MSG_PEEK)
        except (OSError, ValueError):  # ValueError: closed
            return True

    def hang_up(self) -> None:
        """The peer finds the end, whoever else has this socket, a fork for one."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """May be called twice."""
        self._socket.close()

    def _exactly(self, length: int) -> bytearray:
        found = bytearray(length)
        rest = memoryview(found)
        while rest:
            try:
                count = self._socket.recv_into(rest)
            except ConnectionError as error:
                raise HungUp from error
            if not count:
                raise HungUp
            rest = rest[count:]
        return found


class Listener:
    """Where workers connect: a port, which is free again after `close`.

    host: this machine's address that they reach; no other answers.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.key = secrets.token_bytes(32)
        self._socket = listen(host)
        self.address: Address = (host, int(self._socket.getsockname()[1]))

    def accept(self, wait_s: float, timeout_s: float) -> tuple[int, Channel] | None:
        """The next worker's rank and channel; None where none comes in wait_s.

        Who does not know the key is let go. timeout_s: of the channel.
        """
        self._socket.settimeout(wait_s)
        try:
            connected, _ = self._socket.accept()
        except TimeoutError:
            return None
        channel, nonce = Channel(connected, _GREETING_S), secrets.token_bytes(_NONCE_BYTES)
        with suppress(OSError, HungUp):
            channel.send(nonce)
            answer = bytes(channel.recv())
            who, proof = answer[: _WHO.size], answer[_WHO.size :]
            if hmac.compare_digest(proof, _proof(self.key, nonce, who)):
                rank, pid = _WHO.unpack(who)
                return rank, Channel(connected, timeout_s, pid)
        channel.close()
        return None

    @property
    def is_closed(self) -> bool:
        """Whether nobody is waited for any more."""
        return self._socket.fileno() < 0

    def close(self) -> None:
        """May be called twice."""
        self._socket.close()


def _proof(key: bytes, nonce: bytes, who: bytes) -> bytes:
    return hmac.digest(key, nonce + who, "sha256")
