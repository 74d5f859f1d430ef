"""Gloo: carries tensors between processes on CPUs. What all ranks know to be long goes by torch's
Gloo, all else directly.

Knows: one process group of its own, which is nobody else's default. Does not know: who the
processes are, or how they were started.
"""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from pilotfish.parallel.direct import PIECE_BYTES, Direct

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
        near = distributed_c10d.PrefixStore(f"{name} direct", store)
        self._direct = _told(lambda: Direct(near, rank, size, timeout_s=timeout_s, host=host))

    def close(self) -> None:
        """Lets go of the connections. May be called twice."""
        self._direct.close()
        self._processes = None

    def abandon(self) -> None:
        """In a fork of the process that made it: there are none of its threads, for which letting
        go of it would wait for ever. So it is never let go of.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._processes))
        self._direct.abandon()

    def all_gather(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """x: contiguous, of one shape and dtype on all ranks. Returns every rank's, in order."""
        group = self._begin("all_gather", x, x.nbytes * (self.size - 1))
        found = x.new_empty((self.size, *x.shape))
        if x.nbytes <= PIECE_BYTES:
            parts = _parts_of(found, [x.nbytes] * self.size)
            self._direct.exchange([_memory_of(x)] * self.size, parts)
        else:
            given, taken = _bytes_of(x), _bytes_of(found)
            _told(lambda: group._allgather_base(taken, given).wait())
        return found.unbind(0)

    def all_to_all(self, x: torch.Tensor) -> torch.Tensor:
        """x: [ranks, ...], contiguous. Returns every rank's part for this one, in order."""
        each = x.nbytes // self.size
        group = self._begin("all_to_all", x, each * (self.size - 1))
        found = torch.empty_like(x)
        if each <= PIECE_BYTES:
            lengths = [each] * self.size
            self._direct.exchange(_parts_of(x, lengths), _parts_of(found, lengths))
        else:
            given, taken = _bytes_of(x), _bytes_of(found)
            _told(lambda: group.alltoall_base(taken, given, [], []).wait())
        return found

    def all_to_all_rows(
        self, x: torch.Tensor, sent: Sequence[int], received: Sequence[int]
    ) -> torch.Tensor:
        """x: [rows, ...], contiguous; see `Transport`. A rank may have none of them.

        No rank knows how long the messages between two others are, so all of them go directly.
        """
        width = math.prod(x.shape[1:]) * x.itemsize
        self._begin("all_to_all_rows", x, width * (sum(sent) - sent[self.rank]))
        found = x.new_empty((sum(received), *x.shape[1:]))
        given, taken = ([count * width for count in counts] for counts in (sent, received))
        self._direct.exchange(_parts_of(x, given), _parts_of(found, taken))
        return found

    def gather(self, x: torch.Tensor, root: int) -> Sequence[torch.Tensor] | None:
        """As `all_gather`, on the rank `root`; None on the others."""
        is_root = self.rank == root
        self._begin("gather", x, 0 if is_root else x.nbytes)
        found = x.new_empty((self.size if is_root else 0, *x.shape))
        given = [x.nbytes if rank == root else 0 for rank in range(self.size)]
        taken = [x.nbytes if is_root else 0] * self.size
        self._direct.exchange(_parts_of(x, given), _parts_of(found, taken))
        return found.unbind(0) if is_root else None

    def _begin(self, name: str, x: torch.Tensor, num_bytes: int) -> Any:
        """Counts a call. Returns the process group."""
        if self._processes is None:
            raise ConnectionError(f"the group {self.name!r} is closed")
        if x.device.type != "cpu" or not x.is_contiguous():
            raise ValueError(
                f"{name} was given a tensor on {x.device} with strides {x.stride()}; wanted a "
                "contiguous one on a CPU"
            )
        self.sent[f"{name} calls"] += 1
        self.sent[f"{name} bytes"] += num_bytes
        return self._processes


def _bytes_of(x: torch.Tensor) -> torch.Tensor:
    """[bytes] uint8, in x's memory: so any dtype travels."""
    return x.detach().reshape(-1).view(torch.uint8)


def _memory_of(x: torch.Tensor) -> memoryview:
    """Its bytes, as long as x lives."""
    return memoryview((ctypes.c_ubyte * x.nbytes).from_address(x.data_ptr())).cast("B")


def _parts_of(x: torch.Tensor, lengths: Sequence[int]) -> list[memoryview]:
    """Parts of its bytes, one after the other."""
    whole, ends = _memory_of(x), list(accumulate(lengths))
    return [whole[end - length : end] for length, end in zip(lengths, ends, strict=True)]


def _told(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except RuntimeError as error:
        text = str(error)
        is_silence = "timed out" in text.lower() or "timeout" in text.lower()
        raise (TimeoutError if is_silence else ConnectionError)(text) from error
