"""Mistakes that are easily made with latent attention, put in on purpose: parity must notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from kimi_k25.cases import subject, write_shape
from pilotfish.models.decoder_model import DecoderModel
from pilotfish.testing import Broken, Subject, promise_named
from pilotfish_kimi_k25 import mla, network
from pilotfish_kimi_k25.config import ExpertsConfig
from pilotfish_kimi_k25.mla import LatentAttention

SHAPE = "latent queries, two groups, yarn"
Mutate = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shape(SHAPE, tmp_path_factory.mktemp("mutants"))


def fresh(path: Path) -> Subject:
    """Float32 only: the smallest error that rounding could explain."""
    return subject(path, ("float32",))


def mscale_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(network, "softmax_scale", lambda config: config.qk_head_dim**-0.5)


def mscale_not_squared(patch: pytest.MonkeyPatch) -> None:
    real = network.softmax_scale
    patch.setattr(network, "softmax_scale", lambda c: (real(c) * c.qk_head_dim**-0.5) ** 0.5)


def rope_half_split(patch: pytest.MonkeyPatch) -> None:
    real: Any = LatentAttention.__init__

    def init(self: Any, layer: int, config: Any, scale: float) -> None:
        real(self, layer, config, scale)
        self.interleaved = False

    patch.setattr(LatentAttention, "__init__", init)
    build = network.Rotary
    patch.setattr(network, "Rotary", lambda rope, **_: build(rope))


def latent_norm_forgotten(patch: pytest.MonkeyPatch) -> None:
    real: Any = LatentAttention.__init__

    def init(self: Any, *args: Any) -> None:
        real(self, *args)
        self.kv_norm.__class__ = type(
            "NoNorm", (type(self.kv_norm),), {"__call__": lambda _, x, backend: x.clone()}
        )

    patch.setattr(LatentAttention, "__init__", init)


def latent_norm_with_the_configs_eps(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mla, "LATENT_NORM_EPS", 1e-2)


def key_not_turned(patch: pytest.MonkeyPatch) -> None:
    real = LatentAttention._turn

    def turn(
        self: LatentAttention,
        q: torch.Tensor,
        latent: torch.Tensor,
        turning: torch.Tensor,
        run: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rope_part, _ = real(self, q, latent, turning, run)
        return rope_part, torch.cat((latent, turning), 1)

    patch.setattr(LatentAttention, "_turn", turn)


def whole_row_as_value(patch: pytest.MonkeyPatch) -> None:
    """The value begins behind the turned part instead of before it."""
    from pilotfish_kimi_k25.kernels import mla_attention

    real = mla_attention.paged_attention

    def rolled(*args: Any, value_width: int, **options: Any) -> torch.Tensor:
        return real(*args, **options).roll(8, -1)[..., :value_width]

    patch.setattr(mla_attention, "paged_attention", rolled)
    patch.setattr(DecoderModel, "_planned", lambda self, run: None)  # planned calls do not pass it


def up_projections_by_kind(patch: pytest.MonkeyPatch) -> None:
    """All heads' keys and then all heads' values, as others lay them."""
    real = mla.UpProjection.complete

    def complete(self: Any, tensors: dict[str, torch.Tensor], backend: Any) -> None:
        num_heads, both, latent = self.shape
        keys, values = tensors["weight"].split(
            [num_heads * self.key_width, num_heads * (both - self.key_width)]
        )
        mixed = torch.cat([keys.view(num_heads, -1, latent), values.view(num_heads, -1, latent)], 1)
        real(self, {"weight": mixed.reshape(-1, latent)}, backend)

    patch.setattr(mla.UpProjection, "complete", complete)


def experts_changed(**changes: Any) -> Mutate:
    def mutate(patch: pytest.MonkeyPatch) -> None:
        real = ExpertsConfig.from_hf
        patch.setattr(ExpertsConfig, "from_hf", lambda text: attrs.evolve(real(text), **changes))

    return mutate


MUTANTS: dict[str, Mutate] = {
    "mscale forgotten": mscale_forgotten,
    "mscale not squared": mscale_not_squared,
    "rope half-split": rope_half_split,
    "norm of the latent forgotten": latent_norm_forgotten,
    "another eps in the latents' norms": latent_norm_with_the_configs_eps,
    "key not turned": key_not_turned,
    "value at another place in the row": whole_row_as_value,
    "up-projections laid by kind": up_projections_by_kind,
    "groups ignored": experts_changed(num_groups=1),
    "weights not normalised": experts_changed(normalize=False),
    "routed scaling forgotten": experts_changed(scale=1.0),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_planted_mistake_is_noticed(
    mutant: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MUTANTS[mutant](monkeypatch)
    with fresh(path) as one, pytest.raises(Broken, match="error against float64"):
        promise_named("parity with the oracle").keep(one)


def test_without_one_nothing_is_noticed(path: Path) -> None:
    with fresh(path) as one:
        promise_named("parity with the oracle").keep(one)


def test_a_form_chosen_by_the_batch_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expanded prefill beside absorbed decode is right and not invariant."""
    real = LatentAttention._attend

    def attend(
        self: LatentAttention,
        plain: torch.Tensor,
        rope_part: torch.Tensor,
        cache: torch.Tensor,
        run: Any,
    ) -> Any:
        if plain.shape[0] < 16:
            return real(self, plain, rope_part, cache, run)
        whole = torch.cat((plain, rope_part), -1)
        return mla.attend_expanded(
            whole, cache, run.plan, self.kv_b.heads, scale=self.scale, backend=run.backend
        )

    monkeypatch.setattr(LatentAttention, "_attend", attend)
    with fresh(path) as one:
        promise_named("parity with the oracle").keep(one)
        with pytest.raises(Broken, match="rows differ"):
            promise_named("any chunking equals one chunk").keep(one)
