"""Gloo: carries tensors between processes on CPUs, by torch's Gloo.

Knows: one process group of its own, which is nobody else's default. Does not know: who the
processes are, or how they were started.
"""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store


class Gloo:
    """A `Transport`.

    name: of the group; the same on all of its ranks, and no other group's at this store.
    timeout_s: seconds after which a rank that does not take part is given up. host: this machine's
    address that the others can reach.
    sent: calls, and bytes that this rank gave to others, by collective: "all_gather calls", ...

    Every call, and making it, raises ConnectionError where a rank is gone, and TimeoutError where
    one is silent.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        rank: int,
        size: int,
        *,
        timeout_s: float,
        host: str = "127.0.0.1",
    ) -> None:
        self.rank, self.size, self.name, self.host = rank, size, name, host
        self.sent: Counter[str] = Counter()
        gloo: Any = dist.ProcessGroupGloo
        options = gloo._Options()
        options._timeout = timedelta(seconds=timeout_s)
        options._devices = [gloo.create_device(hostname=host)]
        meeting = distributed_c10d.PrefixStore(name, store)
        self._processes: Any = _told(lambda: gloo(meeting, rank, size, options))

    def close(self) -> None:
        """Lets go of the connections. May be called twice."""
        self._processes = None

    def abandon(self) -> None:
        """In a fork of the process that made it: there are none of its threads, for which letting
        go of it would wait for ever. So it is never let go of.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._processes))

    def all_gather(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """x: contiguous, of one shape and dtype on all ranks. Returns every rank's, in order."""
        sent = _bytes_of(x)
        self._count("all_gather", sent.numel() * (self.size - 1))
        if not sent.numel():
            return [x] * self.size
        found = torch.empty(self.size * sent.numel(), dtype=torch.uint8)
        _told(lambda: self._open._allgather_base(found, sent).wait())
        return [_as(x, part) for part in found.chunk(self.size)]

    def all_to_all(self, x: torch.Tensor) -> torch.Tensor:
        """x: [ranks, ...], contiguous. Returns every rank's part for this one, in order."""
        sent = _bytes_of(x)
        self._count("all_to_all", sent.numel() // self.size * (self.size - 1))
        if not sent.numel():
            return x
        found = torch.empty_like(sent)
        _told(lambda: self._open.alltoall_base(found, sent, [], []).wait())
        return _as(x, found)

    def all_to_all_rows(
        self, x: torch.Tensor, sent: Sequence[int], received: Sequence[int]
    ) -> torch.Tensor:
        """x: [rows, ...], contiguous; see `Transport`. A rank may have none of them."""
        width = math.prod(x.shape[1:]) * x.itemsize
        self._count("all_to_all_rows", width * (sum(sent) - sent[self.rank]))
        found = torch.empty(sum(received) * width, dtype=torch.uint8)
        given, taken = ([count * width for count in counts] for counts in (sent, received))
        _told(lambda: self._open.alltoall_base(found, _bytes_of(x), taken, given).wait())
        return found.view(x.dtype).view(sum(received), *x.shape[1:])

    def gather(self, x: torch.Tensor, root: int) -> Sequence[torch.Tensor] | None:
        """As `all_gather`, on the rank `root`; None on the others."""
        sent = _bytes_of(x)
        is_root = self.rank == root
        self._count("gather", 0 if is_root else sent.numel())
        if not sent.numel():
            return [x] * self.size if is_root else None
        options = dist.GatherOptions()
        options.rootRank = root
        found = [torch.empty_like(sent) for _ in range(self.size)] if is_root else []
        _told(lambda: self._open.gather([found] if is_root else [], [sent], options).wait())
        return [_as(x, part) for part in found] if is_root else None

    def _count(self, name: str, num_bytes: int) -> None:
        self.sent[f"{name} calls"] += 1
        self.sent[f"{name} bytes"] += num_bytes

    @property
    def _open(self) -> Any:
        if self._processes is None:
            raise ConnectionError(f"the group {self.name!r} is closed")
        return self._processes


def _bytes_of(x: torch.Tensor) -> torch.Tensor:
    """[bytes] uint8, in x's memory: so any dtype travels."""
    return x.detach().reshape(-1).view(torch.uint8)


def _as(x: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Bytes as a tensor of x's shape and dtype."""
    return part.view(x.dtype).view(x.shape)


def _told(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except RuntimeError as error:
        text = str(error)
        is_silence = "timed out" in text.lower() or "timeout" in text.lower()
        raise (TimeoutError if is_silence else ConnectionError)(text) from error
