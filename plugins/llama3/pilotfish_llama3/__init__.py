"""The Llama family as a Pilotfish plugin: hooks only; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from pilotfish.hookspecs import hookimpl
from pilotfish.registry import ArchitectureSpec
from pilotfish.weights.pretokenizer import PreTokenizer, contraction_split
from pilotfish_llama3.families import FAMILIES

_LLAMA = "LlamaForCausalLM"
_LLAMA3_TEXT = PreTokenizer(contraction_split(r"\p{N}{1,3}"), add_bos=True, ignore_merges=True)
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0")


@hookimpl
def pilotfish_architectures() -> Sequence[ArchitectureSpec]:
    """Eight Hugging Face architectures share a config, a network and a model; a GGUF file of
    architecture "llama" is the first.
    """
    family = ArchitectureSpec(
        names=tuple(name for name in FAMILIES if name != _LLAMA),
        config="pilotfish_llama3.config:Llama3Config",
        model="pilotfish_llama3.model:Llama3Model",
        capabilities=frozenset({"verify", "aux_hidden_states", "embed", "lm_head"}),
        examples="pilotfish_llama3.examples:examples",
        verified_against="transformers: logits, hidden states and greedy tokens",
    )
    llama = attrs.evolve(
        family,
        names=(_LLAMA,),
        gguf_architectures=("llama",),
        gguf_config="pilotfish_llama3.gguf:gguf_config",
        gguf_pretokenizers=dict.fromkeys(_LLAMA3_NAMES, _LLAMA3_TEXT),
    )
    return [llama, family]
