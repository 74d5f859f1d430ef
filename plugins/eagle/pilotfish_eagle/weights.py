"""Names of an EAGLE draft's tensors, as rules: EAGLE, SpecForge and speculators spell alike.

Knows: names. Does not know: how tensors are read.
"""

from __future__ import annotations

from pilotfish.weights import Piece, Rule, WeightRules
from pilotfish_eagle.config import EagleConfig

_FIRST = {1: "first", 3: "joining"}


def weight_rules(config: EagleConfig) -> WeightRules:
    """Rules for a draft's file: layer 0 is `layers.0.` or `midlayer.`, with or without `model.`.

    `t2d` says the same as `d2t` the other way round; EagleModel compares the two.
    """
    first = _FIRST[config.version]
    unused = () if config.norms_head else ("norm.weight",)
    rules = [
        Rule("embed_tokens.weight", "embed_tokens.weight"),
        Rule("input_norm.weight", "input_norm.weight"),
        Rule("fc_norm.{tap}.weight", "fc_norm.{tap}.weight"),
        Rule("fc.weight", "fc.weight"),
        Rule("fc.bias", "fc.bias"),
        Rule("norm.weight", "norm.weight"),
        Rule("lm_head.weight", "lm_head.weight"),
        Rule("vocabulary.offsets", "d2t"),
        Rule(f"{first}.input_norm.weight", "layers.0.input_layernorm.weight"),
        Rule(f"{first}.hidden_norm.weight", "layers.0.hidden_norm.weight"),
        *_block_rules(config, first, "layers.0"),
    ]
    for place in range(config.num_hidden_layers - 1):
        ours, theirs = f"layers.{place}", f"layers.{place + 1}"
        rules.append(Rule(f"{ours}.attention_norm.weight", f"{theirs}.input_layernorm.weight"))
        rules += _block_rules(config, ours, theirs)
    return WeightRules(
        rules=tuple(rules),
        ignore=(
            *("t2d", *unused, "rotary_emb.inv_freq"),
            "layers.{layer}.self_attn.rotary_emb.inv_freq",
        ),
        ties={"lm_head.weight": "embed_tokens.weight"} if config.has_tied_head else {},
        prefixes={
            "model.": "",
            "midlayer.": "layers.0.",
            "model.midlayer.": "layers.0.",
        },
    )


def _block_rules(config: EagleConfig, ours: str, theirs: str) -> list[Rule]:
    q_rows = config.num_attention_heads * config.head_dim
    kv_rows = config.num_key_value_heads * config.head_dim
    rules = [Rule(f"{ours}.mlp_norm.weight", f"{theirs}.post_attention_layernorm.weight")]
    for kind in ("weight", "bias"):
        qkv = [
            Piece(f"{theirs}.self_attn.{name}_proj.{kind}", rows)
            for name, rows in (("q", q_rows), ("k", kv_rows), ("v", kv_rows))
        ]
        halves = [
            Piece(f"{theirs}.mlp.{name}_proj.{kind}", config.intermediate_size)
            for name in ("gate", "up")
        ]
        rules += [
            Rule(f"{ours}.attention.qkv.{kind}", qkv),
            Rule(f"{ours}.attention.out.{kind}", f"{theirs}.self_attn.o_proj.{kind}"),
            Rule(f"{ours}.mlp.gate_up.{kind}", halves),
            Rule(f"{ours}.mlp.down.{kind}", f"{theirs}.mlp.down_proj.{kind}"),
        ]
    return rules
