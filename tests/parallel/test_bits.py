"""The same bits on any number of ranks: every architecture, its rows cut and packed in all ways."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.parallel_sessions import on_ranks
from pilotfish.config import ParallelConfig
from pilotfish.parallel import reduction
from pilotfish.plugins import load_registry
from pilotfish.registry import Registry
from pilotfish.testing.checkpoints import examples_of, save_tiny
from pilotfish.testing.session import Session

REGISTRY = load_registry()
ARCHITECTURES = sorted(REGISTRY.architectures)
SIZES = {"num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 96}
SLICES = 4


def tiny(architecture: str, folder: Path, registry: Registry = REGISTRY, **more: Any) -> Path:
    name, options = next(iter(examples_of(architecture, registry).configs.items()))
    is_latent = "kv_lora_rank" in {**options, **options.get("text_config", {})}
    sizes = {**SIZES, "num_key_value_heads": 8} if is_latent else SIZES
    return save_tiny(architecture, name, folder, registry, {**sizes, **more})


def texts(vocab_size: int, seed: int) -> dict[str, list[int]]:
    drawn = random.Random(seed)
    return {
        name: [drawn.randrange(vocab_size) for _ in range(drawn.randint(3, 40))] for name in "abc"
    }


def mixed(session: Session, vocab_size: int, seed: int) -> dict[str, torch.Tensor]:
    """Every row's logits, in passes over a random few rows of a random few requests."""
    session.add_all(texts(vocab_size, seed))
    return session.finish_mixed(random.Random(seed))


def whole(session: Session, vocab_size: int, seed: int) -> dict[str, torch.Tensor]:
    """Every row's logits, a request in one pass."""
    session.add_all(texts(vocab_size, seed))
    return {name: session.finish(name) for name in session.contexts}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_equal_on_1_2_and_4_ranks(architecture: str, dtype: str, tmp_path: Path) -> None:
    model = tiny(architecture, tmp_path)
    alone = ParallelConfig(reduction_slices=SLICES)
    [wanted] = on_ranks(model, alone, partial(whole, vocab_size=96, seed=1), dtype=dtype)
    for size in (1, 2, 4):
        config = ParallelConfig(tensor_parallel=size, reduction_slices=SLICES)
        found, *_ = on_ranks(model, config, partial(mixed, vocab_size=96, seed=1), dtype=dtype)
        for name, logits in wanted.items():
            assert torch.equal(logits, found[name]), (size, name)


WITH_EXPERTS = ("DeepseekV3ForCausalLM", "KimiK25ForConditionalGeneration")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("drawn")
    return cache(lambda architecture: tiny(architecture, folder))


@settings(max_examples=12)
@given(
    architecture=st.sampled_from((*ARCHITECTURES, *WITH_EXPERTS * 3)),
    dtype=st.sampled_from(("float32", "bfloat16")),
    sizes=st.sampled_from(((4, 1), (4, 2), (4, 4), (2, 1), (2, 2))),
    slices=st.sampled_from((4, 8)),
    in_parts=st.booleans(),
    seed=st.integers(0, 99),
)
def test_logits_are_equal_however_ranks_share_it(
    shelf: Callable[[str], Path],
    *,
    architecture: str,
    dtype: str,
    sizes: tuple[int, int],
    slices: int,
    in_parts: bool,
    seed: int,
) -> None:
    """Experts over all ranks, some, or one; more slices than ranks; sums joined in parts."""
    size, experts = sizes
    alone = ParallelConfig(reduction_slices=slices)
    config = ParallelConfig(tensor_parallel=size, expert_parallel=experts, reduction_slices=slices)
    work = partial(mixed, vocab_size=96, seed=seed)
    [wanted] = on_ranks(shelf(architecture), alone, work, dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        if in_parts:
            patch.setattr(reduction, "PARTED_BYTES", 0)
        found, *_ = on_ranks(shelf(architecture), config, work, dtype=dtype)
    for name, logits in wanted.items():
        assert torch.equal(logits, found[name]), name
