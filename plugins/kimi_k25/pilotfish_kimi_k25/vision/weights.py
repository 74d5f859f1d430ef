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
_BLOCK, _LAYER = "encoder.blocks.{layer}", "layers.{layer}"
_NAMES = {
    f"{_LAYER}.norm1": (f"{_BLOCK}.norm0", f"{_LAYER}.norm1"),
    f"{_LAYER}.norm2": (f"{_BLOCK}.norm1", f"{_LAYER}.norm2"),
    f"{_LAYER}.out": (f"{_BLOCK}.wo", f"{_LAYER}.attn.proj"),
    f"{_LAYER}.fc1": (f"{_BLOCK}.mlp.fc0", f"{_LAYER}.mlp.fc1"),
    f"{_LAYER}.fc2": (f"{_BLOCK}.mlp.fc1", f"{_LAYER}.mlp.fc2"),
    "norm": ("encoder.final_layernorm", "final_layernorm"),
}
"""Parts of the tower -> as they are published, as transformers has them."""
_PROJECTOR = {"norm": ("pre_norm",), "fc1": ("proj.0", "in_proj"), "fc2": ("proj.2", "out_proj")}
"""The same of the projector."""


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
    qkv = f"{_LAYER}.qkv"
    turned = _half_split(config.num_heads)  # rotary pairs are neighbours in the published tensor
    for kind in ("weight", "bias"):
        fused = Piece(f"{_BLOCK}.wqkv.{kind}", 3 * config.hidden_size, turned)
        split = [Piece(f"{_LAYER}.attn.{name}_proj.{kind}", config.hidden_size) for name in "qkv"]
        rules += [_rule(f"{qkv}.{kind}", fused), _rule(f"{qkv}.{kind}", *split)]
        for part, names in _NAMES.items():
            rules += [_rule(f"{part}.{kind}", f"{name}.{kind}") for name in names]
        for part, layers in _PROJECTOR.items():
            rules += [
                Rule(f"{TOWER}.projector.{part}.{kind}", f"mm_projector.{name}.{kind}")
                for name in layers
            ]
    return tuple(rules)


def _rule(parameter: str, *pieces: str | Piece, dtype: str | None = None) -> Rule:
    named = [Piece(piece) if isinstance(piece, str) else piece for piece in pieces]
    return Rule(
        f"{TOWER}.{parameter}",
        [Piece(f"vision_tower.{piece.name}", piece.rows, piece.transform) for piece in named],
        dtype=dtype,
    )


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
