"""Native apply_rope and rope_angles: eager's bits, exact angles, bits in every way of running."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.native_cases import (
    DTYPES,
    NATIVE,
    TORCH,
    guarded,
    in_every_way,
    needs_library,
    same_bits,
)
from kernels.test_rope import angles
from pilotfish.kernels.rope import apply_rope, rope_angles

pytestmark = needs_library


@given(
    rows=st.integers(0, 9),
    heads=st.integers(1, 5),
    pairs=st.integers(1, 70),
    kept=st.integers(0, 9),
    dtype=st.sampled_from(DTYPES),
    interleaved=st.booleans(),
)
def test_bits_are_eagers(
    *, rows: int, heads: int, pairs: int, kept: int, dtype: torch.dtype, interleaved: bool
) -> None:
    torch.manual_seed(rows * 1000 + pairs)
    packed = torch.randn(rows, heads + 2, 2 * pairs + kept).to(dtype)
    cos, sin = angles(rows, 2 * pairs, interleaved)
    wanted, got = packed.clone(), packed.clone()
    apply_rope(wanted[:, :heads], cos, sin, interleaved=interleaved, backend=TORCH)
    result = apply_rope(got[:, :heads], cos, sin, interleaved=interleaved, backend=NATIVE)
    assert result.data_ptr() == got.data_ptr()
    assert same_bits(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("heads", "width", "rotated"), [(12, 64, 64), (9, 67, 34), (1, 130, 98)])
def test_bits_depend_on_the_row_alone(
    dtype: torch.dtype, interleaved: bool, heads: int, width: int, rotated: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(33, heads, width).to(dtype)
    cos, sin = angles(33, rotated, interleaved)

    def rows(i: int, j: int) -> torch.Tensor:
        return apply_rope(
            x[i:j].clone(), cos[i:j], sin[i:j], interleaved=interleaved, backend=NATIVE
        )

    wanted = in_every_way(lambda: rows(0, 33))
    for i, j in ((0, 1), (5, 6), (7, 10), (0, 32), (32, 33)):
        assert same_bits(rows(i, j), wanted[i:j])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotated", [2, 14, 34, 64])
def test_memory_beyond_the_rows_is_left_alone(
    dtype: torch.dtype, interleaved: bool, rotated: int
) -> None:
    x = torch.randn(3, 2, rotated).to(dtype)
    cos, sin = angles(3, rotated, interleaved)
    wanted = apply_rope(x.clone(), cos, sin, interleaved=interleaved, backend=NATIVE)
    got = apply_rope(
        guarded(x), guarded(cos), guarded(sin), interleaved=interleaved, backend=NATIVE
    )
    assert torch.equal(got, wanted)


def test_what_is_no_number_stays_in_its_pair() -> None:
    x = torch.randn(3, 2, 34)
    cos, sin = angles(3, 34, False)
    wanted = apply_rope(x.clone(), cos, sin, backend=NATIVE)
    x[1, 1, 3] = float("nan")
    got = apply_rope(x, cos, sin, backend=NATIVE)
    assert got.isnan().nonzero().tolist() == [[1, 1, 3], [1, 1, 20]]
    assert same_bits(got[[0, 2]], wanted[[0, 2]])


def units_off(
    got: torch.Tensor, wanted: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
) -> float:
    """The largest error in units in the last place of the float32 number."""
    unit = np.spacing(np.abs(wanted).astype(np.float32)).astype(np.float64)
    return float((np.abs(got.double().numpy() - wanted) / unit).max())


def test_angles_are_rounded_once() -> None:
    """Over positions up to ten million and every size of frequency, against float64."""
    positions = torch.cat((torch.arange(3000), torch.randint(0, 10_000_000, (5000,))))
    frequencies = 10000.0 ** (-torch.arange(0, 64) / 64)
    cos, sin = rope_angles(positions, frequencies, backend=NATIVE)
    angle = (positions.unsqueeze(1) * frequencies).double().numpy()
    # float64's own reduction errs less than 1e-16 of the angle here.
    assert units_off(cos[:, :64], np.cos(angle)) <= 0.51
    assert units_off(sin[:, 64:], np.sin(angle)) <= 0.51
    assert same_bits(cos[:, :64], cos[:, 64:].contiguous())
    eager_cos, eager_sin = rope_angles(positions[:3000], frequencies, backend=TORCH)
    assert (eager_cos - cos[:3000]).abs().max().item() <= 2**-23
    assert (eager_sin - sin[:3000]).abs().max().item() <= 2**-23


def test_angles_near_multiples_of_a_quarter_turn() -> None:
    """Where the digits before the point cancel: the float32 numbers next to k pi / 2."""
    turns = torch.cat((torch.arange(1, 3000), torch.randint(3000, 600_000_000, (20000,))))
    angle = (turns.double() * (torch.pi / 2)).float()
    mpmath = pytest.importorskip("mpmath")
    one = torch.ones(1, dtype=torch.int64)
    cos, sin = rope_angles(one, angle, backend=NATIVE)
    with mpmath.workdps(40):
        some = [*range(300), *range(3000, 3300)]
        exact = np.array([float(mpmath.sin(mpmath.mpf(angle[i].item()))) for i in some])
        assert units_off(sin[0, some], exact) <= 0.51
        exact = np.array([float(mpmath.cos(mpmath.mpf(angle[i].item()))) for i in some])
        assert units_off(cos[0, some], exact) <= 0.51


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1.1424])
@pytest.mark.parametrize("per_row", [False, True])
def test_angles_bits_depend_on_the_row_alone(
    interleaved: bool, scale: float, per_row: bool
) -> None:
    positions = torch.randint(0, 200_000, (33,))
    frequencies = torch.rand(33, 37) if per_row else torch.rand(37)

    def some(i: int, j: int) -> torch.Tensor:
        own = frequencies[i:j] if per_row else frequencies
        found = rope_angles(
            positions[i:j], own, scale=scale, interleaved=interleaved, backend=NATIVE
        )
        return torch.stack(found)

    wanted = in_every_way(lambda: some(0, 33))
    for i, j in ((0, 1), (5, 6), (7, 10), (32, 33)):
        assert same_bits(some(i, j), wanted[:, i:j])
    eager = torch.stack(
        rope_angles(positions, frequencies, scale=scale, interleaved=interleaved, backend=TORCH)
    )
    assert (eager - wanted).abs().max().item() <= 2**-22


def test_what_is_no_angle_is_no_number() -> None:
    strange = torch.tensor([float("inf"), float("nan"), 0.5, -0.5])
    cos, sin = rope_angles(torch.ones(1, dtype=torch.int64), strange, backend=NATIVE)
    assert cos.isnan().tolist() == sin.isnan().tolist() == [[True, True, False, False] * 2]
    assert sin[0, 3] == -sin[0, 2]
