"""The rules of drafts' tensors: what most published ones spell alike.

Knows: names. Does not know: how tensors are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pilotfish.models.block_rules import LAYER
from pilotfish.models.block_rules import block_rules as pre_norm_rules
from pilotfish.speculation.draft_config import DraftConfig
from pilotfish.weights import Rule, WeightRules


def draft_rules(
    config: DraftConfig,
    *rules: Rule,
    ignore: Iterable[str] = (),
    prefixes: Mapping[str, str] | None = None,
) -> WeightRules:
    """Rules for a draft's file, with or without the prefix `model.`.

    `t2d` says the same as `d2t` the other way round; DraftModel compares the two. rules, ignore,
    prefixes: of the method.
    """
    same = ("embed_tokens.weight", "fc.weight", "fc.bias", "norm.weight", "lm_head.weight")
    frequencies = "rotary_emb.inv_freq"
    return WeightRules(
        rules=[*(Rule(name, name) for name in same), Rule("vocabulary.offsets", "d2t"), *rules],
        ignore=["t2d", frequencies, f"{LAYER}.self_attn.{frequencies}", *ignore],
        ties={"lm_head.weight": "embed_tokens.weight"} if config.has_tied_head else {},
        prefixes={"model.": "", **(prefixes or {})},
    )


def block_rules(config: DraftConfig, ours: str = LAYER, theirs: str = LAYER) -> list[Rule]:
    """Attention, feed-forward and both norms of a PreNormBlock, biases where the file has them.

    ours, theirs: what stands before the parameter and before the tensors' names.
    """
    return pre_norm_rules(config, ours=ours, theirs=theirs)
