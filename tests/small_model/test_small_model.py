"""A small model as draft: what it accepts of itself, and which drafts are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pilotfish import LLM, CacheConfig, SamplingParams, SpeculativeConfig, load_registry
from pilotfish.errors import ConfigError
from pilotfish.testing import save_tiny

PROMPTS = [[1, 2, 3], [5], [7, 8, 9] * 5]
CACHE = CacheConfig(page_size_tokens=4, num_pages=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("small")


@pytest.fixture(scope="module")
def llama(folder: Path) -> Path:
    return save_tiny("LlamaForCausalLM", "plain", folder, load_registry())


def speculate(target: Path, draft: Path, **options: Any) -> LLM:
    config = SpeculativeConfig(method="small_model", width=3, **options)
    return LLM(str(target), draft=str(draft), speculative=config, cache=CACHE)


@pytest.mark.parametrize("acceptance", ["coupled", "residual"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_model_that_drafts_for_itself_is_always_right(
    llama: Path, acceptance: str, temperature: float
) -> None:
    """Same law, same noise: every draft is accepted, and the text is that of plain decoding."""
    params = [
        SamplingParams(temperature=temperature, seed=seed, max_tokens=17) for seed in range(3)
    ]
    plain = LLM(str(llama), cache=CACHE).generate(PROMPTS, params)
    ours = speculate(llama, llama, acceptance=acceptance).generate(PROMPTS, params)
    assert [out.token_ids for out in ours] == [out.token_ids for out in plain]
    for output in ours:
        assert output.speculative is not None
        assert output.speculative["accepted"] == output.speculative["drafted"] > 0
        assert output.speculative["mean_committed_per_step"] == 4.0


def with_config(source: Path, target: Path, **changes: Any) -> Path:
    """A copy with other options; weights are not read before they are checked."""
    target.mkdir()
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    (target / "model.safetensors").symlink_to(source / "model.safetensors")
    return target


def test_drafts_that_cannot_draft_are_refused(llama: Path, tmp_path: Path, folder: Path) -> None:
    other = with_config(llama, tmp_path / "other", vocab_size=50)
    with pytest.raises(ConfigError, match=r"has 50 token ids and the target .* 96; wanted"):
        speculate(llama, other)
    scaling = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 500.0}
    dynamic = with_config(llama, tmp_path / "dynamic", rope_parameters=scaling)
    with pytest.raises(ConfigError, match="depend on the length of the text"):
        speculate(llama, dynamic)
    hybrid = save_tiny("Lfm2ForCausalLM", "attention between", folder, load_registry())
    with pytest.raises(ConfigError, match="wanted a model whose only state is paged"):
        speculate(llama, hybrid)
    with pytest.raises(ConfigError, match="needs a draft"):
        LLM(str(llama), speculative="small_model")


def test_drafting_pauses_past_the_drafts_own_context(llama: Path, tmp_path: Path) -> None:
    """Pitfall 16."""
    short = with_config(llama, tmp_path / "short", max_position_embeddings=10)
    params = SamplingParams(temperature=0, max_tokens=30)
    plain = LLM(str(llama), cache=CACHE).generate([1, 2, 3], params)[0]
    ours = speculate(llama, short).generate([1, 2, 3], params)[0]
    assert ours.token_ids == plain.token_ids
    assert ours.speculative is not None
    assert 0 < ours.speculative["drafted"] < 12
