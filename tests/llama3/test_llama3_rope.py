"""Rotary positions: frequencies against transformers, lengths, options that are refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from kernels.native_cases import needs_library
from llama3.families import DYNAMIC, LLAMA3, LONG, LONGROPE, SMALL, YARN, rope
from pilotfish.config.rope import ROPE_TYPES, RopeParameters
from pilotfish.errors import ConfigError
from pilotfish.kernels import KernelBackend
from pilotfish.layers.rope import Rotary

HEAD_DIM = 12
SCALED = {
    "linear": rope("linear", factor=3.0),
    "dynamic": DYNAMIC,
    "yarn": YARN,
    "yarn without a factor": rope("yarn", factor=None, original_max_position_embeddings=32),
    "yarn attention_factor": rope(
        "yarn", factor=4.0, original_max_position_embeddings=16, attention_factor=1.3
    ),
    "yarn mscale": rope(
        "yarn", factor=40.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=0.8
    ),
    "yarn truncate": rope(
        "yarn", factor=4.0, original_max_position_embeddings=64, truncate=False, beta_fast=4
    ),
    "llama3": LLAMA3,
    "longrope": LONGROPE,
    "longrope factor": rope("longrope", original_max_position_embeddings=16, factor=9.0, **LONG),
    "longrope attention_factor": rope(
        "longrope", original_max_position_embeddings=16, attention_factor=0.9, **LONG
    ),
}


def config(options: dict[str, Any]) -> Any:
    return LlamaConfig(**{**SMALL, **options})


def plain(**options: Any) -> Any:
    """A config without transformers' defaults, as config.json of a foreign type would give it."""
    return SimpleNamespace(max_position_embeddings=64, **options)


@pytest.mark.parametrize("length", [None, 16, 17, 40])
@pytest.mark.parametrize("name", SCALED)
def test_frequencies_are_transformers_bit_for_bit(name: str, length: int | None) -> None:
    hf = config(SCALED[name])
    parameters = RopeParameters.from_hf(hf, HEAD_DIM)
    assert set(SCALED) & set(ROPE_TYPES) == set(ROPE_TYPES) - {"default"}
    theirs, scale = ROPE_INIT_FUNCTIONS[parameters.rope_type](
        hf, None, None if length is None else torch.tensor(length)
    )
    rotary = Rotary(parameters)
    lengths = torch.tensor([16 if length is None else length])
    given = lengths if parameters.depends_on_length else None
    assert torch.equal(rotary.frequencies.of(given).view(-1), theirs.view(-1))
    portable = rotary.portable_frequencies.of(given).view(-1)
    torch.testing.assert_close(portable, theirs.view(-1), atol=0, rtol=2**-21)
    assert rotary.scale == scale


def test_angles_are_position_times_frequency_scaled() -> None:
    rotary = Rotary(RopeParameters.from_hf(config(YARN), HEAD_DIM))
    positions = torch.tensor([0, 3, 100])
    cos, sin = rotary(positions)
    frequencies = rotary.frequencies.short.double()
    angles = positions[:, None] * torch.cat((frequencies, frequencies))
    assert cos.dtype == sin.dtype == torch.float32
    torch.testing.assert_close(cos.double(), angles.cos() * rotary.scale, atol=1e-5, rtol=0)
    torch.testing.assert_close(sin.double(), angles.sin() * rotary.scale, atol=1e-5, rtol=0)


