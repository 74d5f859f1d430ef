"""What DeepSeek-V3's options mean, and which ones are refused.

Knows: names and values in a Hugging Face config. Does not know: our own config's fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pilotfish.config.hf_options import (
    option,
    text_config,
    want_options,
    want_value,
    want_values,
)
from pilotfish.errors import ConfigError
from pilotfish.layers.rope import RopeParameters
from pilotfish.weights.int4 import GROUP_SIZE

NEEDED = (
    *("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"),
    *("intermediate_size", "max_position_embeddings"),
    *("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
)

NEEDED_BY_EXPERTS = (
    *("moe_intermediate_size", "num_experts_per_tok", "n_shared_experts", "n_group", "topk_group"),
    *("norm_topk_prob", "routed_scaling_factor"),
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

INT4: Mapping[str, tuple[object, ...]] = {
    "num_bits": (4,),
    "type": ("int",),
    "symmetric": (None, True),
    "strategy": (None, "group"),
    "group_size": (GROUP_SIZE,),
    "dynamic": (None, False),
    "actorder": (None, False),
    "block_structure": (None,),
    "zp_dtype": (None,),
}
"""What a group of packed weights must say: four bits, symmetric, a scale for every 32 inputs."""


def refuse_unread(text: Any) -> None:
    """Raises ConfigError naming a missing option, or one that changes the maths and is not read."""
    want_options(text, NEEDED)
    want_values(text, REFUSED)
    heads = text.num_attention_heads
    want_value("num_key_value_heads", option(text, "num_key_value_heads"), (None, heads))
    want_value("head_dim", option(text, "head_dim"), (None, text.qk_rope_head_dim))


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
    text = text_config(huggingface_config)
    given = option(huggingface_config, "quantization_config")
    given = given or option(text, "quantization_config")
    if not given:
        return
    options = _section(given, "quantization_config")
    method = options.get("quant_method")
    if method != "compressed-tensors":
        raise ConfigError(
            f"the checkpoint's quantization_config has quant_method = {method!r}"
            f"{' (8-bit floats in blocks)' if method == 'fp8' else ''}, which is not served; "
            "wanted 'compressed-tensors' with packed 4-bit integers, or weights of 16 or 32 bits"
        )
    groups = _section(options.get("config_groups") or {}, "quantization_config.config_groups")
    for name, given_group in groups.items():
        where = f"quantization_config.config_groups.{name}"
        group = _section(given_group, where)
        layout = group.get("format") or options.get("format")
        want_value(f"{where}.format", layout, ("pack-quantized",))
        for kind in ("input_activations", "output_activations"):
            want_value(f"{where}.{kind}", group.get(kind), (None,))
        weights = _section(group.get("weights") or {}, f"{where}.weights")
        for kind, allowed in INT4.items():
            want_value(f"{where}.weights.{kind}", weights.get(kind), allowed)
    if not groups:
        raise ConfigError(
            "the checkpoint's quantization_config has no config_groups; wanted one that says how "
            "weights are packed"
        )
    want_value("quantization_config.kv_cache_scheme", options.get("kv_cache_scheme"), (None, {}))
    want_value("quantization_config.sparsity_config", options.get("sparsity_config"), (None, {}))
    want_value("quantization_config.transform_config", options.get("transform_config"), (None, {}))


def _section(value: Any, name: str) -> Mapping[str, Any]:
    """A part of the config that has options of its own. Raises ConfigError for anything else."""
    if not isinstance(value, Mapping) and hasattr(value, "to_dict"):
        value = value.to_dict()
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"the checkpoint's config has {name} = {value!r:.60}; wanted an object with options"
        )
    return value
