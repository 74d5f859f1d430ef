"""What DeepSeek-V3's options mean, and which ones are refused.

Knows: names and values in a Hugging Face config. Does not know: our own config's fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pilotfish.config.hf_options import (
    CHECKPOINT,
    option,
    text_config,
    want_options,
    want_value,
    want_values,
    whole_number,
)
from pilotfish.config.rope import RopeParameters
from pilotfish.errors import ConfigError
from pilotfish.models.transformer_config import SIZES
from pilotfish.weights.int4 import GROUP_SIZE

LATENT_SIZES = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
NEEDED = (*SIZES, "max_position_embeddings", *LATENT_SIZES)
"""Whole numbers >= 1."""

NEEDED_BY_EXPERTS = (
    *("moe_intermediate_size", "num_experts_per_tok", "n_shared_experts", "n_group", "topk_group"),
    *("norm_topk_prob", "routed_scaling_factor"),
)

MAX_SCALE = 10_000
"""Of `routed_scaling_factor`; published ones are 1 to 16. A far larger one overflows."""

MAX_MTP_LAYERS = 100
"""Of `num_nextn_predict_layers`, whose tensors are left out name by name; published ones have 1."""

REFUSED: Mapping[str, tuple[object, ...]] = {
    "hidden_act": (None, "silu", "swish"),
    "scoring_func": (None, "sigmoid"),
    "topk_method": (None, "noaux_tc"),
    "partial_rotary_factor": (None, 1.0),
    "sliding_window": (None,),
    "use_qk_norm": (None, False),
    "qk_layernorm": (None, False),
    "expert_bias": (None, False),
    "swiglu_limit": (None,),
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

FLOATS = ("bfloat16", "float16", "float32")

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
    "scale_dtype": (None, *(f"{t}{d}" for t in ("", "torch.") for d in FLOATS)),
}
"""What a group of packed weights must say: four bits, symmetric, a scale for every 32 inputs."""


INT4_OF_NO_MATTER = ("observer", "observer_kwargs")
"""How the weights were packed, once."""


def refuse_unread(text: Any) -> None:
    """Raises ConfigError naming a missing option, or one that changes the maths and is not read."""
    want_options(text, NEEDED)
    want_values(text, REFUSED)
    for name in NEEDED:
        whole_number(name, getattr(text, name))
    heads, turning = text.num_attention_heads, text.qk_rope_head_dim
    if turning % 2:
        raise ConfigError(
            f"{CHECKPOINT} has qk_rope_head_dim = {turning}; wanted an even number: dimensions "
            "turn in pairs"
        )
    want_value("num_key_value_heads", option(text, "num_key_value_heads"), (None, heads))
    want_value("head_dim", option(text, "head_dim"), (None, turning))
    whole = text.qk_nope_head_dim + turning
    want_value("qk_head_dim", option(text, "qk_head_dim"), (None, whole))
    layer_types = option(text, "layer_types")
    if layer_types is not None and not (
        _are_names(layer_types) and set(layer_types) == {"full_attention"}
    ):
        raise ConfigError(
            f"{CHECKPOINT} has layer_types = {layer_types!r:.80}, which is not served; wanted it "
            "absent or 'full_attention' everywhere"
        )


def switch(config: Any, name: str, default: bool) -> bool:
    """An option that is true or false, or the default where it is absent or null."""
    found = option(config, name, default)
    if isinstance(found, bool):
        return found
    raise ConfigError(f"{CHECKPOINT} has {name} = {found!r:.60}; wanted true or false")


def mtp_layers_of(text: Any) -> int:
    """Layers after the last, which predict further tokens."""
    name = "num_nextn_predict_layers"
    found = whole_number(name, option(text, name, 0), least=0)
    if found > MAX_MTP_LAYERS:
        raise ConfigError(f"{CHECKPOINT} has {name} = {found}; wanted at most {MAX_MTP_LAYERS}")
    return found


def rope_of(text: Any) -> RopeParameters:
    """Rotary positions of the part of a head that turns; only plain and YaRN ones are known."""
    rope = RopeParameters.from_hf(text, text.qk_rope_head_dim)
    if rope.rotary_dim != text.qk_rope_head_dim:
        raise ConfigError(
            f"{CHECKPOINT} has a partial_rotary_factor by which {rope.rotary_dim} of "
            f"qk_rope_head_dim = {text.qk_rope_head_dim} dimensions turn, which is not served; "
            "wanted it absent or 1.0"
        )
    if rope.rope_type not in ("default", "yarn"):
        raise ConfigError(
            f"the checkpoint's rope_type is {rope.rope_type!r}; wanted 'default' or 'yarn', as "
            "this architecture is trained with"
        )
    return rope


def is_quantized(huggingface_config: Any) -> bool:
    """Whether the config says how weights are packed."""
    return bool(_quantization(huggingface_config))


def _quantization(huggingface_config: Any) -> Any:
    given = option(huggingface_config, "quantization_config")
    return given or option(text_config(huggingface_config), "quantization_config")


def check_quantization(huggingface_config: Any) -> None:
    """Raises ConfigError for anything but INT4 in groups of 32, and for what goes beyond weights.

    Which tensors are packed is not read here: the file says it for each.
    """
    given = _quantization(huggingface_config)
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
        for kind in (kind for kind in weights if kind not in (*INT4, *INT4_OF_NO_MATTER)):
            want_value(f"{where}.weights.{kind}", weights[kind], (None,))
        _check_targets(f"{where}.targets", group.get("targets"))
    if not groups:
        raise ConfigError(
            "the checkpoint's quantization_config has no config_groups; wanted one that says how "
            "weights are packed"
        )
    ignored = options.get("ignore")
    if ignored is not None and not _are_names(ignored):
        raise ConfigError(
            f"{CHECKPOINT} has quantization_config.ignore = {ignored!r:.60}; wanted a list of names"
        )
    for kind in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        want_value(f"quantization_config.{kind}", options.get(kind), (None, {}))


def _check_targets(where: str, targets: Any) -> None:
    """Raises ConfigError for targets that are no linear layers; None: it is not said."""
    if targets is None:
        return
    if not _are_names(targets) or not targets:
        raise ConfigError(f"{CHECKPOINT} has {where} = {targets!r:.60}; wanted a list of names")
    for target in targets:  # a class of modules, a module's name, or "re:" and a pattern
        if target.isidentifier() and target[0].isupper():
            want_value(where, target, ("Linear",))


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _section(value: Any, name: str) -> Mapping[str, Any]:
    """A part of the config that has options of its own. Raises ConfigError for anything else."""
    if not isinstance(value, Mapping) and hasattr(value, "to_dict"):
        value = value.to_dict()
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"the checkpoint's config has {name} = {value!r:.60}; wanted an object with options"
        )
    return value