@given(
    name=st.sampled_from(["dynamic", "longrope", "yarn"]),
    rows=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=70),
)
def test_a_rows_angles_do_not_depend_on_the_other_rows(
    name: str, rows: list[tuple[int, int]]
) -> None:
    rotary = Rotary(RopeParameters.from_hf(config(SCALED[name]), HEAD_DIM))
    positions = torch.tensor([position for position, _ in rows])
    lengths = torch.tensor([max(prompt, position + 1) for position, prompt in rows])
    together = rotary(positions, lengths)
    for row in range(len(rows)):
        alone = rotary(positions[row : row + 1], lengths[row : row + 1])
        assert torch.equal(alone[0][0], together[0][row])
        assert torch.equal(alone[1][0], together[1][row])


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_many_rows_have_the_angles_of_few(name: str) -> None:
    rotary = Rotary(RopeParameters.from_hf(config(SCALED[name]), HEAD_DIM))
    positions = torch.arange(6001) % 60
    lengths = torch.maximum(positions + 1, torch.arange(6001) * 7 % 61)
    cos, sin = rotary(positions, lengths)
    for rows in (slice(0, 1), slice(17, 92), slice(2999, 3002), slice(5000, 6001)):
        some = rotary(positions[rows], lengths[rows])
        assert torch.equal(some[0], cos[rows])
        assert torch.equal(some[1], sin[rows])


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("name", SCALED)
@needs_library
def test_native_and_portable_angles_are_torchs_but_for_rounding(name: str, portable: bool) -> None:
    backend = KernelBackend("native", portable=portable)
    rotary = Rotary(RopeParameters.from_hf(config(SCALED[name]), HEAD_DIM))
    positions = torch.arange(60)
    lengths = torch.maximum(positions + 1, torch.arange(60) * 7 % 61)
    wanted, got = rotary(positions, lengths), rotary(positions, lengths, backend)
    for ours, theirs in zip(got, wanted, strict=True):
        # A power's last bits, times the position; then cos and sin.
        torch.testing.assert_close(ours, theirs, atol=60 * 2**-22, rtol=0)
    alone = rotary(positions[7:9], lengths[7:9], backend)
    assert torch.equal(alone[0], got[0][7:9])
    assert torch.equal(alone[1], got[1][7:9])


def test_factors_of_the_file_divide_portable_frequencies_too() -> None:
    rotary = Rotary(RopeParameters.from_hf(config(YARN), HEAD_DIM), file_factors=True)
    before = rotary.frequencies.short
    factors = torch.linspace(1, 8, HEAD_DIM // 2)
    rotary.assign("factors", factors, KernelBackend("torch"))
    assert torch.equal(rotary.frequencies.short, before / factors)
    torch.testing.assert_close(
        rotary.portable_frequencies.short, before / factors, atol=0, rtol=2**-21
    )


def test_salt_separates_exactly_the_prompts_whose_angles_differ() -> None:
    for name, same in (("dynamic", False), ("longrope", True)):
        parameters = RopeParameters.from_hf(config(SCALED[name]), HEAD_DIM)
        salts = [parameters.prefix_salt(length) for length in (1, 16, 17, 18)]
        assert salts[0] == salts[1] == b""
        assert salts[2] != b""
        assert (salts[2] == salts[3]) is same
    for name in ("linear", "yarn", "llama3"):
        assert RopeParameters.from_hf(config(SCALED[name]), HEAD_DIM).prefix_salt(99) == b""


def test_old_and_new_spellings_mean_the_same() -> None:
    """`rope_scaling` with `type`, theta beside it; `rope_parameters` with `rope_type`."""
    old = plain(rope_scaling={"type": "linear", "factor": 2.0}, rope_theta=77.0)
    new = plain(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 77.0})
    both = RopeParameters.from_hf(old, 8)
    assert both == RopeParameters.from_hf(new, 8)
    assert (both.rope_type, both.factor, both.theta) == ("linear", 2.0, 77.0)


def test_defaults_where_nothing_is_said() -> None:
    assert RopeParameters.from_hf(plain(), 8).theta == 10000.0
    assert RopeParameters.from_hf(plain(), 8, default_theta=5.0).theta == 5.0
    assert RopeParameters.from_hf(plain(rope_scaling=None), 8).rope_type == "default"


def test_partial_rotary_factor_beside_or_inside() -> None:
    inside = plain(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5})
    assert RopeParameters.from_hf(inside, 16).rotary_dim == 8
    assert RopeParameters.from_hf(plain(partial_rotary_factor=0.25), 16).rotary_dim == 4


def test_original_length_beside_the_options_wins() -> None:
    hf = Phi3Config(**{**SMALL, **LONGROPE, "original_max_position_embeddings": 8})
    assert RopeParameters.from_hf(hf, HEAD_DIM).original_max_positions == 8


