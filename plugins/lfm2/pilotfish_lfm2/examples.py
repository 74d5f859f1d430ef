"""Tiny models for the conformance kit: convolutions of two widths around attention.

Knows: Hugging Face options as data. Does not know: how they are tested.
"""

from __future__ import annotations

from pilotfish.testing import Examples


def examples(architecture: str) -> Examples:
    """The tiny models; the plugin has one architecture."""
    del architecture
    return Examples(
        configs={
            "attention between": {
                "num_hidden_layers": 3,
                "layer_types": ["conv", "full_attention", "conv"],
            },
            "wide, biased, attention first": {
                "num_hidden_layers": 3,
                "layer_types": ["full_attention", "conv", "conv"],
                "conv_L_cache": 4,
                "conv_bias": True,
            },
        }
    )
