"""What the method dflash does not read, by name: other methods' drafts, and options of the maths.

Knows: names and the values under which an option changes nothing. Does not know: what is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pilotfish.config.hf_options import (
    TRAINING_ONLY,
    option,
    refuse_all,
    shortened,
    unserved,
)
from pilotfish.config.quantization import refuse_quantized
from pilotfish.errors import ConfigError
from pilotfish_dflash.options import WHOSE, section

_MARKS: Mapping[str, tuple[str, ...]] = {
    "DFlash2": ("selector_rank", "selector_top_k", "conv_kernel_size", "conv_group_size"),
    "DSpark": ("markov_rank", "markov_head_type", "enable_confidence_head"),
}
"""Options that only drafts of another method have."""

_TENSOR_MARKS: Mapping[str, tuple[str, ...]] = {
    "DFlash2": ("attention_conv.", "mlp_conv.", "candidate_selector."),
    "DSpark": ("markov_head.", "markov_", "confidence_head."),
    "Domino": ("prefix_gru.", "embed_proj."),
}

_READ_INSIDE = frozenset(
    {
        *("target_layer_ids", "mask_token_id", "block_size", "sample_from_anchor"),
        *("causal", "use_swa", "swa_window_size"),
        *("input_embedding_scale", "output_multiplier", "final_logit_softcapping"),
    }
)
_INSIDE_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "use_aux_hidden_state": (None, True),
    "projector_type": (None, "dflash"),
}
"""`dflash_config`: what is read of it, and values of other options that change nothing."""

_SPECULATORS_READ = frozenset(
    {
        *("aux_hidden_state_layer_ids", "hidden_state_boundaries", "architectures", "auto_map"),
        *("block_size", "mask_token_id", "sliding_window_non_causal", "sample_from_anchor"),
        *("draft_vocab_size", "target_hidden_size", "transformer_layer_config", "dflash_config"),
        *("input_embedding_scale", "output_multiplier", "final_logit_softcapping", "is_causal"),
        *("speculators_config", "speculators_model_type", "speculators_version"),
        *("model_type", "transformers_version", "dtype", "torch_dtype", "tie_word_embeddings"),
        *TRAINING_ONLY,
    }
)

_REFUSED: Mapping[str, tuple[object, ...]] = {
    "attention_multiplier": (None,),
    "embedding_multiplier": (None, 1.0),
    "residual_multiplier": (None, 1.0),
    "logits_scaling": (None, 1.0),
    "logit_scale": (None, 1.0),
    "attn_logit_softcapping": (None,),
    **dict.fromkeys(("logit_softcap", "logits_soft_cap", "logit_softcapping"), (None, 0)),
    "query_pre_attn_scalar": (None,),
    "clip_qkv": (None,),
    "mlp_bias": (None, False),
    "qkv_bias": (None, False),
    "use_qk_norm": (None, True),
    "qk_norm": (None, True),
    "norm_type": (None, "rms_norm", "rmsnorm", "RMSNorm"),
    "use_final_norm": (None, True),
    "mask_embedding": (None, False),
    "rotary_dim": (None,),
    "rope_interleaved": (None, False),
    "no_rope_layers": (None,),
    "attention_sinks": (None, False),
    "attention_sink_bias": (None, False),
    "use_attention_sink": (None, False),
    "add_swa_attention_sink_bias": (None, False),
    "add_full_attention_sink_bias": (None, False),
    "attention_value_scale": (None, 1.0),
    "hidden_act": (None, "silu", "swish"),
    "norm_before_fc": (None, False),
    "fc_norm": (None, False),
    "projector_type": (None, "dflash"),
    "shift_label": (None, False),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "mrope_section": (None,),
}
"""Options that would change the maths and are not read: values that change nothing."""


def refuse_other_methods(options: Any) -> None:
    """Raises ConfigError naming the method that a draft belongs to, if it is not this one."""
    kind = option(options, "speculators_model_type")
    if kind not in (None, "dflash"):
        raise ConfigError(
            f"the draft's speculators_model_type is {kind!r}; the method dflash reads 'dflash'"
        )
    nested = section(options, "dflash_config")
    for method, names in _MARKS.items():
        found = [name for name in names if name in nested or option(options, name) is not None]
        if found:
            raise _other(method, f"config has {', '.join(found)}")


def refuse_other_tensors(names: Iterable[str]) -> None:
    """The same by the names of its tensors."""
    for name in names:
        for method, marks in _TENSOR_MARKS.items():
            if any(mark in name for mark in marks):
                raise _other(method, f"file has {name}")


def refuse_unread(layer: Any, options: Any, values: Mapping[str, Any] | None) -> None:
    """Raises ConfigError naming all options that change the maths and are not read.

    values: what stands at the top of a file of the speculators format, else None. Its options are
    off by default, so one that is set matters.
    """
    for place in (options, layer):
        refuse_quantized(place, "the draft")
    found = [
        one
        for place in (options, layer)
        for one in unserved({name: option(place, name) for name in _REFUSED}, _REFUSED)
    ]
    nested = {
        name: value
        for name, value in section(options, "dflash_config").items()
        if name not in _READ_INSIDE and name not in TRAINING_ONLY
    }
    allowed = {name: _INSIDE_NEUTRAL.get(name, (None, False)) for name in nested}
    found += [(f"dflash_config.{said}", wanted) for said, wanted in unserved(nested, allowed)]
    found += [
        (f"{name} = {shortened(value)}", "it absent")
        for name, value in sorted((values or {}).items())
        if value and name not in _SPECULATORS_READ and name not in _REFUSED
    ]
    refuse_all(list(dict.fromkeys(found)), WHOSE)


def _other(method: str, why: str) -> ConfigError:
    return ConfigError(
        f"the draft's {why}: it is a {method} draft, another model; the method dflash reads DFlash "
        "drafts only"
    )
