"""Calls of a pass, tried one by one: in other rows, dtypes and layouts, and at a tensor's end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from pilotfish.invariance.row_tries import same_bits
from support.own_arithmetic import tried


def test_calls_that_are_not_exact_are_tried_whatever_their_name() -> None:
    weight = torch.randn(16, 16)
    calls: dict[str, Callable[[torch.Tensor], Any]] = {
        "tensordot": lambda x: torch.tensordot(x, weight, ([1], [1])),
        "linalg_multi_dot": lambda x: torch.linalg.multi_dot([x, weight, weight]),
        "bilinear": lambda x: functional.bilinear(x, x, torch.randn(2, 16, 16)),
        "cosine_similarity": lambda x: functional.cosine_similarity(x, x + 1),
        "fft_rfft": torch.fft.rfft,
        "atan": torch.atan,
        "cdist": lambda x: torch.cdist(x, weight),
        "glu": functional.glu,
        "index_add": lambda x: x.index_add(1, torch.zeros(3, dtype=torch.int64), x[:, :3]),
    }
    for name, call in calls.items():
        with torch.inference_mode():
            own = tried(lambda rows, call=call: call(torch.randn(rows, 16)))  # type: ignore[misc]
        assert [one.name for one in own.found] == [name]

    def exact(rows: int) -> None:
        x = torch.randn(rows, 16)
        torch.cat((x.view(-1, 4, 4).transpose(1, 2).reshape(rows, -1), x)).clamp(min=0).max(1)
        (x * 2 + x.sqrt() / 3).to(torch.bfloat16)[torch.arange(5)].topk(3)

    with torch.inference_mode():
        assert tried(exact).found == []


@torch.library.custom_op("pilotfish_tests::two_of_a_row", mutates_args=())
def two_of_a_row(x: torch.Tensor) -> torch.Tensor:
    """A product whose order follows the number of rows, of which some call has two a token."""
    return x + (x.shape[0] == 2)


def test_rows_that_are_multiples_and_rows_that_are_not_finite() -> None:
    def calls(rows: int) -> None:
        x = torch.randn(rows, 31)
        two_of_a_row(torch.cat((x, x)))
        torch.log(x)

    own = tried(calls)
    assert own.found[0].problem == "gives the rows of a call of 1 other bits than those of many"
    assert own.found[1].problem == "its results are not finite"
    assert own.found[1].is_untried


@torch.library.custom_op("pilotfish_tests::both_dtypes", mutates_args=())
def both_dtypes(x: torch.Tensor) -> torch.Tensor:
    """Steady in float32 alone."""
    return x + (x.dtype == torch.bfloat16) * (x.shape[0] == 1)


def test_one_line_is_tried_in_every_dtype_and_layout() -> None:
    def calls(rows: int) -> None:
        x = torch.randn(rows, 7)
        for given in (x, x.bfloat16(), torch.randn(7, rows).t()):
            both_dtypes(given)

    own = tried(calls)
    assert [bool(one.problem) for one in own.found] == [False, True, False]


def test_numbers_at_the_end_of_a_tensor_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a function of single numbers whose rows are all ends, or none is."""
    real = functional.gelu

    class Ends(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            made = func(*args, **(kwargs or {}))
            if func.overloadpacket.__name__ == "gelu" and made.numel() % 16:
                made[..., -1:] += 1
            return made

    with Ends():
        own = tried(lambda rows: real(torch.randn(rows, 160), approximate="tanh"))
    assert own.found[0].problem == "gives a number other bits at the end of a tensor than inside"


def test_an_expanded_operand_is_tried() -> None:
    def calls(rows: int) -> None:
        x, row = torch.randn(rows, 8), torch.randn(8)
        torch.lerp(x, row.expand(rows, 8), 0.5)
        functional.linear(x, torch.ones(1, 1).expand(8, 8))

    own = tried(calls)
    assert [one.is_untried for one in own.found] == [False, False]


def test_bits_are_compared_as_bits() -> None:
    def of(*numbers: float) -> torch.Tensor:
        return torch.tensor(numbers)

    assert same_bits(of(1.0, float("nan")), of(1.0, float("nan")))
    assert not same_bits(of(float("inf")), of(torch.finfo(torch.float32).max))
    assert not same_bits(of(0.0), of(-0.0))
    assert not same_bits(of(1.0), of(1.0).double())
    assert same_bits(of(1.0)[0], of(1.0)[0])
