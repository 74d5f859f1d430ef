"""Kimi K2.5 and DeepSeek-V3 as a Pilotfish plugin: hooks only; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pilotfish.hookspecs import hookimpl
from pilotfish.registry import ArchitectureSpec
from pilotfish_kimi_k25.tokenizer import TIKTOKEN


@hookimpl
def pilotfish_architectures() -> Sequence[ArchitectureSpec]:
    """Kimi K2.5 under its two names, with images, and the network of its text alone."""
    return [
        _spec(
            "KimiK25ForConditionalGeneration",
            "Kimi_K25ForConditionalGeneration",
            modalities=frozenset({"text", "image"}),
            image_processor="pilotfish_kimi_k25.vision.processor:KimiImageProcessor",
        ),
        _spec("DeepseekV3ForCausalLM"),
    ]


def _spec(*names: str, **fields: Any) -> ArchitectureSpec:
    return ArchitectureSpec(
        names=names,
        config="pilotfish_kimi_k25.config:KimiK25Config",
        model="pilotfish_kimi_k25.model:KimiK25Model",
        capabilities=frozenset({"verify", "aux_hidden_states", "embed", "lm_head"}),
        examples="pilotfish_kimi_k25.examples:examples",
        tiktoken=TIKTOKEN,
        verified_against="transformers: logits and greedy tokens",
        **fields,
    )
