"""Tiny random targets and drafts of every format and option, on disk. Plain torch and json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
import transformers
from safetensors.torch import save_file

VOCAB, WIDTH, LAYERS, MASK = 96, 48, 7, 90

TARGETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "narrow": {},  # says few tokens only, so that a random draft is right now and then
    "tied": {"tie_word_embeddings": True},
}
SPOKEN = (5, 17, 40)
"""The tokens that "narrow" says, beside its lowest one."""

LAYER: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "num_target_layers": LAYERS,
}
INSIDE = {"mask_token_id": MASK, "target_layer_ids": [1, 3, 5]}
SLIDING = {"sliding_window": 5, "use_sliding_window": True}
S, F = "sliding_attention", "full_attention"
HALVES = [1.0 + 0.3 * i for i in range(10)]


@attrs.frozen(kw_only=True)
class DraftCase:
    """One draft. options: beside the config; inside: of dflash_config. taps: boundaries it must
    read. windows, causal: what each layer must see.

    speculators: the other format; `top` stands beside its transformer_layer_config.
    """

    options: Mapping[str, Any] = attrs.field(factory=dict)
    inside: Mapping[str, Any] = attrs.field(factory=lambda: INSIDE)
    top: Mapping[str, Any] = attrs.field(factory=dict)
    aux_hidden_state_layers: tuple[int, ...] = (2, 4, 6)
    windows: tuple[int | None, ...] = (None, None, None)
    causal: tuple[bool, ...] = (False, False, False)
    block_size: int = 16
    target: str = "narrow"
    prefix: str = ""
    speculators: bool = False
    draft_vocab: int = VOCAB
    own_head: bool = False
    own_embedding: bool = False
    samples_anchor: bool = False
    embedding_factor: float = 1.0
    logit_factor: float = 1.0
    softcap: float | None = None

    @property
    def layer(self) -> dict[str, Any]:
        """The layer options with every default filled in."""
        return {**LAYER, **self.options}

    @property
    def num_layers(self) -> int:
        return int(self.layer["num_hidden_layers"])


def _speculators(**fields: Any) -> DraftCase:
    top = {
        "block_size": 6,
        "mask_token_id": MASK,
        "draft_vocab_size": fields.get("draft_vocab", VOCAB),
        **fields.pop("top", {}),
    }
    return DraftCase(speculators=True, top=top, **{"block_size": 6, **fields})


CASES: dict[str, DraftCase] = {
    "plain": DraftCase(),
    "one-layer": DraftCase(
        options={"num_hidden_layers": 1, "block_size": 4},
        inside={"mask_token_id": MASK},
        aux_hidden_state_layers=(4,),
        windows=(None,),
        causal=(False,),
        block_size=4,
        prefix="model.",
    ),
    "default-ids": DraftCase(
        inside={"mask_token_id": MASK, "block_size": 8},
        aux_hidden_state_layers=(2, 3, 5),
        block_size=8,
    ),
    "unsorted": DraftCase(
        inside={"mask_token_id": MASK, "target_layer_ids": [5, 0, 5, -1, 6]},
        aux_hidden_state_layers=(6, 1, 6, 0, 7),
    ),
    "override": DraftCase(
        options={"hidden_state_boundaries": [3, 1]}, aux_hidden_state_layers=(3, 1)
    ),
    "sliding": DraftCase(
        options={**SLIDING, "layer_types": [S, S, S]}, windows=(5, 5, 5), causal=(True, True, True)
    ),
    "mixed": DraftCase(
        options={**SLIDING, "layer_types": [S, F, S]},
        windows=(5, None, 5),
        causal=(True, False, True),
    ),
    "not-causal": DraftCase(
        options={**SLIDING, "sliding_window": 3, "layer_types": [S, F, S], "is_causal": False},
        windows=(3, None, 3),
    ),
    "all-causal": DraftCase(options={"is_causal": True}, causal=(True, True, True)),
    "causal-inside": DraftCase(inside={**INSIDE, "causal": True}, causal=(True, True, True)),
    "swa-inside": DraftCase(
        inside={**INSIDE, "use_swa": True, "swa_window_size": 4}, windows=(4, 4, 4)
    ),
    "biases": DraftCase(options={"attention_bias": True}),
    "theta": DraftCase(options={"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}),
    "linear": DraftCase(
        options={"rope_parameters": {"rope_type": "linear", "rope_theta": 300.0, "factor": 3.0}}
    ),
    "llama3": DraftCase(
        options={
            "rope_parameters": {
                **{"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0},
                **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
                "original_max_position_embeddings": 32,
            }
        }
    ),
    "yarn": DraftCase(
        options={
            "rope_parameters": {
                **{"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0},
                "original_max_position_embeddings": 32,
            }
        }
    ),
    "longrope": DraftCase(
        options={
            "rope_parameters": {
                **{"rope_type": "longrope", "rope_theta": 500.0},
                **{"short_factor": HALVES, "long_factor": [2 * x for x in HALVES]},
                "original_max_position_embeddings": 14,
            }
        }
    ),
    "factors": DraftCase(
        inside={
            **INSIDE,
            **{"input_embedding_scale": 1.7, "output_multiplier": 0.6},
            "final_logit_softcapping": 1.5,
        },
        embedding_factor=1.7,
        logit_factor=0.6,
        softcap=1.5,
    ),
    "wide-heads": DraftCase(
        options={"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32}, target="tied"
    ),
    "speculators": _speculators(
        top={"aux_hidden_state_layer_ids": [6, 2, 2]},
        aux_hidden_state_layers=(6, 2, 2),
        prefix="model.",
    ),
    "speculators-default": _speculators(aux_hidden_state_layers=(2, 3, 4)),
    "speculators-sliding": _speculators(
        options={**SLIDING, "layer_types": [S, F, S]},
        top={"aux_hidden_state_layer_ids": [1, 7]},
        aux_hidden_state_layers=(1, 7),
        windows=(5, None, 5),
        causal=(True, False, True),
    ),
    "speculators-not-causal": _speculators(
        options={**SLIDING, "layer_types": [S, F, S]},
        top={"sliding_window_non_causal": True},
        aux_hidden_state_layers=(2, 3, 4),
        windows=(5, None, 5),
    ),
    "speculators-anchor": _speculators(
        top={"sample_from_anchor": True}, aux_hidden_state_layers=(2, 3, 4), samples_anchor=True
    ),
    "speculators-small": _speculators(
        aux_hidden_state_layers=(2, 3, 4), draft_vocab=40, own_head=True
    ),
    "speculators-own": _speculators(
        aux_hidden_state_layers=(2, 3, 4), own_head=True, own_embedding=True
    ),
}


def save_target(name: str, folder: Path) -> Path:
    """A random Llama of a few blocks; norms are random too."""
    path = folder / f"target-{name}"
    if path.exists():
        return path
    torch.manual_seed(11)
    config = transformers.LlamaConfig(
        **{
            **{"vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 64},
            **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": LAYERS},
            **{"max_position_embeddings": 128, "rms_norm_eps": 1e-5, "initializer_range": 0.2},
            **TARGETS[name],
        },
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0, 0.2)
        if name == "narrow":
            silent = torch.ones(VOCAB, dtype=torch.bool)
            silent[list(SPOKEN)] = False
            model.lm_head.weight[silent] = 0
    model.save_pretrained(path)
    return path


def draft_config(case: DraftCase) -> dict[str, Any]:
    """What its config.json says."""
    if not case.speculators:
        return {
            **case.layer,
            "architectures": ["DFlashDraftModel"],
            "dflash_config": dict(case.inside),
            "auto_map": {"AutoModel": "dflash.DFlashDraftModel"},
        }
    layer = {key: value for key, value in case.layer.items() if key != "num_target_layers"}
    del layer["hidden_act"]  # such files leave out what is the class's default
    return {
        "architectures": ["DFlashDraftModel"],
        **case.top,
        "speculators_model_type": "dflash",
        "speculators_version": "0.5.0",
        "speculators_config": {"algorithm": "dflash", "verifier": {"architectures": []}},
        "transformer_layer_config": layer,
    }


def draft_tensors(case: DraftCase, seed: int = 5) -> dict[str, torch.Tensor]:
    """Random tensors under plain names, without a prefix."""
    layer = case.layer
    width, inner, head_dim = layer["hidden_size"], layer["intermediate_size"], layer["head_dim"]
    heads, kv_heads = layer["num_attention_heads"], layer["num_key_value_heads"]
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, torch.Tensor] = {}

    def linear(name: str, rows: int, columns: int, bias: bool = False) -> None:
        made[f"{name}.weight"] = torch.randn(rows, columns, generator=generator) * columns**-0.5
        if bias:
            made[f"{name}.bias"] = torch.randn(rows, generator=generator) * 0.3

    def norm(name: str, size: int) -> None:
        made[f"{name}.weight"] = 1 + 0.2 * torch.randn(size, generator=generator)

    linear("fc", width, len(case.aux_hidden_state_layers) * width)
    norm("hidden_norm", width)
    norm("norm", width)
    bias = bool(layer.get("attention_bias"))
    for index in range(case.num_layers):
        at = f"layers.{index}"
        for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            linear(f"{at}.self_attn.{part}_proj", count * head_dim, width, bias)
        linear(f"{at}.self_attn.o_proj", width, heads * head_dim, bias)
        norm(f"{at}.self_attn.q_norm", head_dim)
        norm(f"{at}.self_attn.k_norm", head_dim)
        norm(f"{at}.input_layernorm", width)
        norm(f"{at}.post_attention_layernorm", width)
        linear(f"{at}.mlp.gate_proj", inner, width)
        linear(f"{at}.mlp.up_proj", inner, width)
        linear(f"{at}.mlp.down_proj", width, inner)
    if case.own_head:
        linear("lm_head", case.draft_vocab, width)
    if case.own_embedding:
        made["embed_tokens.weight"] = torch.randn(VOCAB, width, generator=generator)
    if case.draft_vocab < VOCAB:
        chosen = torch.randperm(VOCAB, generator=generator)[: case.draft_vocab]
        made["d2t"] = chosen - torch.arange(case.draft_vocab)
        made["t2d"] = torch.isin(torch.arange(VOCAB), chosen)
    return made


def save_draft(name: str, folder: Path) -> Path:
    """A case's directory, with the names that its format has."""
    path = folder / name
    if not path.exists():
        case = CASES[name]
        write_draft(path, draft_config(case), draft_tensors(case), case.prefix)
    return path


def write_draft(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], prefix: str = ""
) -> None:
    """A directory with config.json and the tensors."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(dict(config)))
    bare = ("d2t", "t2d", "lm_head.weight")
    named = {
        (name if name in bare else prefix + name): tensor.contiguous()
        for name, tensor in tensors.items()
    }
    save_file(named, path / "model.safetensors")
