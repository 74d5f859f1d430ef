"""Names of the vision tower's tensors in published and in transformers' files, as rules.

Knows: names and row orders. Does not know: how tensors are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfish.weights import Piece, Rule, Transform, unpermute_rope_rows
from pilotfish_kimi_k25.vision.config import VisionConfig

if TYPE_CHECKING:
    import torch

TOWER = "vision"
"""The attribute of the network that holds the tower."""


def vision_rules(config: VisionConfig) -> tuple[Rule, ...]:
    """A rule for each layout and parameter; names are without a leading "model."."""
    patches = Transform(lambda tensor: tensor.flatten(1), _patch_shape)
    rules = []
    for place in ("patch_embed.proj", "encoder.patch_embed.proj"):  # the second: as saved again
        rules += [
            _rule("patch_embed.weight", Piece(f"{place}.weight", transform=patches)),
            _rule("patch_embed.bias", f"{place}.bias"),
        ]
    rules += [
        _rule("positions.weight", "patch_embed.pos_emb.weight", dtype="float32"),
        _rule("positions.weight", "patch_embed.pos_emb.position_embeddings", dtype="float32"),
    ]
    for kind in ("weight", "bias"):
        rules += _published_rules(config, kind)
        rules += _transformers_rules(config, kind)
    return tuple(rules)


def _published_rules(config: VisionConfig, kind: str) -> list[Rule]:
    """q, k and v in one tensor, whose rotary pairs are neighbours."""
    block = "encoder.blocks.{layer}."
    fused = Piece(f"{block}wqkv.{kind}", 3 * config.hidden_size, _half_split(config.num_heads))
    return [
        _rule(f"layers.{{layer}}.qkv.{kind}", fused),
        _rule(f"layers.{{layer}}.norm1.{kind}", f"{block}norm0.{kind}"),
        _rule(f"layers.{{layer}}.norm2.{kind}", f"{block}norm1.{kind}"),
        _rule(f"layers.{{layer}}.out.{kind}", f"{block}wo.{kind}"),
        _rule(f"layers.{{layer}}.fc1.{kind}", f"{block}mlp.fc0.{kind}"),
        _rule(f"layers.{{layer}}.fc2.{kind}", f"{block}mlp.fc1.{kind}"),
        _rule(f"norm.{kind}", f"encoder.final_layernorm.{kind}"),
        _projector_rule(f"norm.{kind}", f"pre_norm.{kind}"),
        _projector_rule(f"fc1.{kind}", f"proj.0.{kind}"),
        _projector_rule(f"fc2.{kind}", f"proj.2.{kind}"),
    ]


def _transformers_rules(config: VisionConfig, kind: str) -> list[Rule]:
    """q, k and v apart, already half-split."""
    layer = "layers.{layer}."
    split = [Piece(f"{layer}attn.{name}_proj.{kind}", config.hidden_size) for name in "qkv"]
    return [
        _rule(f"{layer}qkv.{kind}", *split),
        _rule(f"{layer}norm1.{kind}", f"{layer}norm1.{kind}"),
        _rule(f"{layer}norm2.{kind}", f"{layer}norm2.{kind}"),
        _rule(f"{layer}out.{kind}", f"{layer}attn.proj.{kind}"),
        _rule(f"{layer}fc1.{kind}", f"{layer}mlp.fc1.{kind}"),
        _rule(f"{layer}fc2.{kind}", f"{layer}mlp.fc2.{kind}"),
        _rule(f"norm.{kind}", f"final_layernorm.{kind}"),
        _projector_rule(f"fc1.{kind}", f"in_proj.{kind}"),
        _projector_rule(f"fc2.{kind}", f"out_proj.{kind}"),
    ]


def _rule(parameter: str, *pieces: str | Piece, dtype: str | None = None) -> Rule:
    named = [Piece(piece) if isinstance(piece, str) else piece for piece in pieces]
    return Rule(
        f"{TOWER}.{parameter}",
        [Piece(f"vision_tower.{piece.name}", piece.rows, piece.transform) for piece in named],
        dtype=dtype,
    )


def _projector_rule(parameter: str, name: str) -> Rule:
    return Rule(f"{TOWER}.projector.{parameter}", f"mm_projector.{name}")


def _patch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != 4:
        raise ValueError("wanted a convolution's [D, 3, side, side]")
    return (shape[0], shape[1] * shape[2] * shape[3])


def _half_split(num_heads: int) -> Transform:
    """Reorders the q and k rows of a fused tensor; v stays."""

    def apply(tensor: torch.Tensor) -> torch.Tensor:
        import torch

        num_qk_rows = 2 * tensor.shape[0] // 3
        return torch.cat(
            (unpermute_rope_rows(tensor[:num_qk_rows], 2 * num_heads), tensor[num_qk_rows:])
        )

    return Transform(apply)
