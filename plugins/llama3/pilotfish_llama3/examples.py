"""Tiny models of every family, for the conformance kit: the options that change what is computed.

Knows: Hugging Face options as data. Does not know: how they are tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pilotfish.testing import Examples


def _rope(rope_type: str, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 500.0, **options}}


_LLAMA3 = _rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=16)
_LONGROPE = _rope(
    "longrope",
    original_max_position_embeddings=16,
    short_factor=[1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    long_factor=[1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
)
_MULTIPLIERS = {
    "attention_multiplier": 0.4,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.6,
    "logits_scaling": 1.7,
}

_CONFIGS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "LlamaForCausalLM": {
        "plain": {},
        "biased, tied, llama3 rope": {
            **_LLAMA3,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
        "rope that depends on the prompt": {
            **_rope("dynamic", factor=4.0),
            "max_position_embeddings": 16,
        },
    },
    "MistralForCausalLM": {
        "window": {"sliding_window": 5},
        "odd heads": {"hidden_size": 48, "head_dim": 20},
    },
    "GraniteForCausalLM": {"multipliers": _MULTIPLIERS},
    "OlmoForCausalLM": {"clipped": {"clip_qkv": 0.8}, "tied": {"tie_word_embeddings": True}},
    "Phi3ForCausalLM": {
        "window": {"sliding_window": 6, "original_max_position_embeddings": 128},
        "longrope": {
            **_LONGROPE,
            "hidden_size": 64,  # a factor for each of the 8 pairs of a head
            "original_max_position_embeddings": 16,
        },
    },
    "Qwen2ForCausalLM": {
        "tied": {"tie_word_embeddings": True},
        "window above": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    },
    "Qwen3ForCausalLM": {"yarn": {"head_dim": 16, "attention_bias": True, **_YARN}},
    "SmolLM3ForCausalLM": {
        "layers without rope": {"num_hidden_layers": 4, "no_rope_layer_interval": 2}
    },
}


def examples(architecture: str) -> Examples:
    """The tiny models of one Hugging Face architecture."""
    return Examples(configs=_CONFIGS[architecture])
