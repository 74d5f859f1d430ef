"""block_rules: the rules of a block's tensors, from what a file calls them.

Knows: which tensors make which parameter of a PreNormBlock. Does not know: any architecture's
names, or how tensors are read.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from pilotfish.models.transformer_config import GroupedQueryConfig
from pilotfish.weights import Piece, Rule, Transform

LAYER = "layers.{layer}"
"""What most files have before the names of a layer's tensors."""


@attrs.frozen(kw_only=True)
class BlockNames:
    """Names of a layer's tensors, without what stands before and the kind after; as most have them.

    qkv, gate_up: three and two, or one each where the file holds them as one tensor.
    transforms: of q, k and v.
    """

    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    qkv: Sequence[str] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    out: str = "self_attn.o_proj"
    gate_up: Sequence[str] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    transforms: Sequence[Transform | None] = (None, None, None)


def block_rules(
    config: GroupedQueryConfig,
    names: BlockNames = BlockNames(),
    *,
    ours: str = LAYER,
    theirs: str = LAYER,
) -> list[Rule]:
    """Attention, feed-forward and both norms of a PreNormBlock, biases where the file has them.

    ours, theirs: what stands before the parameter and before the tensors' names.
    """
    kv_rows = config.num_key_value_heads * config.head_dim
    qkv_rows = (config.num_attention_heads * config.head_dim, kv_rows, kv_rows)
    found = [
        Rule(f"{ours}.attention_norm.weight", f"{theirs}.{names.attention_norm}.weight"),
        Rule(f"{ours}.mlp_norm.weight", f"{theirs}.{names.mlp_norm}.weight"),
    ]
    for kind in ("weight", "bias"):
        for parameter, tensors, rows, transforms in (
            ("attention.qkv", names.qkv, qkv_rows, names.transforms),
            ("mlp.gate_up", names.gate_up, (config.intermediate_size,) * 2, (None, None)),
        ):
            wanted = rows if len(tensors) == len(rows) else (sum(rows),)
            pieces = [
                Piece(f"{theirs}.{tensor}.{kind}", count, transform)
                for tensor, count, transform in zip(tensors, wanted, transforms, strict=False)
            ]
            found.append(Rule(f"{ours}.{parameter}.{kind}", pieces))
        found += [
            Rule(f"{ours}.attention.out.{kind}", f"{theirs}.{names.out}.{kind}"),
            Rule(f"{ours}.mlp.down.{kind}", f"{theirs}.{names.down}.{kind}"),
        ]
    return found
