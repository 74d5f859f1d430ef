"""A planned record that says another dtype, or other rows, than its buffers have is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pilotfish.kernels.native.buffers import Buffer, Rows, check_record
from pilotfish.kernels.native.numbers import dtype_code

T, OTHER = Rows("T"), Rows("R")
X = Buffer(T, 8, torch.bfloat16)
OUT = Buffer(T, 8, torch.float32)
PLACES = Buffer(T.times(2), 1, torch.int64)
RIGHT: dict[str, Any] = {
    "x": X,
    "out": OUT.columns(2),
    "places": PLACES,
    "rows": T,
    "chosen": T.times(2),
    "dtype": dtype_code(torch.bfloat16),
    "out_dtype": dtype_code(torch.float32),
    "weight_dtype": dtype_code(torch.float16),
}


def test_a_record_may_say_what_its_buffers_are() -> None:
    check_record("Arguments", RIGHT)
    check_record("Arguments", {"rows": OTHER, "dtype": 77})  # of no buffer


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("rows", OTHER, r"Arguments\.rows is the number of rows 'R', which no buffer"),
        ("dtype", dtype_code(torch.float16), r"Arguments\.dtype is 2; wanted the dtype_code"),
        ("out_dtype", dtype_code(torch.bfloat16), r"out_dtype is 1; .*: 0 \(torch\.float32\)"),
    ],
)
def test_a_record_that_says_otherwise_is_refused(field: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_record("Arguments", {**RIGHT, field: value})
