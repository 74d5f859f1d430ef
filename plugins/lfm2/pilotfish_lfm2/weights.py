"""Names of LFM2's tensors in Hugging Face files, as rules.

Knows: names. Does not know: how tensors are read.
"""

from __future__ import annotations

from pilotfish.weights import Piece, Rule, WeightRules, drop_axis
from pilotfish_lfm2.config import LFM2Config


def weight_rules(config: LFM2Config) -> WeightRules:
    """Every tensor of a dense checkpoint. `embedding_norm` is the final norm."""
    q_rows = config.num_attention_heads * config.head_dim
    kv_rows = config.num_key_value_heads * config.head_dim
    rules = [
        Rule("embed_tokens.weight", "embed_tokens.weight"),
        Rule("norm.weight", "embedding_norm.weight"),
        Rule("lm_head.weight", "lm_head.weight"),
        _layer("attention_norm.weight", "operator_norm.weight"),
        _layer("mlp_norm.weight", "ffn_norm.weight"),
        _layer("attention.head_norm.q", "self_attn.q_layernorm.weight"),
        _layer("attention.head_norm.k", "self_attn.k_layernorm.weight"),
        _layer(
            "attention.qkv.weight",
            ("self_attn.q_proj.weight", q_rows),
            ("self_attn.k_proj.weight", kv_rows),
            ("self_attn.v_proj.weight", kv_rows),
        ),
        _layer("attention.out.weight", "self_attn.out_proj.weight"),
        Rule(
            "layers.{layer}.attention.weight",
            [Piece("layers.{layer}.conv.conv.weight", transform=drop_axis(1))],
        ),
        _layer("attention.bias", "conv.conv.bias"),
        _layer(
            "mlp.gate_up.weight",
            ("feed_forward.w1.weight", config.intermediate_size),
            ("feed_forward.w3.weight", config.intermediate_size),
        ),
        _layer("mlp.down.weight", "feed_forward.w2.weight"),
    ]
    for kind in ("weight", "bias"):
        rules += [
            _layer(f"attention.in_proj.{kind}", f"conv.in_proj.{kind}"),
            _layer(f"attention.out_proj.{kind}", f"conv.out_proj.{kind}"),
        ]
    return WeightRules(
        rules=tuple(rules),
        ties={"lm_head.weight": "embed_tokens.weight"} if config.tie_word_embeddings else {},
    )


def _layer(parameter: str, *pieces: str | tuple[str, int]) -> Rule:
    """A rule of one layer; a piece may come with the rows it must have."""
    named = [(piece, None) if isinstance(piece, str) else piece for piece in pieces]
    return Rule(
        f"layers.{{layer}}.{parameter}",
        [Piece(f"layers.{{layer}}.{name}", rows) for name, rows in named],
    )
