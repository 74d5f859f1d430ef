"""What differs between the checkpoints this plugin reads, as data.

Knows: which options a family reads, and what it has that no option says. Does not know: tensors.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from pilotfish.config.hf_options import want_values
from pilotfish.config.quantization import refuse_quantized
from pilotfish.errors import ConfigError


@attrs.frozen(kw_only=True)
class Family:
    """One Hugging Face architecture.

    qkv_bias: q, k and v always have a bias; else `attention_bias` says whether all four have.
    reads: which of the options below it reads; the others must be neutral.
    windows: "none"; "all" layers share `sliding_window`; "upper" layers from `max_window_layers`
        on, if `use_sliding_window`; "nope" layers without rope, if `use_sliding_window`.
    head_norm: q and k heads are normed. layer_norm: norms are LayerNorms without parameters.
    recomputes: the reference drops its cache where longrope changes its factors.
    """

    qkv_bias: bool = False
    reads: frozenset[str] = frozenset()
    windows: str = "none"
    head_norm: bool = False
    layer_norm: bool = False
    recomputes: bool = False
    default_theta: float = 10000.0
    rope_aliases: Mapping[str, str] = attrs.field(factory=dict)


_BIASES = frozenset({"attention_bias", "mlp_bias"})
_MULTIPLIERS = frozenset(
    {
        "attention_multiplier",
        "embedding_multiplier",
        "residual_multiplier",
        "logits_scaling",
    }
)
_UPPER = frozenset({"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"})

FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(reads=_BIASES),
    "MistralForCausalLM": Family(reads=frozenset({"sliding_window"}), windows="all"),
    "GraniteForCausalLM": Family(reads=_BIASES | _MULTIPLIERS),
    "OlmoForCausalLM": Family(reads=frozenset({"attention_bias", "clip_qkv"}), layer_norm=True),
    "Phi3ForCausalLM": Family(
        reads=frozenset({"sliding_window", "partial_rotary_factor"}),
        windows="all",
        recomputes=True,
        rope_aliases={"yarn": "longrope"},
    ),
    "Qwen2ForCausalLM": Family(reads=_UPPER, windows="upper", qkv_bias=True),
    "Qwen3ForCausalLM": Family(reads=_UPPER | {"attention_bias"}, windows="upper", head_norm=True),
    "SmolLM3ForCausalLM": Family(
        reads=_BIASES | _UPPER | {"no_rope_layers", "no_rope_layer_interval"},
        windows="nope",
        default_theta=2000000.0,
    ),
}

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "attention_multiplier": (None,),
    "embedding_multiplier": (None, 1.0),
    "residual_multiplier": (None, 1.0),
    "logits_scaling": (None, 1.0),
    "clip_qkv": (None,),
    "mlp_bias": (None, False),
    "sliding_window": (None,),
    "partial_rotary_factor": (None, 1.0),
    "no_rope_layers": (None,),
}
"""Options that one family reads: option -> values that change nothing in another."""

REFUSED: Mapping[str, tuple[object, ...]] = {
    "hidden_act": (None, "silu", "swish"),
    "final_logit_softcapping": (None,),
    "attn_logit_softcapping": (None,),
    "query_pre_attn_scalar": (None,),
    "logit_scale": (None, 1.0),
    "use_qk_norm": (None, False),
    "qk_layernorm": (None, False),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "n_routed_experts": (None, 0),
    "use_parallel_residual": (None, False),
    "parallel_attn": (None, False),
    "alibi": (None, False),
    "attention_chunk_size": (None,),
    "attn_temperature_tuning": (None, False),
    "add_cross_attention": (None, False),
    "is_encoder_decoder": (None, False),
    "mrope_section": (None,),
    "rope_interleaved": (None, False),
}
"""Options that no family here reads, though they change the maths: values that change nothing."""


def family_of(architecture: str) -> Family:
    """The family of a Hugging Face architecture name. Raises ConfigError naming it."""
    if architecture not in FAMILIES:
        raise ConfigError(
            f"the architecture is {architecture!r}; wanted one of {', '.join(FAMILIES)}"
        )
    return FAMILIES[architecture]


def refuse_unread(huggingface_config: object, architecture: str) -> None:
    """Raises ConfigError naming an option that would change the maths and is not read."""
    refuse_quantized(huggingface_config)
    reads = family_of(architecture).reads
    wanted = {**REFUSED, **{name: ok for name, ok in NEUTRAL.items() if name not in reads}}
    want_values(huggingface_config, wanted)
