"""Names of a DFlash draft's tensors, as rules: z-lab and speculators spell alike.

Knows: names. Does not know: how tensors are read.
"""

from __future__ import annotations

from pilotfish.weights import Piece, Rule, WeightRules
from pilotfish_dflash.config import DFlashConfig

_LAYER = "layers.{layer}"
_ATTENTION = f"{_LAYER}.self_attn"


def weight_rules(config: DFlashConfig) -> WeightRules:
    """Rules for a draft's file, with or without the prefix `model.`.

    Keys' and values' projections are read twice: into each layer's own, for the block, and into
    one for all layers, for the context. `t2d` says the same as `d2t` the other way round; the
    two are compared. The verifier's norm and head are copies of the target's, for training.
    """
    return WeightRules(
        rules=(
            *(
                Rule(name, name)
                for name in (
                    *("embed_tokens.weight", "fc.weight", "hidden_norm.weight", "norm.weight"),
                    "lm_head.weight",
                )
            ),
            Rule("vocabulary.offsets", "d2t"),
            *_context_rules(config),
            *_layer_rules(config),
        ),
        ignore=(
            *("t2d", "verifier_norm.weight", "verifier_lm_head.weight"),
            *("rotary_emb.inv_freq", f"{_ATTENTION}.rotary_emb.inv_freq"),
        ),
        prefixes={"model.": ""},
    )


def _context_rules(config: DFlashConfig) -> list[Rule]:
    layers = range(config.num_hidden_layers)
    kv_rows = config.num_key_value_heads * config.head_dim
    stacked = [
        Rule(
            f"context.kv.{kind}",
            [
                Piece(f"layers.{layer}.self_attn.{name}_proj.{kind}", kv_rows)
                for layer in layers
                for name in ("k", "v")
            ],
        )
        for kind in ("weight", "bias")
    ]
    norms = [f"layers.{layer}.self_attn.k_norm.weight" for layer in layers]
    return [*stacked, Rule("context.k_norm", norms, combine="stack")]


def _layer_rules(config: DFlashConfig) -> list[Rule]:
    q_rows = config.num_attention_heads * config.head_dim
    kv_rows = config.num_key_value_heads * config.head_dim
    rules = [
        Rule(f"{_LAYER}.attention_norm.weight", f"{_LAYER}.input_layernorm.weight"),
        Rule(f"{_LAYER}.mlp_norm.weight", f"{_LAYER}.post_attention_layernorm.weight"),
        Rule(f"{_LAYER}.attention.head_norm.q", f"{_ATTENTION}.q_norm.weight"),
        Rule(f"{_LAYER}.attention.head_norm.k", f"{_ATTENTION}.k_norm.weight"),
        Rule(
            f"{_LAYER}.mlp.gate_up.weight",
            [
                Piece(f"{_LAYER}.mlp.{name}_proj.weight", config.intermediate_size)
                for name in ("gate", "up")
            ],
        ),
        Rule(f"{_LAYER}.mlp.down.weight", f"{_LAYER}.mlp.down_proj.weight"),
    ]
    for kind in ("weight", "bias"):
        qkv = [
            Piece(f"{_ATTENTION}.{name}_proj.{kind}", rows)
            for name, rows in (("q", q_rows), ("k", kv_rows), ("v", kv_rows))
        ]
        rules += [
            Rule(f"{_LAYER}.attention.qkv.{kind}", qkv),
            Rule(f"{_LAYER}.attention.out.{kind}", f"{_ATTENTION}.o_proj.{kind}"),
        ]
    return rules
