"""The network of the Llama family, put together from shared layers."""

from __future__ import annotations

from pilotfish.layers.attention import Attention
from pilotfish.layers.block import PreNormBlock
from pilotfish.layers.embedding import Embedding
from pilotfish.layers.linear import Linear
from pilotfish.layers.mlp import GatedMLP
from pilotfish.layers.norm import LayerNorm, Norm, RMSNorm
from pilotfish.layers.rope import Rotary
from pilotfish.models.decoder import Decoder
from pilotfish_llama3.config import LAYER_NORM_EPS, Llama3Config


def build_network(config: Llama3Config) -> Decoder:
    """The whole network, without weights."""
    return Decoder(
        embed_tokens=Embedding(
            config.vocab_size, config.hidden_size, multiplier=config.embedding_multiplier
        ),
        layers=[_block(config, layer) for layer in range(config.num_hidden_layers)],
        norm=_norm(config),
        lm_head=Linear(
            config.hidden_size, config.vocab_size, keep_plain=config.tie_word_embeddings
        ),
        rotary=Rotary(config.rope, file_factors=config.rope_factors_in_file),
        residual_multiplier=config.residual_multiplier,
        logits_scaling=config.logits_scaling,
    )


def _block(config: Llama3Config, layer: int) -> PreNormBlock:
    return PreNormBlock(
        attention_norm=_norm(config),
        attention=Attention(
            layer,
            *config.attention_sizes,
            scale=config.attention_multiplier,
            window=config.windows[layer],
            rope=layer not in config.no_rope_layers,
            qkv_bias=config.qkv_bias,
            out_bias=config.out_bias,
            clip=config.clip_qkv,
            head_norm_eps=config.rms_norm_eps if config.head_norm else None,
        ),
        mlp_norm=_norm(config),
        mlp=GatedMLP(config.hidden_size, config.intermediate_size, bias=config.mlp_bias),
        residual_multiplier=config.residual_multiplier,
    )


def _norm(config: Llama3Config) -> Norm:
    """Every family here rounds before it multiplies with the weight."""
    if config.norm_method == "layer_norm":
        return LayerNorm(config.hidden_size, LAYER_NORM_EPS, affine=config.norm_elementwise_affine)
    assert config.rms_norm_eps is not None
    return RMSNorm(config.hidden_size, config.rms_norm_eps, cast="before_weight")
