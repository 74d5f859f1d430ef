"""Names of a DFlash draft's tensors, as rules: z-lab and speculators spell alike.

Knows: names. Does not know: how tensors are read.
"""

from __future__ import annotations

from pilotfish.speculation.draft_weights import block_rules, draft_rules
from pilotfish.weights import Piece, Rule, WeightRules, layer_rule
from pilotfish_dflash.config import DFlashConfig


def weight_rules(config: DFlashConfig) -> WeightRules:
    """Rules for a draft's file.

    Keys' and values' projections are read twice: into each layer's own, for the block, and into
    one for all layers, for the context. The verifier's norm and head are copies of the target's,
    for training.
    """
    return draft_rules(
        config,
        Rule("hidden_norm.weight", "hidden_norm.weight"),
        *_context_rules(config),
        *block_rules(config),
        *(
            layer_rule(f"attention.head_norm.{part}", f"self_attn.{part}_norm.weight")
            for part in "qk"
        ),
        ignore=("verifier_norm.weight", "verifier_lm_head.weight"),
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
