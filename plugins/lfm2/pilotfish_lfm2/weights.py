"""Names of LFM2's tensors in Hugging Face files, as rules.

Knows: names. Does not know: how tensors are read.
"""

from __future__ import annotations

from pilotfish.models.block_rules import BlockNames, block_rules
from pilotfish.weights import Piece, Rule, WeightRules, drop_axis, layer_rule
from pilotfish_lfm2.config import LFM2Config


def weight_rules(config: LFM2Config) -> WeightRules:
    """Every tensor of a dense checkpoint. `embedding_norm` is the final norm."""
    names = BlockNames(
        attention_norm="operator_norm",
        mlp_norm="ffn_norm",
        out="self_attn.out_proj",
        gate_up=("feed_forward.w1", "feed_forward.w3"),
        down="feed_forward.w2",
    )
    rules = [
        Rule("embed_tokens.weight", "embed_tokens.weight"),
        Rule("norm.weight", "embedding_norm.weight"),
        Rule("lm_head.weight", "lm_head.weight"),
        *block_rules(config, names),
        layer_rule("attention.head_norm.q", "self_attn.q_layernorm.weight"),
        layer_rule("attention.head_norm.k", "self_attn.k_layernorm.weight"),
        Rule(
            "layers.{layer}.attention.weight",
            [Piece("layers.{layer}.conv.conv.weight", transform=drop_axis(1))],
        ),
        layer_rule("attention.bias", "conv.conv.bias"),
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
