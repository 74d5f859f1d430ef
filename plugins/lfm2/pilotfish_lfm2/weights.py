"""Names of LFM2's tensors in Hugging Face files, as rules.

Knows: names. Does not know: how tensors are read.
"""

from __future__ import annotations

from pilotfish.weights import Piece, Rule, WeightRules, drop_axis, layer_rule
from pilotfish_lfm2.config import LFM2Config


def weight_rules(config: LFM2Config) -> WeightRules:
    """Every tensor of a dense checkpoint. `embedding_norm` is the final norm."""
    q_rows = config.num_attention_heads * config.head_dim
    kv_rows = config.num_key_value_heads * config.head_dim
    rules = [
        Rule("embed_tokens.weight", "embed_tokens.weight"),
        Rule("norm.weight", "embedding_norm.weight"),
        Rule("lm_head.weight", "lm_head.weight"),
        layer_rule("attention_norm.weight", "operator_norm.weight"),
        layer_rule("mlp_norm.weight", "ffn_norm.weight"),
        layer_rule("attention.head_norm.q", "self_attn.q_layernorm.weight"),
        layer_rule("attention.head_norm.k", "self_attn.k_layernorm.weight"),
        layer_rule(
            "attention.qkv.weight",
            ("self_attn.q_proj.weight", q_rows),
            ("self_attn.k_proj.weight", kv_rows),
            ("self_attn.v_proj.weight", kv_rows),
        ),
        layer_rule("attention.out.weight", "self_attn.out_proj.weight"),
        Rule(
            "layers.{layer}.attention.weight",
            [Piece("layers.{layer}.conv.conv.weight", transform=drop_axis(1))],
        ),
        layer_rule("attention.bias", "conv.conv.bias"),
        layer_rule(
            "mlp.gate_up.weight",
            ("feed_forward.w1.weight", config.intermediate_size),
            ("feed_forward.w3.weight", config.intermediate_size),
        ),
        layer_rule("mlp.down.weight", "feed_forward.w2.weight"),
    ]
    for kind in ("weight", "bias"):
        rules += [
            layer_rule(f"attention.in_proj.{kind}", f"conv.in_proj.{kind}"),
            layer_rule(f"attention.out_proj.{kind}", f"conv.out_proj.{kind}"),
        ]
    return WeightRules(
        rules=tuple(rules),
        ties={"lm_head.weight": "embed_tokens.weight"} if config.tie_word_embeddings else {},
    )
