"""choose_experts: the reference's choice, weights, ties, bits in every way of running, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.native_cases import (
    NATIVE,
    TORCH,
    guarded,
    in_every_way,
    instruction_set,
    instruction_sets,
    needs_library,
    same_bits,
)
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.router import Scoring, choose_experts, reference

SCORINGS: tuple[Scoring, ...] = ("given", "sigmoid", "softmax")
BACKENDS = [
    pytest.param(TORCH, id="torch"),
    pytest.param(NATIVE, id="native", marks=needs_library),
]


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    rows=st.integers(0, 9),
    groups=st.sampled_from(((1, 1), (2, 1), (4, 2), (5, 3), (18, 4), (3, 3))),
    group_size=st.integers(2, 30),
    num_chosen=st.integers(1, 9),
    scoring=st.sampled_from(SCORINGS),
    has_bias=st.booleans(),
    normalize=st.booleans(),
    scale=st.sampled_from((1.0, 2.5)),
    seed=st.integers(0, 2**31),
)
def test_choice_and_weights(
    backend: KernelBackend,
    *,
    rows: int,
    groups: tuple[int, int],
    group_size: int,
    num_chosen: int,
    scoring: Scoring,
    has_bias: bool,
    normalize: bool,
    scale: float,
    seed: int,
) -> None:
    """Against the definition in float64."""
    generator = torch.Generator().manual_seed(seed)
    num_experts = groups[0] * group_size
    logits = torch.randn(rows, num_experts, generator=generator)
    logits = logits.abs() if scoring == "given" else logits * 3
    bias = torch.randn(num_experts, generator=generator) / 8 if has_bias else None
    options: dict[str, Any] = {
        "scoring": scoring,
        "num_chosen": min(num_chosen, groups[1] * group_size),
        "num_groups": groups[0],
        "num_kept_groups": groups[1],
        "normalize": normalize,
        "scale": scale,
    }
    choice, weights = choose_experts(logits, bias, backend=backend, **options)
    assert (choice.dtype, weights.dtype) == (torch.int64, torch.float32)
    wide_bias = torch.zeros(num_experts).double() if bias is None else bias.double()
    for row, ours, weighed in zip(logits.double().unbind(), choice, weights, strict=True):
        wanted, exact = reference.choose_experts(row[None], wide_bias, **options)
        for _ in range(30):
            if torch.equal(wanted[0], ours):
                break
            # Rounding may decide between two that differ less than float32 tells: so may noise.
            noise = (torch.rand(num_experts, generator=generator) - 0.5) * 1e-6
            wanted, exact = reference.choose_experts(row[None], wide_bias + noise, **options)
        assert torch.equal(wanted[0], ours)
        # Exponential, sums of E and of S, quotients, scale: each within a unit.
        limit = (8 + options["num_chosen"] + num_experts.bit_length()) * 2**-23
        assert ((weighed - exact[0]).abs() <= limit * exact[0]).all()


@needs_library
@pytest.mark.parametrize("groups", [(1, 1), (4, 2), (4, 4)])
def test_ties_go_to_the_lowest_ids(groups: tuple[int, int]) -> None:
    """Few different scores, so that most are equal: the reference's choice exactly."""
    torch.manual_seed(0)
    logits = torch.randint(0, 3, (200, 44)) / 4.0
    logits[::7] = 0.0
    logits[1::7] *= -0.0
    wanted, _ = reference.choose_experts(
        logits,
        None,
        scoring="given",
        num_chosen=6,
        num_groups=groups[0],
        num_kept_groups=groups[1],
        normalize=False,
        scale=1.0,
    )
    for index in instruction_sets():
        with instruction_set(index):
            choice, _ = choose_experts(
                logits,
                None,
                scoring="given",
                num_chosen=6,
                num_groups=groups[0],
                num_kept_groups=groups[1],
                normalize=False,
                backend=NATIVE,
            )
        assert torch.equal(choice, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize(("num_experts", "groups"), [(12, (2, 1)), (384, (1, 1)), (60, (6, 3))])
def test_bits_depend_on_the_row_alone(
    backend: KernelBackend, scoring: Scoring, num_experts: int, groups: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    logits, bias = torch.randn(37, num_experts) * 3, torch.randn(num_experts) / 4

    def chosen(i: int, j: int) -> torch.Tensor:
        choice, weights = choose_experts(
            logits[i:j],
            bias,
            scoring=scoring,
            num_chosen=6,
            num_groups=groups[0],
            num_kept_groups=groups[1],
            scale=2.5,
            backend=backend,
        )
        return torch.cat((choice.float(), weights), 1)

    wanted = chosen(0, 37)
    if backend is NATIVE:
        wanted = in_every_way(lambda: chosen(0, 37))
    for i in range(37):
        for j in (i + 1, i + 2, i + 3, 37):
            assert same_bits(chosen(i, min(j, 37)), wanted[i : min(j, 37)])


@needs_library
def test_what_is_no_number_stays_in_its_row_and_is_chosen_last() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 20)
    logits[1, 5] = float("nan")
    logits[2] = float("nan")
    logits[3, 7] = float("inf")
    choice, weights = choose_experts(
        logits, None, scoring="sigmoid", num_chosen=3, num_groups=2, num_kept_groups=1,
        backend=NATIVE,
    )  # fmt: skip
    assert 5 not in choice[1].tolist()
    assert choice[2].tolist() == [0, 1, 2]
    assert weights[2].isnan().all()
    assert not weights[[0, 1, 3]].isnan().any()
    alone = choose_experts(
        logits[:1], None, scoring="sigmoid", num_chosen=3, num_groups=2, num_kept_groups=1,
        backend=NATIVE,
    )  # fmt: skip
    assert torch.equal(alone[0], choice[:1])
    assert torch.equal(alone[1], weights[:1])


@needs_library
@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("num_experts", [6, 18, 33, 64])
def test_memory_beyond_a_row_is_left_alone(scoring: Scoring, num_experts: int) -> None:
    torch.manual_seed(0)
    wide = torch.full((3, num_experts + 9), float("nan"))
    logits = wide[:, 4 : 4 + num_experts].copy_(torch.randn(3, num_experts))
    bias = torch.randn(num_experts)
    wanted = choose_experts(logits, bias, scoring=scoring, num_chosen=4, backend=NATIVE)
    got = choose_experts(
        guarded(logits), guarded(bias), scoring=scoring, num_chosen=4, backend=NATIVE
    )
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])