YARN = {"rope_type": "yarn", "factor": 2.0}
LLAMA = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"partial_rotary_factor": 2.0}, "partial_rotary_factor = 2.0; wanted a number > 0 and <="),
        ({"partial_rotary_factor": -1}, "partial_rotary_factor = -1; wanted"),
        ({"rope_theta": 0}, "rope_theta = 0; wanted"),
        ({"rope_theta": 1}, "rope_theta = 1; wanted a number > 1"),
        ({"rope_theta": 1e300}, r"rope_theta = 1e\+300; wanted"),
        *(
            ({"rope_type": name, "factor": factor}, "factor = .*; wanted a number > 0 and <= 1e")
            for name in ("linear", "dynamic", "yarn")
            for factor in (0, -2.0, 1e300)
        ),
        ({**YARN, "beta_fast": 0}, "beta_fast = 0; wanted a number > 0"),
        ({**YARN, "beta_fast": 0, "beta_slow": -1}, "beta_fast = 0; wanted a number > 0"),
        ({**YARN, "beta_slow": -1}, "beta_slow = -1; wanted a number > 0"),
        ({**YARN, "beta_fast": 1, "beta_slow": 2}, "beta_fast is 1 and beta_slow 2; wanted"),
        ({**YARN, "mscale": float("nan")}, "mscale = nan; wanted"),
        ({**YARN, "mscale_all_dim": -20.0}, "mscale_all_dim = -20.0; wanted a number >= 0"),
        ({**YARN, "attention_factor": 0}, "attention_factor = 0; wanted a number > 0"),
        ({**YARN, "original_max_position_embeddings": 0}, "embeddings = 0; wanted a whole number"),
        ({**LLAMA, "high_freq_factor": 1.0}, "low_freq_factor is 1 and high_freq_factor 1; wanted"),
        ({**LLAMA, "low_freq_factor": 0}, "low_freq_factor = 0; wanted a number > 0"),
        ({**LONG, "short_factor": [1.0, 1.0, 0, 1.0]}, "short_factor = 0; wanted a number > 0"),
        ({**LONG, "long_factor": [1.0, 1.0, 1.0, -1.0]}, "long_factor = -1.0; wanted"),
        ({**LONG, "original_max_position_embeddings": 1}, "wants at least 2"),
    ],
)
def test_numbers_that_make_no_angles_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RopeParameters.from_hf(plain(rope_parameters=options), 8)


@pytest.mark.parametrize("value", [[], [1], 5, "linear"])
def test_rope_options_are_an_object(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"rope_scaling is .*; wanted an object of options"):
        RopeParameters.from_hf(plain(rope_scaling=value), 8)


def test_a_context_that_no_table_holds_is_refused() -> None:
    options = plain(rope_parameters={"rope_type": "dynamic", "factor": 2.0})
    options.max_position_embeddings = 10**9
    with pytest.raises(
        ConfigError, match="max_position_embeddings 1000000000 times factor 2 is ab"
    ):
        RopeParameters.from_hf(options, 8)


def test_betas_may_be_equal_and_scales_zero() -> None:
    """As published checkpoints have them."""
    options = {**YARN, "beta_fast": 1.0, "beta_slow": 1.0, "mscale_all_dim": 0}
    assert Rotary(RopeParameters.from_hf(plain(rope_parameters=options), 8)).scale > 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rope_type": "spiral"}, "spiral"),
        ({"rope_type": "proportional"}, "proportional"),
        ({"type": "mrope", "mrope_section": [1, 2]}, "mrope"),
        ({"rope_type": "linear", "factor": 2.0, "twist": 3}, "twist"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0}, "high_freq_factor"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 4}, "long_factor"),
        (
            {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0] * 3},
            "long_factor",
        ),
        ({"partial_rotary_factor": 0.4}, "partial_rotary_factor"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention"),
    ],
)
def test_options_not_understood_are_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        RopeParameters.from_hf(plain(rope_parameters=options), 8)
