"""functions.h over all magnitudes of float32: errors in units in the last place, bits, and ends."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special
import torch

from kernels.native_cases import instruction_set, instruction_sets, needs_library, same_bits
from pilotfish.kernels.elementwise import native

pytestmark = needs_library

Doubles = npt.NDArray[np.float64]

EXACT: dict[str, Callable[[Doubles], Doubles]] = {
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "erf": scipy.special.erf,
    "softplus": lambda x: np.logaddexp(0, x),
    "sigmoid": scipy.special.expit,
    "silu": lambda x: x * scipy.special.expit(x),
    "gelu": lambda x: x * scipy.special.ndtr(x),
    "gelu_tanh": lambda x: x * scipy.special.expit(1.5957691216057308 * (x + 0.044715 * x**3)),
    "relu_squared": lambda x: np.maximum(x, 0) ** 2,
}
UNITS = {"exp": 1.0, "log": 0.79, "tanh": 0.97, "erf": 1.06, "softplus": 1.91, "relu_squared": 0.5}
"""The largest errors found, a little up: what functions.h and the README say."""

INFINITY = float("inf")
STEP = 977  # coprime to every power of two: all exponents, thousands of mantissas each


@cache
def all_magnitudes() -> torch.Tensor:
    """6 million numbers: a 977th of all float32 ones, denormals too, and more where it matters."""
    bits = torch.arange(-(2**31), 2**31, STEP, dtype=torch.int64).to(torch.int32)
    x = bits.view(torch.float32)
    generator = torch.Generator().manual_seed(0)
    near = (torch.rand(1 << 21, generator=generator) - 0.5) * 40
    far = (torch.rand(1 << 21, generator=generator) - 0.5) * 220
    return torch.cat((x[x.isfinite()], near, far))


@pytest.mark.parametrize("name", EXACT)
def test_errors_and_bits(name: str) -> None:
    x = all_magnitudes()
    got = native.apply(name, x)
    for index in instruction_sets():
        with instruction_set(index):
            assert same_bits(native.apply(name, x), got), index
    with np.errstate(all="ignore"):
        wanted = EXACT[name](x.double().numpy())
        wanted32 = wanted.astype(np.float32)
    seen = got.double().numpy()
    assert np.array_equal(np.isnan(seen), np.isnan(wanted))
    usable = np.isfinite(wanted32)
    error = np.abs(seen[usable] - wanted[usable])
    if name in UNITS:
        smallest = np.float32(2**-126)
        unit = np.spacing(np.maximum(np.abs(wanted32[usable]), smallest)).astype(np.float64)
        assert (error / unit).max() <= UNITS[name]
        assert np.array_equal(
            seen[~usable & ~np.isnan(wanted)], wanted32[~usable & ~np.isnan(wanted)]
        )
    else:
        # As their formulas: near 0, and where 1 + exp(-x) overflows, it is small absolutely.
        assert (error / np.maximum(1, np.abs(wanted[usable]))).max() <= 2**-22
        assert np.isfinite(seen[usable]).all()


@pytest.mark.parametrize(
    ("name", "of_infinity", "of_minus_infinity"),
    [
        ("exp", INFINITY, 0.0),
        ("tanh", 1.0, -1.0),
        ("erf", 1.0, -1.0),
        ("softplus", INFINITY, 0.0),
        ("sigmoid", 1.0, 0.0),
        ("relu_squared", INFINITY, 0.0),
        ("silu", INFINITY, None),
        ("gelu", INFINITY, None),
        ("gelu_tanh", INFINITY, None),
        ("log", INFINITY, None),
    ],
)
def test_ends(name: str, of_infinity: float, of_minus_infinity: float | None) -> None:
    """None: no number, as torch's own have it."""
    x = torch.tensor([INFINITY, -INFINITY, float("nan")])
    got = native.apply(name, x).tolist()
    assert got[0] == of_infinity
    assert got[1] == of_minus_infinity or (of_minus_infinity is None and got[1] != got[1])
    assert got[2] != got[2]


def test_zeros_and_signs() -> None:
    zeros = torch.tensor([0.0, -0.0])
    for name in ("tanh", "erf", "silu", "gelu", "gelu_tanh"):
        assert same_bits(native.apply(name, zeros), zeros), name
    assert native.apply("log", zeros).tolist() == [-INFINITY, -INFINITY]
    assert native.apply("exp", zeros).tolist() == [1.0, 1.0]
    assert native.apply("log", torch.tensor([-1.0, -1e-45])).isnan().all()


def test_exp_and_log_at_their_limits() -> None:
    limits = torch.tensor([88.72283, 88.72284, -87.33655, -103.97207, -103.97209])
    got = native.apply("exp", limits)
    assert got[0].isfinite()
    assert got[1].isinf()
    assert got[2] > 0
    assert got[3:].tolist() == [2**-149, 0.0]
    tiny = torch.tensor([2.0**-149, 2.0**-126, 1.0])
    wanted = torch.tensor([-149.0, -126.0, 0.0]).double() * np.log(2)
    assert torch.equal(native.apply("log", tiny), wanted.float())
