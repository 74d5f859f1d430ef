"""LFM2 as a Pilotfish plugin: hooks only; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence

from pilotfish.hookspecs import hookimpl
from pilotfish.registry import ArchitectureSpec


@hookimpl
def pilotfish_architectures() -> Sequence[ArchitectureSpec]:
    """One spec: LFM2 and LFM2.5, dense."""
    return [
        ArchitectureSpec(
            names=("Lfm2ForCausalLM",),
            config="pilotfish_lfm2.config:LFM2Config",
            model="pilotfish_lfm2.model:LFM2Model",
            capabilities=frozenset({"verify", "aux_hidden_states", "embed", "lm_head"}),
            examples="pilotfish_lfm2.examples:examples",
            verified_against="transformers: logits and greedy tokens",
        )
    ]
