"""What DeepSeek-V3's options mean, and which ones are refused.

Knows: names and values in a Hugging Face config. Does not know: our own config's fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pilotfish.config import ModelConfig, PipelineConfig
from pilotfish.errors import ConfigError
from pilotfish.layers.rope import RopeParameters

NEEDED = (
    *("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"),
    *("intermediate_size", "max_position_embeddings"),
    *("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
)

REFUSED: Mapping[str, tuple[object, ...]] = {
    "hidden_act": (None, "silu", "swish"),
    "scoring_func": (None, "sigmoid"),
    "topk_method": (None, "noaux_tc"),
    "partial_rotary_factor": (None, 1.0),
    "sliding_window": (None,),
    "mlp_bias": (None, False),
    "index_topk": (None,),
    "final_logit_softcapping": (None,),
    "attn_logit_softcapping": (None,),
    "embedding_multiplier": (None, 1.0),
    "logits_scaling": (None, 1.0),
    "add_cross_attention": (None, False),
    "is_encoder_decoder": (None, False),
}
"""Options that would change the maths and are not read: values that change nothing."""

INT4_GROUP = 32
"""Inputs that share a scale in packed weights."""

INT4: Mapping[str, tuple[object, ...]] = {
    "num_bits": (4,),
    "type": ("int",),
    "symmetric": (None, True),
    "strategy": (None, "group"),
    "group_size": (INT4_GROUP,),
    "dynamic": (None, False),
    "actorder": (None, False),
    "block_structure": (None,),
    "zp_dtype": (None,),
}
"""What a group of packed weights must say: four bits, symmetric, a scale for every 32 inputs."""


def text_config_of(huggingface_config: Any) -> Any:
    """The options of the text network, wherever they stand."""
    return getattr(huggingface_config, "text_config", None) or huggingface_config


def get(config: Any, name: str, default: Any) -> Any:
    """An option, or the default where it is absent or null."""
    value = getattr(config, name, None)
    return default if value is None else value


def refuse_unread(text: Any) -> None:
    """Raises ConfigError naming a missing option, or one that changes the maths and is not read."""
    for name in NEEDED:
        if getattr(text, name, None) is None:
            raise ConfigError(f"the checkpoint's config has no {name}; the config is incomplete")
    for name, neutral in REFUSED.items():
        _want(name, getattr(text, name, None), neutral)
    heads = text.num_attention_heads
    _want("num_key_value_heads", getattr(text, "num_key_value_heads", None), (None, heads))
    _want("head_dim", getattr(text, "head_dim", None), (None, text.qk_rope_head_dim))


def rope_of(text: Any) -> RopeParameters:
    """Rotary positions of the part of a head that turns; only plain and YaRN ones are known."""
    rope = RopeParameters.from_hf(text, text.qk_rope_head_dim)
    if rope.rope_type not in ("default", "yarn"):
        raise ConfigError(
            f"the checkpoint's rope_type is {rope.rope_type!r}; wanted 'default' or 'yarn', as "
            "this architecture is trained with"
        )
    return rope


def check_quantization(huggingface_config: Any) -> None:
    """Raises ConfigError for anything but INT4 in groups of 32, and for what goes beyond weights.

    Which tensors are packed is not read here: the file says it for each.
    """
    text = text_config_of(huggingface_config)
    given = getattr(huggingface_config, "quantization_config", None)
    given = given or getattr(text, "quantization_config", None)
    if not given:
        return
    options = given if isinstance(given, Mapping) else given.to_dict()
    method = options.get("quant_method")
    if method != "compressed-tensors":
        raise ConfigError(
            f"the checkpoint's quantization_config has quant_method = {method!r}"
            f"{' (8-bit floats in blocks)' if method == 'fp8' else ''}, which is not served; "
            "wanted 'compressed-tensors' with packed 4-bit integers, or weights of 16 or 32 bits"
        )
    groups = options.get("config_groups") or {}
    for name, group in groups.items():
        where = f"quantization_config.config_groups.{name}"
        layout = group.get("format") or options.get("format")
        _want(f"{where}.format", layout, ("pack-quantized",))
        for kind in ("input_activations", "output_activations"):
            _want(f"{where}.{kind}", group.get(kind), (None,))
        weights = group.get("weights") or {}
        for option, allowed in INT4.items():
            _want(f"{where}.weights.{option}", weights.get(option), allowed)
    if not groups:
        raise ConfigError(
            "the checkpoint's quantization_config has no config_groups; wanted one that says how "
            "weights are packed"
        )
    _want("quantization_config.kv_cache_scheme", options.get("kv_cache_scheme"), (None, {}))
    _want("quantization_config.sparsity_config", options.get("sparsity_config"), (None, {}))
    _want("quantization_config.transform_config", options.get("transform_config"), (None, {}))


def dtype_of(pipeline_config: PipelineConfig, model: ModelConfig) -> str:
    """The run's dtype: the user's, else the checkpoint's."""
    if pipeline_config.runtime.dtype != "auto":
        return pipeline_config.runtime.dtype
    hf = model.huggingface_config
    for config in (hf, text_config_of(hf)):
        given = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
        if given is not None:
            return str(given).removeprefix("torch.")
    return "float32"


def _want(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ConfigError(
            f"the checkpoint's config has {name} = {value!r}, which is not served; wanted "
            f"{' or '.join('it absent' if v is None else repr(v) for v in allowed)}"
        )
