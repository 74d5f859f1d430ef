"""DeepSeek-V3's network, put together from shared layers and latent attention."""

from __future__ import annotations

import torch

from pilotfish.layers.block import PreNormBlock, Sublayer
from pilotfish.layers.embedding import Embedding
from pilotfish.layers.experts import ExpertFormat
from pilotfish.layers.linear import Linear
from pilotfish.layers.mlp import GatedMLP
from pilotfish.layers.moe import MixtureOfExperts
from pilotfish.layers.norm import RMSNorm
from pilotfish.layers.rope import Rotary, yarn_scale
from pilotfish.layers.router import Routing
from pilotfish.models.decoder import Decoder
from pilotfish.weights.int4 import GROUP_SIZE
from pilotfish_kimi_k25.config import KimiK25Config
from pilotfish_kimi_k25.mla import LatentAttention
from pilotfish_kimi_k25.vision.network import VisionTower


class KimiK25Network(Decoder):
    """A decoder, and the vision tower beside it; None for a network of text only.

    Parameters: as Decoder's, and vision...
    """

    vision: VisionTower | None = None


def build_network(config: KimiK25Config) -> KimiK25Network:
    """The whole network, without weights."""
    network = KimiK25Network(
        embed_tokens=Embedding(config.vocab_size, config.hidden_size),
        layers=[_block(config, layer) for layer in range(config.num_hidden_layers)],
        norm=_norm(config),
        lm_head=Linear(
            config.hidden_size, config.vocab_size, keep_plain=config.tie_word_embeddings
        ),
        rotary=Rotary(config.rope, interleaved=config.rope_interleave),
    )
    if config.vision is not None:
        network.vision = VisionTower(config.vision)
    return network


def softmax_scale(config: KimiK25Config) -> float:
    """What the scores are multiplied with: a head's width to the -1/2, and YaRN's scale squared.

    YaRN's is there only where `mscale_all_dim` is given; `mscale` has its place in the angles.
    """
    rope = config.rope
    scale = float(config.qk_head_dim**-0.5)
    if rope.rope_type != "yarn" or not rope.mscale_all_dim:
        return scale
    factor = rope.factor or rope.max_positions / rope.original_max_positions
    return scale * yarn_scale(factor, rope.mscale_all_dim) ** 2


def _block(config: KimiK25Config, layer: int) -> PreNormBlock:
    return PreNormBlock(
        attention_norm=_norm(config),
        attention=LatentAttention(layer, config, softmax_scale(config)),
        mlp_norm=_norm(config),
        mlp=_feed_forward(config, layer),
    )


def _feed_forward(config: KimiK25Config, layer: int) -> Sublayer:
    if layer in config.dense_layers:
        return GatedMLP(config.hidden_size, config.intermediate_size)
    experts = config.experts
    assert experts is not None
    return MixtureOfExperts(
        config.hidden_size,
        experts.intermediate_size,
        Routing(
            num_experts=experts.num_experts,
            num_chosen=experts.top_k,
            num_groups=experts.num_groups,
            num_kept_groups=experts.top_groups,
            normalize=experts.normalize,
            scale=experts.scale,
        ),
        dtype=getattr(torch, config.dtype),
        shared_width=experts.num_shared * experts.intermediate_size,
        format=ExpertFormat(
            gate_up=GROUP_SIZE if layer in config.packed_gate_up else None,
            down=GROUP_SIZE if layer in config.packed_down else None,
        ),
    )


def _norm(config: KimiK25Config) -> RMSNorm:
    return RMSNorm(config.hidden_size, config.norm_eps, cast="before_weight")
