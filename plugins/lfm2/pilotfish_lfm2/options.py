"""What LFM2's options mean, and which ones are refused.

Knows: names and values in a Hugging Face config. Does not know: our own config's fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pilotfish.config.hf_options import count, option, real_number, want_counts, want_values
from pilotfish.config.quantization import refuse_quantized
from pilotfish.errors import ConfigError

READ_AS_IT_IS = ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
NEEDED = (*READ_AS_IT_IS, "max_position_embeddings")

REFUSED: Mapping[str, tuple[object, ...]] = {
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "sliding_window": (None,),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "num_experts_per_tok": (None, 0),
    "num_dense_layers": (None,),
    "block_use_swiglu": (None, True),
    "use_pos_enc": (None, True),
    "hidden_act": (None, "silu", "swish"),
    "final_logit_softcapping": (None,),
    "attn_logit_softcapping": (None,),
    "embedding_multiplier": (None, 1.0),
    "logits_scaling": (None, 1.0),
    "add_cross_attention": (None, False),
    "is_encoder_decoder": (None, False),
}
"""Options that would change the maths and are not read: values that change nothing."""

SAME_AS_HIDDEN_SIZE = ("block_dim", "conv_dim", "conv_dim_out")
"""Widths that a file may spell out; all of them are the model's one width."""


def refuse_unread(huggingface_config: Any) -> None:
    """Raises ConfigError naming a missing option, or one that changes the maths and is not read."""
    hf = huggingface_config
    refuse_quantized(hf)
    want_counts(hf, NEEDED)
    want_values(hf, REFUSED)
    for name in SAME_AS_HIDDEN_SIZE:
        value = getattr(hf, name, None)
        if value not in (None, hf.hidden_size):
            raise ConfigError(
                f"the checkpoint's config has {name} = {value!r} and hidden_size = "
                f"{hf.hidden_size}; wanted both equal"
            )


def layer_types_of(huggingface_config: Any) -> tuple[str, ...]:
    """Each layer's kind: `layer_types`, else from `full_attn_idxs`; with neither all attention."""
    hf = huggingface_config
    given = getattr(hf, "layer_types", None)
    if given is not None:
        return tuple(given)
    layers = range(count(hf, "num_hidden_layers"))
    attention = getattr(hf, "full_attn_idxs", None)
    if attention is None:
        return ("full_attention",) * len(layers)
    outside = sorted(set(attention) - set(layers))
    if outside:
        raise ConfigError(
            f"full_attn_idxs is {list(attention)}; wanted layers from 0 to {len(layers) - 1}"
        )
    return tuple("full_attention" if layer in attention else "conv" for layer in layers)


def intermediate_size_of(huggingface_config: Any) -> int:
    """The width that the feed-forward is built with.

    `block_ff_dim` (or `intermediate_size`); where `block_auto_adjust_ff_dim` says so, two thirds of
    it, times `block_ffn_dim_multiplier`, rounded up to `block_multiple_of`.
    """
    hf = huggingface_config
    names = [n for n in ("block_ff_dim", "intermediate_size") if option(hf, n) is not None]
    if not names:
        raise ConfigError(
            "the checkpoint's config has neither block_ff_dim nor intermediate_size; the config is "
            "incomplete"
        )
    width = count(hf, names[0])
    if not getattr(hf, "block_auto_adjust_ff_dim", True):
        return width
    width = int(2 * width / 3)
    multiplier = getattr(hf, "block_ffn_dim_multiplier", 1.0)
    if multiplier is None:
        return width
    width = int(real_number("block_ffn_dim_multiplier", multiplier) * width)
    multiple = count(hf, "block_multiple_of", 256)
    return multiple * -(-width // multiple)
