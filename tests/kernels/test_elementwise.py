"""Elementwise functions and softmax: errors, and bits that do not depend on an element's place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.native_cases import DTYPES, TORCH, needs_library, same_bits, threads
from pilotfish.kernels import KernelBackend, elementwise
from pilotfish.kernels.elementwise import reference

NATIVE = KernelBackend("native")
FASTEST = KernelBackend("torch", invariant=False)
BACKENDS = [
    pytest.param(TORCH, id="torch"),
    pytest.param(
        NATIVE,
        id="native",
        marks=needs_library,
    ),
]
NAMES = ("silu", "gelu", "gelu_tanh", "sigmoid", "tanh", "softplus", "exp", "relu_squared")

USUAL: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": torch.nn.functional.softplus,
    "exp": torch.exp,
    "relu_squared": lambda x: torch.relu(x).square(),
}


def call(name: str, x: torch.Tensor, backend: KernelBackend) -> torch.Tensor:
    result: torch.Tensor = getattr(elementwise, name)(x, backend=backend)
    return result


def draw(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 4
    return x.to(dtype)


@pytest.mark.parametrize("backend", [*BACKENDS, pytest.param(FASTEST, id="fastest")])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_error_is_no_worse_than_twice_eagers(
    backend: KernelBackend, name: str, dtype: torch.dtype
) -> None:
    """Over 200 thousand numbers, in steps of size, so that small results are judged as such."""
    x = torch.cat((draw((100_000,), dtype), draw((100_000,), dtype, 1) / 64))
    if dtype == torch.float16:
        x = x[x.abs() < 11]  # exp overflows, and its eager error with it
    wanted = getattr(reference, name)(x.double())
    got, usual = call(name, x, backend).double(), USUAL[name](x).double()
    assert call(name, x, backend).dtype == dtype
    exponent = torch.frexp(x.float()).exponent
    for size in exponent.unique():
        some = exponent == size
        limit = 2 * (usual - wanted)[some].abs().max().item()
        one = torch.finfo(dtype).eps * wanted[some].abs().max().item()
        assert (got - wanted)[some].abs().max().item() <= max(limit, one), size


def check_places(x: torch.Tensor, name: str, backend: KernelBackend) -> None:
    """x: [N]: every number of threads, stride, step and offset gives the same bits."""
    with threads(1):
        wanted = call(name, x, backend)
        for step in (1, 3, 7, 16, 17, 33, 64):
            for first in (0, 1, 5):
                starts = range(first, first + 60 * step, step)
                got = torch.cat([call(name, x[i : i + step], backend) for i in starts])
                assert same_bits(got, wanted[first : first + got.shape[0]]), (step, first)
    for number in (1, 2, 3):
        with threads(number):
            for first, end in ((0, 70_001), (0, 33_000), (1, 69_000), (33_000, 70_001)):
                assert same_bits(call(name, x[first:end], backend), wanted[first:end])
            strided = torch.stack((x, x), 1)[:, 0]
            assert same_bits(call(name, strided, backend), wanted)
            wide = torch.full((100, 1402), float("nan"), dtype=x.dtype)
            wide[:, 1:701] = x[:70_000].view(100, 700)
            rows = call(name, wide[:, 1:701], backend)
            assert rows.is_contiguous()
            assert same_bits(rows.flatten(), wanted[:70_000])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_elements_bits_do_not_depend_on_its_place(
    backend: KernelBackend, name: str, dtype: torch.dtype
) -> None:
    check_places(draw((70_001,), dtype), name, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes_and_no_elements(backend: KernelBackend) -> None:
    x = draw((3, 5, 7), torch.float32)
    for view in (x, x.transpose(0, 2), x[:, 1], x[:, :, 2], x[1, 2, 3], x[:0]):
        got = elementwise.silu(view, backend=backend)
        assert got.shape == view.shape
        assert got.is_contiguous()
        flat = elementwise.silu(view.flatten(), backend=backend)
        assert same_bits(got.flatten(), flat)
        assert got.data_ptr() != view.data_ptr() or not view.numel()


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    rows=st.integers(1, 9),
    width=st.integers(1, 300),
    dtype=st.sampled_from(DTYPES),
    size=st.sampled_from((0.1, 3.0, 40.0)),
    seed=st.integers(0, 2**31),
)
def test_softmax_error_is_no_worse_than_twice_eagers(
    backend: KernelBackend, *, rows: int, width: int, dtype: torch.dtype, size: float, seed: int
) -> None:
    x = (draw((rows, width), torch.float32, seed) * size).to(dtype)
    wanted = torch.softmax(x.double(), -1)
    got = elementwise.softmax(x, backend=backend)
    usual = torch.softmax(x, -1).double()
    limit = 2 * (usual - wanted).abs().max().item()
    # Where eager was lucky: exponential, sum and quotient, and the last rounding, of at most 1.
    roundings = torch.finfo(dtype).eps / 2 + 2**-24 * (4 + width.bit_length())
    assert got.dtype == dtype
    assert (got - wanted).abs().max().item() <= max(limit, roundings)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 15, 64, 577])
def test_softmax_bits_depend_on_the_row_alone(
    backend: KernelBackend, dtype: torch.dtype, width: int
) -> None:
    x = draw((77, width), dtype)
    x[3, width - 1] = -torch.inf if width > 1 else 0.0
    wanted = elementwise.softmax(x, backend=backend)
    for number in (1, 2, 3):
        with threads(number):
            for i, j in ((0, 77), (0, 1), (3, 4), (7, 10), (76, 77)):
                assert same_bits(elementwise.softmax(x[i:j], backend=backend), wanted[i:j])
            wide = torch.full((77, width + 5), float("nan"), dtype=dtype)
            wide[:, 2 : 2 + width] = x
            assert same_bits(elementwise.softmax(wide[:, 2 : 2 + width], backend=backend), wanted)
    assert same_bits(
        elementwise.softmax(x.view(7, 11, width), backend=backend), wanted.view(7, 11, width)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_softmax_keeps_what_is_no_number_in_its_row(backend: KernelBackend) -> None:
    for column in (0, 15, 16, 39):
        x = draw((3, 40), torch.float32)
        wanted = elementwise.softmax(x, backend=backend)
        x[1, column] = float("nan")
        got = elementwise.softmax(x, backend=backend)
        assert same_bits(got[[0, 2]], wanted[[0, 2]])
        assert got[1].isnan().all()
