"""The noise is Gumbel, is a function of three integers, and its neighbours are independent."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pilotfish.sampling.noise import (
    _blocks,
    _fill_whole,
    _gumbel_from_bits,
    _row_keys,
    gumbel,
    gumbel_at,
)

MASK = (1 << 64) - 1
SMALLEST_P = 1e-4  # of some dozens of fixed draws: a sound generator misses it once in hundreds


def mix_high(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    return ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK


def mix(value: int) -> int:
    value = mix_high(value)
    return value ^ (value >> 31)


def hashed_uniform(seed: int, position: int, token: int) -> float:
    """The documented hash in Python's own integers: v in (0, 1), small where the noise is large."""
    gamma = 0x9E3779B97F4A7C15
    key = mix(((seed + 1) * gamma) & MASK)
    key = mix((key + (position + 1) * gamma) & MASK)
    bits = mix_high((key + (token + 1) * gamma) & MASK) & (MASK >> 1)
    return bits * 2.0**-63


def noise(seeds: list[int], positions: list[int], vocab_size: int) -> torch.Tensor:
    return gumbel(torch.tensor(seeds), torch.tensor(positions), vocab_size)


def uniforms(values: torch.Tensor) -> np.ndarray:
    """Gumbel noise mapped back to (0, 1) by its distribution function exp(-exp(-g))."""
    return np.exp(-np.exp(-values.double().numpy()))


seeds_st = st.integers(0, 2**63 - 1)
positions_st = st.integers(0, 2**40)


@given(seeds_st, positions_st, st.integers(0, 2**20))
def test_noise_is_the_documented_hash(seed: int, position: int, token: int) -> None:
    got = float(gumbel_at(torch.tensor([seed]), torch.tensor([position]), torch.tensor([token])))
    v = hashed_uniform(seed, position, token)
    v = min(max(v, 2.0**-64), 1.0 - 2.0**-24)
    exponential = -math.log1p(-v)
    # v is rounded to 24 bits, then each logarithm and the result are
    slack = 2.0**-24 * v / ((1.0 - v) * exponential) + 2.0**-23 + 2.0**-23 * abs(got)
    assert abs(got + math.log(exponential)) <= 2 * slack


def test_row_keys_are_the_documented_hash() -> None:
    keys = _row_keys(torch.tensor([0, 42, 2**63 - 1]), torch.tensor([0, 1000, 2**31]))
    gamma = 0x9E3779B97F4A7C15
    want = [
        mix((mix(((s + 1) * gamma) & MASK) + (p + 1) * gamma) & MASK)
        for s, p in [(0, 0), (42, 1000), (2**63 - 1, 2**31)]
    ]
    assert [key & MASK for key in keys.tolist()] == want


@given(
    st.lists(st.tuples(seeds_st, positions_st), min_size=1, max_size=5),
    st.integers(1, 70_001),
    st.data(),
)
def test_noise_of_an_element_depends_on_its_three_integers_alone(
    pairs: list[tuple[int, int]], vocab_size: int, data: st.DataObject
) -> None:
    seeds = torch.tensor([seed for seed, _ in pairs])
    positions = torch.tensor([position for _, position in pairs])
    together = gumbel(seeds, positions, vocab_size)
    row = data.draw(st.integers(0, len(pairs) - 1))
    alone = gumbel(seeds[row : row + 1], positions[row : row + 1], vocab_size + 17)
    assert torch.equal(alone[0, :vocab_size], together[row])
    ids = torch.tensor(data.draw(st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=9)))
    picked = gumbel_at(seeds, positions, ids.expand(len(pairs), -1))
    assert torch.equal(picked, together[:, ids])
    flat = gumbel_at(seeds, positions, ids[:1].expand(len(pairs)))
    assert torch.equal(flat, together[:, ids[0]])


@pytest.mark.parametrize("num_rows", [1, 3])
def test_both_ways_to_fill_give_the_same_bits(num_rows: int) -> None:
    seeds, positions = torch.arange(num_rows) + 5, torch.arange(num_rows) * 7
    out = torch.full((num_rows, 40_003), math.nan)
    _fill_whole(out, _row_keys(seeds, positions))
    assert torch.equal(out, gumbel(seeds, positions, 40_003))
    assert list(_blocks(5, 2)) == [(0, 2), (2, 4), (4, 5)]


