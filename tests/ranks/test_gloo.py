"""Gloo: every rank's tensor in order, of any dtype; what it counts; ranks that are gone or silent.

Ranks are threads here, each with a process group of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pilotfish.parallel.collectives import all_gather_columns, gather
from pilotfish.parallel.direct import PIECE_BYTES
from pilotfish.parallel.gloo import Gloo
from pilotfish.parallel.group import Group

DTYPES = (torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.uint8)


def on_ranks(size: int, work: Callable[[Gloo], Any], timeout_s: float = 20.0) -> list[Any]:
    store = dist.HashStore()

    def one(rank: int) -> Any:
        return work(Gloo(store, "some", rank, size, timeout_s=timeout_s))

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


@pytest.mark.parametrize("size", [2, 3])
def test_every_rank_gets_all_in_order(size: int) -> None:
    def work(transport: Gloo) -> list[bool]:
        found = []
        for dtype in DTYPES:
            for shape in ((), (3,), (2, 0), (2, 3), (3, PIECE_BYTES)):
                own = [torch.full(shape, rank + 1).to(dtype) for rank in range(size)]
                got = transport.all_gather(own[transport.rank])
                at_root = transport.gather(own[transport.rank], 1)
                found.append(len(got) == size and all(map(torch.equal, got, own)))
                found.append((at_root is not None) == (transport.rank == 1))
                if at_root is not None:
                    found.append(all(map(torch.equal, at_root, own)))
                found += [one.dtype == dtype and one.shape == shape for one in got]
        return found

    assert all(map(all, on_ranks(size, work)))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,), (PIECE_BYTES // 4,), (PIECE_BYTES,)])
def test_every_rank_gets_its_part_of_all(size: int, shape: tuple[int, ...]) -> None:
    def part(sender: int, receiver: int) -> torch.Tensor:
        return torch.full(shape, float(10 * sender + receiver))

    def work(transport: Gloo) -> bool:
        rank = transport.rank
        got = transport.all_to_all(torch.stack([part(rank, other) for other in range(size)]))
        return torch.equal(got, torch.stack([part(other, rank) for other in range(size)]))

    assert all(on_ranks(size, work))


def test_columns_that_ranks_share_unequally() -> None:
    whole = torch.arange(14.0).view(2, 7)

    def work(transport: Gloo) -> Any:
        group = Group(transport.rank, transport.size, transport)
        own = group.share(7)
        columns = whole[:, own.start : own.stop]
        return all_gather_columns(group, columns, 7), gather(group, whole[:1], 0)

    first, *others = on_ranks(3, work)
    assert all(torch.equal(found, whole) for found, _ in (first, *others))
    assert len(first[1]) == 3
    assert all(at_root is None for _, at_root in others)


def test_calls_and_bytes_are_counted() -> None:
    def work(transport: Gloo) -> Any:
        for _ in range(2):
            transport.all_gather(torch.zeros(5, dtype=torch.bfloat16))
        transport.gather(torch.zeros(3), 0)
        return dict(transport.sent)

    root, *others = on_ranks(3, work)
    passed_on = {"all_gather calls": 2, "all_gather bytes": 2 * 2 * 10, "gather calls": 1}
    assert root == {**passed_on, "gather bytes": 0}
    assert others == [{**passed_on, "gather bytes": 12}] * 2


def test_tensors_made_for_inference_alone_travel() -> None:
    def work(transport: Gloo) -> Any:
        with torch.inference_mode():
            return torch.cat(list(transport.all_gather(torch.ones(2)))).sum().item()

    assert on_ranks(2, work) == [4.0, 4.0]


def test_a_rank_that_is_silent_or_gone_is_said() -> None:
    def silent(transport: Gloo) -> Any:
        if transport.rank:
            return transport  # alive until all have ended
        with pytest.raises(TimeoutError):
            transport.all_gather(torch.zeros(1))
        return None

    def gone(transport: Gloo) -> Any:
        if transport.rank:
            transport.close()
            with pytest.raises(ConnectionError, match="is closed"):
                transport.all_gather(torch.zeros(1))
            return None
        with pytest.raises(ConnectionError):
            transport.all_gather(torch.zeros(1))
        return None

    on_ranks(2, gone)
    on_ranks(2, silent, timeout_s=0.3)


def test_a_rank_that_never_comes_is_said() -> None:
    with pytest.raises(TimeoutError):
        Gloo(dist.HashStore(), "some", 0, 2, timeout_s=0.3)
