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

VOCAB, WIDTH, LAYERS = 96, 48, 7

TARGETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
}

SPECFORGE_TAPS = {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [5, 1, 1]}}
THETA = {"rope_theta": 300.0}
PARAMETERS = {"rope_parameters": {"rope_type": "linear", "rope_theta": 300.0, "factor": 3.0}}


@attrs.frozen(kw_only=True)
class DraftCase:
    """One draft. version, options: its config. taps: the boundaries it must read.

    own_embedding, own_head: in the file. offsets: d2t in the file. names: how layer 0 is spelled.
    layer: options inside `transformer_layer_config` where the format is speculators'.
    """

    version: int = 3
    options: Mapping[str, Any] = attrs.field(factory=dict)
    aux_hidden_state_layers: tuple[int, ...] = (2, 3, 4)
    target: str = "plain"
    own_embedding: bool = False
    own_head: bool = True
    offsets: bool = True
    fc_bias: bool = False
    first: str = "midlayer."
    prefix: str = ""
    binary: bool = False
    speculators: bool = False
    architecture: str = ""

    @property
    def layer(self) -> dict[str, Any]:
        """The layer options with every default filled in."""
        return {**LAYER, **self.options}

    @property
    def draft_vocab(self) -> int:
        """Tokens that the draft knows."""
        return int(self.options.get("draft_vocab_size", VOCAB))


LAYER: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
SMALL_VOCAB = {"draft_vocab_size": 40}
FULL_VOCAB = {"draft_vocab_size": VOCAB}


def _first(**fields: Any) -> DraftCase:
    fields = {
        "aux_hidden_state_layers": (),
        "own_head": False,
        "offsets": False,
        "fc_bias": True,
        **fields,
    }
    return DraftCase(version=1, first="layers.0.", **fields)


def _third(options: Mapping[str, Any] = {}, **fields: Any) -> DraftCase:
    return DraftCase(options={**SMALL_VOCAB, **options}, **fields)


