"""`places`: a call that travels sees what lies in memory, and all that it changes comes back."""

from __future__ import annotations

import attrs
import torch

from kernels.places import placed, sent

ELSEWHERE = "cpu:0"
"""Memory of its own, on the CPU: the trip is the one to a GPU."""


@attrs.frozen
class Record:
    rows: torch.Tensor
    memo: dict[str, int]


def test_strides_surroundings_and_shared_memory_travel() -> None:
    packed = torch.arange(24).view(4, 6)
    left, right = packed[:, :2], packed[:, 4:]

    def call(record: Record, others: list[torch.Tensor]) -> torch.Tensor:
        rows, (other,) = record.rows, others
        assert rows.untyped_storage().data_ptr() != packed.untyped_storage().data_ptr()
        assert rows.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        assert (rows.stride(), other.storage_offset()) == ((6, 1), 4)
        assert torch.equal(rows.as_strided((4, 6), (6, 1), 0), packed)
        rows += 100
        record.memo["seen"] = 1
        return other + 1

    memo: dict[str, int] = {}
    out = sent(call, ELSEWHERE, Record(left, memo), [right])
    assert torch.equal(left, torch.arange(24).view(4, 6)[:, :2] + 100)
    assert torch.equal(out, right + 1)
    assert memo == {"seen": 1}


def test_a_result_in_an_arguments_memory_is_that_argument() -> None:
    x = torch.zeros(3, 4, dtype=torch.bfloat16)
    out = sent(lambda rows: rows[1:].add_(1), ELSEWHERE, x)
    assert out.data_ptr() == x[1:].data_ptr()
    assert x.tolist() == [[0] * 4, [1] * 4, [1] * 4]


def test_the_torch_backend_stays_here() -> None:
    from pilotfish.kernels import KernelBackend

    x = torch.zeros(2)

    def call(rows: torch.Tensor, *, backend: KernelBackend) -> torch.Tensor:
        assert rows is x
        return rows

    assert placed(call)(x, backend=KernelBackend("torch")) is x
