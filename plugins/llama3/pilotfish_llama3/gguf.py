"""A GGUF file's metadata as the Hugging Face config it stands for.

Knows: the keys of `llama.*`. Does not know: tensors or the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pilotfish.config.hf_options import real_number
from pilotfish.errors import ConfigError

_BASE = "llama.rope.freq_base"


def gguf_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """metadata: GGUF key -> value. Returns the options of a LlamaForCausalLM config.

    Raises ConfigError naming a key that is missing or changes the maths and is not read.
    """
    _refuse(metadata)
    heads = _int(metadata, "llama.attention.head_count")
    width = _int(metadata, "llama.embedding_length")
    head_dim = _int(metadata, "llama.attention.key_length", width // heads)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": _int(metadata, "llama.attention.head_count_kv", heads),
        "num_hidden_layers": _int(metadata, "llama.block_count"),
        "intermediate_size": _int(metadata, "llama.feed_forward_length"),
        "max_position_embeddings": _int(metadata, "llama.context_length"),
        "rms_norm_eps": _need_number(metadata, "llama.attention.layer_norm_rms_epsilon"),
        "vocab_size": _vocab_size(metadata),
        "head_dim": head_dim,
        "rope_parameters": _rope(metadata, head_dim),
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
        "attention_bias": False,
        "mlp_bias": False,
    }


def _rope(metadata: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """`rope_parameters`; a per-dimension table, where there is one, is a tensor of the file."""
    rotary_dim = _int(metadata, "llama.rope.dimension_count", head_dim)
    if rotary_dim != head_dim:
        raise ConfigError(
            f"llama.rope.dimension_count is {rotary_dim}; wanted the head width {head_dim}"
        )
    options: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": _need_number({_BASE: 10000.0, **metadata}, _BASE),
    }
    kind = metadata.get("llama.rope.scaling.type", "none")
    old_factor = metadata.get("llama.rope.scale_linear")
    if kind == "none" and old_factor in (None, 1.0):
        return options
    if kind in ("linear", "none"):
        factor = metadata.get("llama.rope.scaling.factor", old_factor)
        return {**options, "rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return {
            **options,
            "rope_type": "yarn",
            "factor": metadata.get("llama.rope.scaling.factor"),
            "original_max_position_embeddings": metadata.get(
                "llama.rope.scaling.original_context_length"
            ),
        }
    raise ConfigError(
        f"llama.rope.scaling.type is {kind!r}; wanted one of 'none', 'linear', 'yarn'"
    )


def _vocab_size(metadata: Mapping[str, Any]) -> int:
    if "llama.vocab_size" in metadata:
        return _int(metadata, "llama.vocab_size")
    return len(_need(metadata, "tokenizer.ggml.tokens"))


def _need(metadata: Mapping[str, Any], key: str) -> Any:
    if key not in metadata:
        raise ConfigError(f"the GGUF file has no {key!r} in its metadata; the file is incomplete")
    return metadata[key]


def _need_number(metadata: Mapping[str, Any], key: str) -> float:
    return real_number(key, _need(metadata, key), above=0, whose="the GGUF file")


def _int(metadata: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A whole number >= 1; there must be one where there is no default.

    Raises ConfigError for anything else, such as a number a layer.
    """
    value = _need(metadata, key) if default is None else metadata.get(key, default)
    if type(value) is not int or value < 1:
        raise ConfigError(f"{key} is {value!r}; wanted one whole number >= 1 for all layers")
    return value


def _refuse(metadata: Mapping[str, Any]) -> None:
    neutral: dict[str, tuple[Any, ...]] = {
        "llama.expert_count": (0,),
        "llama.attention.sliding_window": (0,),
        "llama.logit_scale": (0, 1),
        "llama.embedding_scale": (0, 1),
        "llama.residual_scale": (0, 1),
        "llama.attention.scale": (0,),
        "llama.rope.scaling.attn_factor": (1.0,),
        "llama.rope.scaling.yarn_ext_factor": (1.0, -1.0),
        "llama.rope.scaling.yarn_attn_factor": (1.0,),
        "llama.rope.scaling.yarn_beta_fast": (32.0,),
        "llama.rope.scaling.yarn_beta_slow": (1.0,),
        "llama.rope.scaling.yarn_log_multiplier": (0.0,),
    }
    for key, values in neutral.items():
        value = metadata.get(key)
        if value is not None and value not in values:
            raise ConfigError(
                f"{key} is {value!r}, which changes the maths and is not read; wanted it absent or "
                f"one of {', '.join(map(repr, values))}"
            )