CASES: dict[str, DraftCase] = {
    "eagle1": _first(),
    "eagle1-bin": _first(options={"bias": False}, fc_bias=False, own_embedding=True, binary=True),
    "eagle1-deep": _first(
        options={
            **{"num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 20},
            **{"attention_bias": True, "mlp_bias": True},
        },
        prefix="model.",
    ),
    "eagle1-tied-target": _first(target="tied", architecture="EagleLlamaForCausalLM"),
    "eagle1-theta": _first(options=THETA, architecture="LlamaForCausalLMEagle"),
    "eagle1-rope": _first(options=PARAMETERS),
    "eagle1-qkv-bias": _first(options={"qkv_bias": True}),
    "eagle3": _third(),
    "eagle3-by-fields": _third(architecture="LlamaForCausalLM", prefix="model."),
    "eagle3-all-tokens": _third(FULL_VOCAB, offsets=False),
    "eagle3-permuted": _third(FULL_VOCAB, own_embedding=True),
    "eagle3-target-head": _third(FULL_VOCAB, offsets=False, own_head=False, target="tied"),
    "eagle3-tied": _third(
        {**FULL_VOCAB, "tie_word_embeddings": True},
        **{"offsets": False, "own_head": False, "own_embedding": True},
    ),
    "eagle3-narrow": _third(
        {"hidden_size": 32, "target_hidden_size": WIDTH, "head_dim": 12}, own_embedding=True
    ),
    "eagle3-blocks": _third(SPECFORGE_TAPS, aux_hidden_state_layers=(6, 2, 2)),
    "eagle3-boundaries": _third(
        {"eagle_aux_hidden_state_layer_ids": [7, 0, 3, 3]},
        aux_hidden_state_layers=(7, 0, 3, 3),
        architecture="Eagle3LlamaForCausalLM",
        first="layers.0.",
    ),
    "eagle3-residual": _third({"norm_before_residual": True}),
    "eagle3-norm-before-fc": _third({"eagle_config": {"norm_before_fc": True}}),
    "eagle3-fc-norm": _third(
        {"fc_norm": True, "eagle_aux_hidden_state_layer_ids": [5, 1]},
        aux_hidden_state_layers=(5, 1),
    ),
    "eagle3-norm-output": _third({"norm_output": True}),
    "eagle3-no-norm": _third({"norm_output": False}),
    "eagle3-sliding": _third(
        {
            **{"num_hidden_layers": 3, "sliding_window": 3},
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        first="layers.0.",
    ),
    "eagle3-leftover-window": _third({"sliding_window": 2, "use_sliding_window": False}),
    "eagle3-deep": _third({"num_hidden_layers": 3}, first="layers.0.", binary=True),
    "eagle3-biases": _third({"attention_bias": True, "mlp_bias": True}, fc_bias=True),
    "eagle3-theta": _third({**THETA, "partial_rotary_factor": 0.5}),
    "eagle3-rope": _third(PARAMETERS),
    "speculators": _third(
        {"norm_before_residual": True, "eagle_aux_hidden_state_layer_ids": [4, 1, 6], **THETA},
        aux_hidden_state_layers=(4, 1, 6),
        **{"speculators": True, "first": "layers.0.", "architecture": "Eagle3Speculator"},
    ),
    "speculators-new": _third(
        {"norm_before_fc": True, "norm_output": True, "target_hidden_size": None},
        **{"speculators": True, "first": "layers.0.", "architecture": "Eagle3DraftModel"},
    ),
    "speculators-sliding": _third(
        {
            **{"norm_before_fc": True, "norm_before_residual": True, "norm_output": True},
            **{"sliding_window": 4, "use_sliding_window": True, "partial_rotary_factor": 0.5},
            "layer_types": ["sliding_attention"],
        },
        **{"speculators": True, "first": "layers.0.", "architecture": "Eagle3DraftModel"},
    ),
    "speculators-full": _third(
        {
            **{"sliding_window": 2, "use_sliding_window": False},
            "layer_types": ["full_attention"],
        },
        **{"speculators": True, "first": "layers.0.", "architecture": "Eagle3DraftModel"},
    ),
}

_TOP_LEVEL = (
    *("draft_vocab_size", "norm_before_residual", "norm_before_fc", "fc_norm", "norm_output"),
    *("eagle_aux_hidden_state_layer_ids", "target_hidden_size"),
)


def save_target(name: str, folder: Path) -> Path:
    """A random Llama of a few blocks; norms are random too."""
    path = folder / f"target-{name}"
    if path.exists():
        return path
    torch.manual_seed(11)
    options = {key: LAYER[key] for key in LAYER if key not in ("model_type",)}
    config = transformers.LlamaConfig(
        **{**options, "num_hidden_layers": LAYERS, "initializer_range": 0.2, **TARGETS[name]},
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0, 0.2)
    model.save_pretrained(path)
    return path


def draft_config(case: DraftCase) -> dict[str, Any]:
    """What its config.json says."""
    names = {1: "LlamaForCausalLM", 3: "LlamaForCausalLMEagle3"}
    architecture = {"architectures": [case.architecture or names[case.version]]}
    if not case.speculators:
        return {**case.layer, **architecture}
    layer = {key: value for key, value in case.layer.items() if key not in _TOP_LEVEL}
    del layer["hidden_act"]  # such files leave out what is the class's default
    top = {key: case.layer[key] for key in _TOP_LEVEL if key in case.layer}
    return {
        **architecture,
        **top,
        "speculators_model_type": "eagle3",
        "speculators_version": "0.3.0",
        "speculators_config": {"algorithm": "eagle3", "verifier": {"architectures": []}},
        "transformer_layer_config": layer,
        "embed_requires_grad": False,
    }


def draft_tensors(case: DraftCase, seed: int = 5) -> dict[str, torch.Tensor]:
    """Random tensors under plain names: `layers.0.`, no prefix."""
    layer = case.layer
    width, inner, heads = layer["hidden_size"], layer["intermediate_size"], 4
    head_dim = layer.get("head_dim") or width // heads
    target_width = layer.get("target_hidden_size") or WIDTH
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, torch.Tensor] = {}

    def linear(name: str, rows: int, columns: int, bias: bool = False) -> None:
        made[f"{name}.weight"] = torch.randn(rows, columns, generator=generator) * columns**-0.5
        if bias:
            made[f"{name}.bias"] = torch.randn(rows, generator=generator) * 0.3

    def norm(name: str, size: int) -> None:
        made[f"{name}.weight"] = 1 + 0.2 * torch.randn(size, generator=generator)

    features = (
        len(case.aux_hidden_state_layers) * target_width
        if case.version == 3
        else width + target_width
    )
    linear("fc", width, features, case.fc_bias)
    if _flag(case, "norm_before_fc"):
        norm("input_norm", features)
    if _flag(case, "fc_norm"):
        for tap in range(len(case.aux_hidden_state_layers)):
            norm(f"fc_norm.{tap}", target_width)
    bias = bool(layer.get("attention_bias"))
    for index in range(layer["num_hidden_layers"]):
        at = f"layers.{index}"
        columns = 2 * width if case.version == 3 and index == 0 else width
        for part, count in (("q", heads), ("k", None), ("v", None)):
            rows = (count or layer["num_key_value_heads"]) * head_dim
            linear(f"{at}.self_attn.{part}_proj", rows, columns, layer.get("qkv_bias") or bias)
        linear(f"{at}.self_attn.o_proj", width, heads * head_dim, bias)
        for part, rows, columns in (
            ("gate", inner, width),
            ("up", inner, width),
            ("down", width, inner),
        ):
            linear(f"{at}.mlp.{part}_proj", rows, columns, bool(layer.get("mlp_bias")))
        norm(f"{at}.post_attention_layernorm", width)
        if case.version == 3 or index:
            norm(f"{at}.input_layernorm", width)
        if case.version == 3 and not index:
            norm(f"{at}.hidden_norm", width)
    if case.version == 3:
        norm("norm", width)
    if case.own_head:
        linear("lm_head", case.draft_vocab, width)
        made["lm_head.weight"] *= 4
    if case.own_embedding:
        made["embed_tokens.weight"] = torch.randn(VOCAB, width, generator=generator)
    if case.offsets:
        chosen = torch.randperm(VOCAB, generator=generator)[: case.draft_vocab]
        made["d2t"] = chosen - torch.arange(case.draft_vocab)
        made["t2d"] = torch.isin(torch.arange(VOCAB), chosen)
    return made


def _flag(case: DraftCase, name: str) -> bool:
    return bool(case.options.get(name) or case.options.get("eagle_config", {}).get(name))


def save_draft(name: str, folder: Path) -> Path:
    """A case's directory, with the names that its format has."""
    path = folder / name
    if not path.exists():
        case = CASES[name]
        write_draft(path, draft_config(case), draft_tensors(case), case)
    return path


def write_draft(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], case: DraftCase
) -> None:
    """A directory with config.json and the tensors."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(dict(config)))
    named = {
        case.prefix * (name not in ("d2t", "t2d", "lm_head.weight"))
        + (case.first + name.removeprefix("layers.0.") if name.startswith("layers.0.") else name): t
        for name, t in tensors.items()
    }
    if case.binary:
        torch.save(named, path / "pytorch_model.bin")
    else:
        save_file(
            {key: tensor.contiguous() for key, tensor in named.items()}, path / "model.safetensors"
        )
