"""Names of an EAGLE draft's tensors, as rules: EAGLE, SpecForge and speculators spell alike.

Knows: names. Does not know: how tensors are read.
"""

from __future__ import annotations

from pilotfish.speculation.draft_weights import block_rules, draft_rules
from pilotfish.weights import Rule, WeightRules
from pilotfish_eagle.config import EagleConfig

_FIRST = {1: "first", 3: "joining"}


def weight_rules(config: EagleConfig) -> WeightRules:
    """Rules for a draft's file: layer 0 is `layers.0.` or `midlayer.`, with or without `model.`."""
    first = _FIRST[config.version]
    blocks = [first, *(f"layers.{place}" for place in range(config.num_hidden_layers - 1))]
    return draft_rules(
        config,
        Rule("input_norm.weight", "input_norm.weight"),
        Rule("fc_norm.{tap}.weight", "fc_norm.{tap}.weight"),
        Rule(f"{first}.input_norm.weight", "layers.0.input_layernorm.weight"),
        Rule(f"{first}.hidden_norm.weight", "layers.0.hidden_norm.weight"),
        *(
            rule
            for place, ours in enumerate(blocks)
            for rule in block_rules(config, ours, f"layers.{place}")
        ),
        ignore=() if config.norms_head else ("norm.weight",),
        prefixes={"midlayer.": "layers.0.", "model.midlayer.": "layers.0."},
    )