def test_noise_is_gumbel_and_finite() -> None:
    values = noise(list(range(20)), [3] * 20, 50_000)
    assert torch.isfinite(values).all()
    assert stats.kstest(values.double().numpy().ravel(), "gumbel_r").pvalue > SMALLEST_P


@pytest.mark.parametrize("axis", ["seed", "position", "token"])
def test_uniform_along_each_axis(axis: str) -> None:
    count = 60_000
    if axis == "token":
        values = noise([9], [11], count)
    else:
        numbers, fixed = torch.arange(count), torch.full((count,), 12)
        pair = (numbers, fixed) if axis == "seed" else (fixed, numbers)
        values = gumbel_at(*pair, torch.full((count,), 77))
    counts, _ = np.histogram(uniforms(values), bins=256, range=(0.0, 1.0))
    assert stats.chisquare(counts).pvalue > SMALLEST_P


@pytest.mark.parametrize(
    "shift", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, -1, 0), (0, 1, -1), (2**32, 0, 0)]
)
def test_neighbours_are_independent(shift: tuple[int, int, int]) -> None:
    """Chi-squared of the pair (v, v of the neighbour) on a 16 x 16 grid, and their correlation."""
    generator = torch.Generator().manual_seed(5)
    size = 100_000
    seeds = torch.randint(1, 50, (size,), generator=generator)
    positions = torch.randint(1, 3000, (size,), generator=generator)
    ids = torch.randint(1, 50_000, (size,), generator=generator)
    here = uniforms(gumbel_at(seeds, positions, ids))
    there = uniforms(gumbel_at(seeds + shift[0], positions + shift[1], ids + shift[2]))
    grid, _, _ = np.histogram2d(here, there, bins=16, range=[[0, 1], [0, 1]])
    assert stats.chisquare(grid.ravel()).pvalue > SMALLEST_P
    assert stats.pearsonr(here, there).pvalue > SMALLEST_P


def test_rows_share_no_values() -> None:
    """Shifted or permuted copies of one stream would show as equal numbers in two rows."""
    values = noise([0, 0, 1, 1, 2], [0, 1, 0, 1, 0], 4000)
    counts = np.unique(values.numpy(), return_counts=True)[1]
    # 20,000 draws of about 2**24 float32 values: some dozen chance pairs, never a whole row
    assert (counts > 1).sum() < 100


def test_upper_tail_has_fine_resolution_and_the_right_weight() -> None:
    """P(g > x) is close to exp(-x), and the largest values are all different."""
    values = noise(list(range(40)), [8] * 40, 50_000).ravel()
    total = values.numel()
    for level in (5.0, 8.0, 10.0):
        expected = -math.expm1(-math.exp(-level)) * total
        found = int((values > level).sum())
        assert stats.poisson.sf(found - 1, expected) > SMALLEST_P
        assert stats.poisson.cdf(found, expected) > SMALLEST_P
    largest = values.topk(2000).values
    assert largest.unique().numel() > 1990


def unmixed(bits: int) -> int:
    """The number that `mix_high` takes to `bits`."""
    for multiplier, shift in ((0x94D049BB133111EB, 27), (0xBF58476D1CE4E5B9, 30)):
        bits = (bits * pow(multiplier, -1, 1 << 64)) & MASK
        whole = bits
        for _ in range(64 // shift):
            whole = bits ^ (whole >> shift)
        bits = whole
    return bits


@pytest.mark.parametrize(
    ("bits", "want"),
    [
        (0, 64 * math.log(2.0)),
        (1, 63 * math.log(2.0)),
        (3 << 20, -math.log(3 * 2.0**-43)),
        (1 << 39, 24 * math.log(2.0)),
        (1 << 62, -math.log(math.log(2.0))),
        ((1 << 63) - 1, -math.log(24 * math.log(2.0))),
    ],
)
def test_noise_of_chosen_bits(bits: int, want: float) -> None:
    """The ends are finite, and far up the tail each bit still tells."""
    for top_bit in (0, 1 << 63):  # not used
        mixed = unmixed(bits | top_bit)
        assert mix_high(mixed) == bits | top_bit
        start = torch.tensor([mixed - (1 << 64) if mixed >> 63 else mixed])
        out = torch.empty(1)
        _gumbel_from_bits(start, torch.empty_like(start), out)
        assert float(out) == pytest.approx(want, rel=1e-6)
