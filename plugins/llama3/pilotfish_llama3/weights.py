"""Names of the Llama family's tensors in Hugging Face and GGUF files, as rules.

Knows: names, and the row order GGUF gives q and k. Does not know: how tensors are read.
"""

from __future__ import annotations

import attrs

from pilotfish.models.block_rules import BlockNames, block_rules
from pilotfish.weights import Rule, WeightRules, layer_rule, unpermute_rope
from pilotfish_llama3.config import Llama3Config


def weight_rules(config: Llama3Config) -> WeightRules:
    """Rules for the kind of file that `config` was finalized with."""
    rules = _gguf_rules(config) if config.interleaved_rope_weights else _hf_rules(config)
    return WeightRules(
        rules=tuple(rules),
        ignore=("layers.{layer}.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq"),
        ties={"lm_head.weight": "embed_tokens.weight"} if config.tie_word_embeddings else {},
    )


def _hf_rules(config: Llama3Config) -> list[Rule]:
    names = BlockNames()
    if config.stacked_qkv:
        names = attrs.evolve(names, qkv=("self_attn.qkv_proj",))
    if config.stacked_mlp:
        names = attrs.evolve(names, gate_up=("mlp.gate_up_proj",))
    return [
        Rule("embed_tokens.weight", "embed_tokens.weight"),
        Rule("norm.weight", "norm.weight"),
        Rule("lm_head.weight", "lm_head.weight"),
        layer_rule("attention.head_norm.q", "self_attn.q_norm.weight"),
        layer_rule("attention.head_norm.k", "self_attn.k_norm.weight"),
        *block_rules(config, names),
    ]


def _gguf_rules(config: Llama3Config) -> list[Rule]:
    unpermute_k = unpermute_rope(config.num_key_value_heads)
    names = BlockNames(
        attention_norm="attn_norm",
        mlp_norm="ffn_norm",
        qkv=("attn_q", "attn_k", "attn_v"),
        out="attn_output",
        gate_up=("ffn_gate", "ffn_up"),
        down="ffn_down",
        transforms=(unpermute_rope(config.num_attention_heads), unpermute_k, None),
    )
    return [
        Rule("embed_tokens.weight", "token_embd.weight"),
        Rule("norm.weight", "output_norm.weight"),
        Rule("lm_head.weight", "output.weight"),
        Rule("rotary.factors", "rope_freqs.weight", dtype="float32"),
        *block_rules(config, names, theirs="blk.{layer}"),
    ]
