"""A small model as draft: what it accepts of itself, and which drafts are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kernels.native_cases import needs_library
from pilotfish import LLM, CacheConfig, SamplingParams, SpeculativeConfig, load_registry
from pilotfish.cli import main
from pilotfish.errors import CheckpointError, ConfigError
from pilotfish.loading.prepare import prepare_from_options
from pilotfish.testing import save_tiny
from pilotfish.tokenization.token_texts import first_difference, token_texts
from pilotfish.weights import open_checkpoint

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


@needs_library
def test_a_drafts_pass_is_laid_down_when_it_is_loaded(llama: Path) -> None:
    proposer: Any = speculate(llama, llama).proposer
    assert proposer._model.has_planned


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


def tokenizer_of(texts: dict[str, int], **added: int) -> str:
    values = [{"id": number, "content": text} for text, number in added.items()]
    model = {"type": "BPE", "vocab": texts, "merges": []}
    return json.dumps({"model": model, "added_tokens": values})


TEXTS = {f"t{number}": number for number in range(96)}


def test_a_draft_with_another_tokenizer_is_refused_before_weights_are_read(
    llama: Path, tmp_path: Path
) -> None:
    target, draft = with_config(llama, tmp_path / "a"), with_config(llama, tmp_path / "b")
    (target / "tokenizer.json").write_text(tokenizer_of(TEXTS))
    other = {**TEXTS, "t7": 8, "t8": 7}
    for written in (tokenizer_of(other), tokenizer_of(TEXTS, t8=7)):
        (draft / "tokenizer.json").write_text(written)
        with pytest.raises(
            ConfigError, match=r"another tokenizer .*token 7 is 't8' there and 't7'"
        ):
            prepare_from_options(str(target), draft=str(draft), speculative="small_model")
    (draft / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [["t0", 0.0], ["u", 1]]}}))
    with pytest.raises(ConfigError, match="token 1 is 'u' there and 't1' here"):
        prepare_from_options(str(target), draft=str(draft), speculative="small_model")
    (draft / "tokenizer.json").write_text(json.dumps({"model": {}}))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: KeyError where its vocabulary is"):
        prepare_from_options(str(target), draft=str(draft), speculative="small_model")


def test_the_same_tokenizer_or_none_is_taken(llama: Path, tmp_path: Path) -> None:
    target, draft = with_config(llama, tmp_path / "a"), with_config(llama, tmp_path / "b")
    (target / "tokenizer.json").write_text(tokenizer_of(TEXTS))
    prepare_from_options(str(target), draft=str(draft), speculative="small_model")
    (draft / "tokenizer.json").write_text(tokenizer_of({t: i for t, i in TEXTS.items() if i < 90}))
    prepare_from_options(str(target), draft=str(draft), speculative="small_model")


def padded(source: Path, target: Path, rows: int) -> Path:
    """The same model with another number of rows in embedding and head."""
    target.mkdir()
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    (target / "tokenizer.json").write_text(tokenizer_of(dict(list(TEXTS.items())[:80])))
    tensors = load_file(source / "model.safetensors")
    for name, tensor in tensors.items():
        if "embed_tokens" in name or "lm_head" in name:
            more = tensor.new_zeros(max(0, rows - len(tensor)), tensor.shape[1])
            tensors[name] = torch.cat([tensor, more])[:rows].contiguous()
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize("acceptance", ["coupled", "residual"])
@pytest.mark.parametrize("rows", [80, 90, 112])
def test_one_tokenizer_may_be_padded_to_different_sizes(
    llama: Path, tmp_path: Path, rows: int, acceptance: str
) -> None:
    """Also where the target says, or was told, a token that only its own padding has."""
    target, draft = padded(llama, tmp_path / "a", 96), padded(llama, tmp_path / "b", rows)
    prompts = [*PROMPTS, [1, 95, 94]]
    params = [
        SamplingParams(temperature=0.9, seed=3, max_tokens=17, logit_bias=bias)
        for bias in ({}, dict.fromkeys(range(80, 96), -1e9), {}, {95: 4.0})
    ]
    plain = LLM(str(target), cache=CACHE).generate(prompts, params)
    assert 95 in plain[-1].token_ids
    ours = speculate(target, draft, acceptance=acceptance).generate(prompts, params)
    if acceptance == "coupled":
        assert [out.token_ids for out in ours] == [out.token_ids for out in plain]
    of_texts = ours[1].speculative
    assert of_texts is not None
    assert of_texts["accepted"] == of_texts["drafted"] > 0


def test_the_tokens_of_a_gguf_file_are_read() -> None:
    demo = open_checkpoint("demo", load_registry()).model_config()
    texts = token_texts(demo)
    assert texts is not None
    assert texts[2] == "<|im_end|>"
    assert first_difference(texts, {**texts, 5: "?", 9: "?"}) == (5, texts[5], "?")
    assert first_difference(texts, {2: "<|im_end|>", 10**6: "x"}) is None


def test_inspect_says_where_drafting_ends(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = with_config(llama, tmp_path / "short", max_position_embeddings=10)
    flags = ["inspect", str(llama), "--speculative", "small_model", "--draft"]
    assert main([*flags, str(short)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"drafts in the first 10 tokens of a context of \d+, and not after", said)
    assert "width adaptive, to 7 tokens a step; the draft has no limit of its own" in said
    assert main([*flags, str(llama), "--width", "64"]) == 0
    said = capsys.readouterr().out
    assert "; width 64\n" in said
    assert "drafts in the first" not in said
