"""Bugs planted on purpose: each must push the logits further from float64 than the tests allow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from llama3.driver import load, whole
from llama3.families import exact, logits, prompt, reference
from pilotfish.layers import attention, norm
from pilotfish.layers.rope import Rotary
from pilotfish_llama3 import weights
from pilotfish_llama3.config import Llama3Config
from pilotfish_llama3.model import Llama3Model

Checkpoint = Callable[[str], Path]
Patch = pytest.MonkeyPatch

PROMPT = prompt(27)


def config_with(**fields: Any) -> Callable[[Patch], None]:
    """A config that says something else than the checkpoint does."""

    def plant(patch: Patch) -> None:
        finalize = Llama3Config.finalize

        def wrong(self: Llama3Config, *args: Any, **options: Any) -> Llama3Config:
            return attrs.evolve(finalize(self, *args, **options), **fields)

        patch.setattr(Llama3Config, "finalize", wrong)

    return plant


def rope_with(**fields: Any) -> Callable[[Patch], None]:
    """Rotary positions that say something else than the checkpoint does."""

    def plant(patch: Patch) -> None:
        start = Rotary.__init__

        def wrong(self: Rotary, parameters: Any, **options: Any) -> None:
            start(self, attrs.evolve(parameters, **fields), **options)

        patch.setattr(Rotary, "__init__", wrong)

    return plant


def no_head_norm(patch: Patch) -> None:
    patch.setattr(attention.HeadNorm, "__call__", lambda self, heads, backend: heads)


def rows_swapped(patch: Patch) -> None:
    """k before q in the fused weight; both have the same rows here."""
    rules = weights.weight_rules

    def wrong(config: Llama3Config) -> Any:
        made = rules(config)
        swapped = tuple(
            attrs.evolve(rule, pieces=(rule.pieces[1], rule.pieces[0], *rule.pieces[2:]))
            if len(rule.pieces) == 3
            else rule
            for rule in made.rules
        )
        return attrs.evolve(made, rules=swapped)

    patch.setattr("pilotfish_llama3.model.weight_rules", wrong)


def lengths_ignored(patch: Patch) -> None:
    """Angles of a prompt's rows from their own prefix instead of the whole prompt."""
    make = Llama3Model.prepare_initial_token_inputs

    def wrong(self: Llama3Model, *args: Any) -> Any:
        return attrs.evolve(make(self, *args), rope_lengths=None)

    patch.setattr(Llama3Model, "prepare_initial_token_inputs", wrong)


def positions_shifted(patch: Patch) -> None:
    """Later rows of a pass one position too far; a whole shift would change nothing."""
    turn = Rotary.__call__

    def wrong(self: Rotary, positions: torch.Tensor, *options: Any) -> Any:
        return turn(self, positions + (positions > 3), *options)

    patch.setattr(Rotary, "__call__", wrong)


def add_forgotten(patch: Patch) -> None:
    """The multiplier of the residual add is lost."""
    patch.setattr(
        norm,
        "add_rms_norm",
        lambda x, residual, *args, multiplier, **options: REAL_ADD(
            x, residual, *args, multiplier=1.0, **options
        ),
    )


REAL_ADD = norm.add_rms_norm

MUTANTS: dict[str, tuple[str, Callable[[Patch], None]]] = {
    "window one too large": ("mistral", config_with(windows=(6, 6))),
    "window one too small": ("mistral", config_with(windows=(4, 4))),
    "window on the wrong layer": ("qwen2-windows", config_with(windows=(5, None))),
    "no rope layers forgotten": ("smollm3", config_with(no_rope_layers=frozenset())),
    "attention multiplier lost": ("granite", config_with(attention_multiplier=12**-0.5)),
    "embedding multiplier lost": ("granite", config_with(embedding_multiplier=1.0)),
    "residual multiplier lost": ("granite", config_with(residual_multiplier=1.0)),
    "residual add without it": ("granite", add_forgotten),
    "logits scaling lost": ("granite", config_with(logits_scaling=1.0)),
    "clip lost": ("olmo", config_with(clip_qkv=None)),
    "epsilon too large": ("llama", config_with(rms_norm_eps=1e-3)),
    "head norm lost": ("qwen3", no_head_norm),
    "q and k swapped": ("llama-tied", rows_swapped),
    "theta lost": ("llama-linear", rope_with(theta=10000.0)),
    "linear factor lost": ("llama-linear", rope_with(factor=1.0)),
    "llama3 blend moved": ("llama-llama3", rope_with(low_freq_factor=2.0)),
    "yarn ramp moved": ("llama-yarn-options", rope_with(beta_slow=0.2)),
    "yarn attention factor lost": ("llama-yarn", rope_with(attention_factor=1.0)),
    "short factors everywhere": ("llama-longrope", rope_with(original_max_positions=64)),
    "long prompt seen row by row": ("llama-longrope", lengths_ignored),
    "dynamic prompt seen row by row": ("llama-dynamic", lengths_ignored),
    "positions shifted": ("llama", positions_shifted),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_seen(checkpoint: Checkpoint, monkeypatch: Patch, name: str) -> None:
    case, plant = MUTANTS[name]
    path = checkpoint(case)
    oracle = logits(exact(path), PROMPT)
    eager = (logits(reference(path), PROMPT) - oracle).abs().max()
    assert (whole(load(path), PROMPT) - oracle).abs().max() <= 2 * eager
    plant(monkeypatch)
    assert (whole(load(path), PROMPT) - oracle).abs().max() > 2 * eager
