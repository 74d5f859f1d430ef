"""EAGLE drafts in the engine: the text of plain decoding, and a perfect draft accepted whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import transformers

from eagle.checkpoints import (
    CASES,
    LAYER,
    VOCAB,
    DraftCase,
    draft_config,
    draft_tensors,
    write_draft,
)
from eagle.conftest import Pair
from pilotfish import LLM, CacheConfig, RequestOutput, SamplingParams, SpeculativeConfig
from pilotfish.errors import ConfigError, RouteError

PROMPTS = [[1, 2, 3], [5], [7] * 20, [9, 8, 7, 6], [3] * 11, list(range(30, 47))]


def params(temperature: float, **options: Any) -> list[SamplingParams]:
    options.setdefault("max_tokens", 20)
    return [
        SamplingParams(temperature=temperature, seed=number, **options)
        for number in range(len(PROMPTS))
    ]


def texts(llm: LLM, asked: list[SamplingParams]) -> list[tuple[list[int], str]]:
    return [(list(out.token_ids), out.finish_reason) for out in llm.generate(PROMPTS, asked)]


@pytest.mark.parametrize(
    ("case", "dtype"),
    [("eagle1-bin", "bfloat16"), ("eagle3", "bfloat16"), ("speculators", "float32")],
)
def test_the_text_is_that_of_plain_decoding(pair: Pair, case: str, dtype: str) -> None:
    """Greedy and sampled, ragged batches, chunked prompts, few pages, every width up to 4."""
    target, draft = pair(case)
    tight = CacheConfig(page_size_tokens=4, num_pages=40)
    sizes: dict[str, Any] = {"dtype": dtype, "cache": tight, "max_batch_tokens": 12}
    plain = LLM(str(target), max_batch_size=4, **sizes)
    spec = SpeculativeConfig(method="eagle", width={1: 4, 2: 3, 3: 1, 4: 2})
    eagle = LLM(str(target), draft=str(draft), speculative=spec, max_batch_size=4, **sizes)
    for temperature in (0.0, 0.8):
        asked = params(temperature)
        assert texts(eagle, asked) == texts(plain, asked)
        drafted = [out.speculative["drafted"] for out in eagle.generate(PROMPTS[:2], asked[:2])]
        assert all(count > 10 for count in drafted)


def test_a_text_goes_on_past_the_drafts_last_position(pair: Pair, tmp_path: Path) -> None:
    target, _ = pair("eagle3")
    case = CASES["eagle3"]
    config = {**draft_config(case), "max_position_embeddings": 12}
    write_draft(tmp_path / "short", config, draft_tensors(case), case)
    plain = LLM(str(target))
    eagle = LLM(
        str(target),
        draft=str(tmp_path / "short"),
        speculative=SpeculativeConfig(method="eagle", width=3),
    )
    asked = params(0.0, max_tokens=30)
    assert texts(eagle, asked) == texts(plain, asked)
    counts = [out.speculative["drafted"] for out in eagle.generate(PROMPTS, asked)]
    assert counts[2] == counts[5] == 0  # prompts past the limit
    assert 0 < counts[0] < 30
    assert counts[0] < counts[1]


def chain(folder: Path) -> Path:
    """A target whose next token depends on the last one alone: its blocks add nothing."""
    options = {key: value for key, value in LAYER.items() if key != "model_type"}
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        **{**options, "num_hidden_layers": 4, "initializer_range": 1.0},
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    return folder


def perfect(version: int, target: Path, folder: Path) -> Path:
    """A draft that does what the chain does.

    EAGLE-1: fc passes on the embedding, and the layer adds nothing. EAGLE-3: its attention sees
    only the row itself (all queries and keys are one large vector, which rotary positions turn
    away from itself with distance) and passes on the embedding; its tokens are permuted.
    """
    width = LAYER["hidden_size"]
    eye, nothing = torch.eye(width), torch.zeros(width, width)
    if version == 1:
        case = DraftCase(
            version=1, aux_hidden_state_layers=(), own_head=False, offsets=False, first="layers.0."
        )
        case = attrs.evolve(case, options={"bias": False})
    else:
        options = {"attention_bias": True, "num_key_value_heads": 4, "norm_before_residual": True}
        case = DraftCase(
            options={**options, "draft_vocab_size": VOCAB}, aux_hidden_state_layers=(2, 2, 1)
        )
    made = draft_tensors(case)
    at = "layers.0.self_attn"
    made["layers.0.mlp.down_proj.weight"].zero_()
    if version == 1:
        made[f"{at}.o_proj.weight"].zero_()
        made["fc.weight"] = torch.cat([eye, nothing], dim=1)
    else:
        head = transformers.AutoModelForCausalLM.from_pretrained(target).lm_head.weight.detach()
        for part in "qk":
            made[f"{at}.{part}_proj.weight"].zero_()
            made[f"{at}.{part}_proj.bias"].fill_(30.0)
        made[f"{at}.v_proj.weight"] = torch.cat([eye, nothing], dim=1)
        made[f"{at}.o_proj.weight"] = eye.clone()
        for part in "vo":
            made[f"{at}.{part}_proj.bias"].zero_()
        for name in ("layers.0.input_layernorm.weight", "norm.weight"):
            made[name].fill_(1.0)
        made["layers.0.hidden_norm.weight"].zero_()  # nor does the residual say anything
        made["lm_head.weight"] = head[made["d2t"] + torch.arange(VOCAB)].clone()
    write_draft(folder, draft_config(case), made, case)
    return folder


@pytest.mark.parametrize("version", [1, 3])
def test_a_perfect_draft_is_accepted_whole(tmp_path: Path, version: int) -> None:
    """Every step commits all drafted tokens and the bonus."""
    target = chain(tmp_path / "target")
    draft = perfect(version, target, tmp_path / "draft")
    spec = SpeculativeConfig(method="eagle", width=4)
    eagle = LLM(str(target), draft=str(draft), speculative=spec)
    plain = LLM(str(target))
    asked = params(0.0, max_tokens=26)
    assert texts(eagle, asked) == texts(plain, asked)
    for out in eagle.generate(PROMPTS, asked):
        assert out.speculative["accepted"] == out.speculative["drafted"] == 20
        assert out.speculative["mean_committed_per_step"] == 5.0


def test_a_prefix_hit_drafts_what_a_cold_prompt_does(pair: Pair) -> None:
    """Tokens and accepts, for prompts that share pages in full, in part and not at all."""
    target, draft = pair("eagle1")
    spec = SpeculativeConfig(method="eagle", width=3)
    shared = [11, 40, 3, 77, 25, 60, 8, 19, 33]
    prompts = [shared, [*shared, 5], [*shared[:8], 6, 7], shared[:4], [1, *shared]]
    asked = [SamplingParams(temperature=1.0, seed=number, max_tokens=16) for number in range(5)]
    found = []
    for caching in (False, True):
        cache = CacheConfig(page_size_tokens=4, num_pages=64, prefix_caching=caching)
        eagle = LLM(str(target), draft=str(draft), speculative=spec, cache=cache, max_batch_size=1)
        for _ in range(1 + caching):
            outs = eagle.generate(prompts, asked)
            found.append([(list(out.token_ids), _counts(out)) for out in outs])
    assert found[0] == found[1] == found[2]
    assert sum(counts[1] for _, counts in found[0]) > 0


def _counts(out: RequestOutput) -> tuple[int, int]:
    return out.speculative["drafted"], out.speculative["accepted"]


TARGETS: dict[str, dict[str, Any]] = {
    "Qwen3": {"head_dim": 16},
    "Granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5},
    "Lfm2": {
        "layer_types": ["conv", "full_attention", "conv", "conv", "full_attention", "conv", "conv"],
        "block_auto_adjust_ff_dim": False,
    },
}


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("case", ["eagle1", "eagle3"])
def test_drafts_run_on_targets_that_know_nothing_of_them(
    pair: Pair, tmp_path: Path, family: str, case: str
) -> None:
    """Other families, one of them with a state that is no keys and values."""
    _, draft = pair(case)
    options = {key: LAYER[key] for key in LAYER if key not in ("model_type", "rms_norm_eps")}
    torch.manual_seed(4)
    config = getattr(transformers, f"{family}Config")(
        **{**options, "num_hidden_layers": 7, "initializer_range": 0.2, **TARGETS[family]},
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    )
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(tmp_path / "target")
    spec = SpeculativeConfig(method="eagle", width=3)
    sizes: dict[str, Any] = {"max_batch_size": 3, "max_batch_tokens": 16, "dtype": "float32"}
    eagle = LLM(str(tmp_path / "target"), draft=str(draft), speculative=spec, **sizes)
    plain = LLM(str(tmp_path / "target"), **sizes)
    asked = params(0.8, max_tokens=12)
    assert texts(eagle, asked) == texts(plain, asked)


def test_residual_acceptance_takes_laws_of_the_target_vocabulary(pair: Pair) -> None:
    target, draft = pair("eagle3")
    spec = SpeculativeConfig(method="eagle", width=3, acceptance="residual")
    eagle = LLM(str(target), draft=str(draft), speculative=spec)
    for out in eagle.generate(PROMPTS, params(1.0)):
        assert len(out.token_ids) == 20
        assert out.speculative["drafted"] > 10


def edited(pair: Pair, folder: Path, change: Callable[[dict[str, Any]], None]) -> tuple[str, str]:
    target, draft = pair("eagle3")
    config = json.loads((draft / "config.json").read_text())
    change(config)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").symlink_to(draft / "model.safetensors")
    return str(target), str(folder)


def test_a_draft_of_another_target_is_refused_before_weights_are_read(
    pair: Pair, tmp_path: Path
) -> None:
    target, draft = edited(pair, tmp_path / "a", lambda c: c.update(vocab_size=VOCAB + 513))
    with pytest.raises(ConfigError, match="give the draft of this target"):
        LLM(target, draft=draft, speculative="eagle")
    target, draft = edited(pair, tmp_path / "b", lambda c: c.update(architectures=["Other"]))
    with pytest.raises(RouteError, match="Other"):
        LLM(target, draft=draft, speculative="eagle")


def padded(folder: Path, case: DraftCase, rows: int) -> Path:
    """The case's draft with another number of rows in its embedding, and in a head of as many.

    What only the draft has would be drafted always, if it counted.
    """
    config = {**draft_config(case), "vocab_size": rows}
    tensors = draft_tensors(case)
    resized = ["embed_tokens.weight"] if case.own_embedding else []
    if case.draft_vocab == VOCAB and case.own_head:
        resized.append("lm_head.weight")
        config["draft_vocab_size"] = rows
    for name in resized:
        more = torch.full((max(0, rows - VOCAB), tensors[name].shape[1]), 50.0)
        tensors[name] = torch.cat([tensors[name], more])[:rows].contiguous()
    write_draft(folder, config, tensors, case)
    return folder


@pytest.mark.parametrize("rows", [VOCAB - 6, VOCAB + 8])
@pytest.mark.parametrize(
    "case",
    [
        attrs.evolve(CASES["eagle3"], own_embedding=True),
        attrs.evolve(CASES["eagle3-all-tokens"], own_embedding=True),
        attrs.evolve(CASES["eagle1"], own_embedding=True),
    ],
    ids=["of some tokens", "of all tokens", "first"],
)
def test_an_embedding_padded_to_another_size_drafts_alike(
    pair: Pair, tmp_path: Path, case: DraftCase, rows: int
) -> None:
    """And where the target says, or was told, a token that only its own padding has."""
    if rows < VOCAB and case.offsets:  # ids of the padding among the draft's own, in this case
        rows = VOCAB + 1
    target, _ = pair("eagle3")
    drafts = [padded(tmp_path / str(size), case, size) for size in (VOCAB, rows)]
    speculative = SpeculativeConfig(method="eagle", width=3)
    llms = [LLM(str(target), draft=str(draft), speculative=speculative) for draft in drafts]
    plain = LLM(str(target))
    usual = params(0.0)
    assert texts(llms[1], usual) == texts(plain, usual)
    counted = [
        [
            (out.speculative["drafted"], out.speculative["accepted"])
            for out in llm.generate(PROMPTS, usual)
        ]
        for llm in ([] if rows < VOCAB else llms)
    ]
    assert all(one == counted[0] for one in counted)
    odd = params(0.9, logit_bias={VOCAB - 1: 6.0})
    wanted = texts(plain, odd)
    assert any(VOCAB - 1 in ids for ids, _ in wanted)
    assert texts(llms[1], odd) == wanted
    last = LLM(str(target)).generate([[1, VOCAB - 1]], usual[0])[0]
    assert llms[1].generate([[1, VOCAB - 1]], usual[0])[0].token_ids == last.token_ids
