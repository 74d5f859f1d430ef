"""Names of the Llama family's tensors in Hugging Face and GGUF files, as rules.

Knows: names, and the row order GGUF gives q and k. Does not know: how tensors are read.
"""

from __future__ import annotations

from pilotfish.weights import Piece, Rule, WeightRules, layer_rule, unpermute_rope
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
    q_rows = config.num_attention_heads * config.head_dim
    kv_rows = config.num_key_value_heads * config.head_dim
    rules = [
        Rule("embed_tokens.weight", "embed_tokens.weight"),
        Rule("norm.weight", "norm.weight"),
        Rule("lm_head.weight", "lm_head.weight"),
        layer_rule("attention_norm.weight", "input_layernorm.weight"),
        layer_rule("mlp_norm.weight", "post_attention_layernorm.weight"),
        layer_rule("attention.head_norm.q", "self_attn.q_norm.weight"),
        layer_rule("attention.head_norm.k", "self_attn.k_norm.weight"),
    ]
    for kind in ("weight", "bias"):
        split = [
            (f"self_attn.q_proj.{kind}", q_rows),
            (f"self_attn.k_proj.{kind}", kv_rows),
            (f"self_attn.v_proj.{kind}", kv_rows),
        ]
        halves = [(f"mlp.{name}_proj.{kind}", config.intermediate_size) for name in ("gate", "up")]
        if config.stacked_qkv:
            split = [(f"self_attn.qkv_proj.{kind}", q_rows + 2 * kv_rows)]
        if config.stacked_mlp:
            halves = [(f"mlp.gate_up_proj.{kind}", 2 * config.intermediate_size)]
        rules += [
            layer_rule(f"attention.qkv.{kind}", *split),
            layer_rule(f"attention.out.{kind}", f"self_attn.o_proj.{kind}"),
            layer_rule(f"mlp.gate_up.{kind}", *halves),
            layer_rule(f"mlp.down.{kind}", f"mlp.down_proj.{kind}"),
        ]
    return rules


def _gguf_rules(config: Llama3Config) -> list[Rule]:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    rules = [
        Rule("embed_tokens.weight", "token_embd.weight"),
        Rule("norm.weight", "output_norm.weight"),
        Rule("lm_head.weight", "output.weight"),
        Rule("rotary.factors", "rope_freqs.weight", dtype="float32"),
        Rule("layers.{layer}.attention_norm.weight", "blk.{layer}.attn_norm.weight"),
        Rule("layers.{layer}.mlp_norm.weight", "blk.{layer}.ffn_norm.weight"),
    ]
    for kind in ("weight", "bias"):
        q = Piece(f"blk.{{layer}}.attn_q.{kind}", heads * config.head_dim, unpermute_rope(heads))
        k = Piece(
            f"blk.{{layer}}.attn_k.{kind}", kv_heads * config.head_dim, unpermute_rope(kv_heads)
        )
        v = Piece(f"blk.{{layer}}.attn_v.{kind}", kv_heads * config.head_dim)
        halves = [
            Piece(f"blk.{{layer}}.ffn_{name}.{kind}", config.intermediate_size)
            for name in ("gate", "up")
        ]
        rules += [
            Rule(f"layers.{{layer}}.attention.qkv.{kind}", (q, k, v)),
            Rule(f"layers.{{layer}}.attention.out.{kind}", f"blk.{{layer}}.attn_output.{kind}"),
            Rule(f"layers.{{layer}}.mlp.gate_up.{kind}", halves),
            Rule(f"layers.{{layer}}.mlp.down.{kind}", f"blk.{{layer}}.ffn_down.{kind}"),
        ]
    return rules
