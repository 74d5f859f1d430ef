"""LFM2's network: shared layers, and the short convolution that most of its blocks have.

Axis letters: T packed tokens, D model width.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.native.buffers import Buffer
from pilotfish.kernels.short_conv import ConvColumns, short_conv
from pilotfish.kernels.short_conv.native import pass_address, plan_short_conv
from pilotfish.layers.attention import Attention
from pilotfish.layers.block import PreNormBlock, Sublayer
from pilotfish.layers.embedding import Embedding
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.layer import KeepsBits, Layer
from pilotfish.layers.linear import Linear
from pilotfish.layers.mlp import GatedMLP
from pilotfish.layers.norm import RMSNorm
from pilotfish.layers.pass_plan import PassPlan
from pilotfish.layers.rope import Rotary
from pilotfish.layers.row_parallel import RowParallelLinear
from pilotfish.layers.splitting import may_split
from pilotfish.models.decoder import Decoder
from pilotfish.parallel.group import Groups
from pilotfish.parallel.shard import Shard
from pilotfish_lfm2.config import LFM2Config


def build_network(config: LFM2Config) -> Decoder:
    """The whole network, without weights."""
    return Decoder(
        embed_tokens=Embedding(config.vocab_size, config.hidden_size),
        layers=[_block(config, layer) for layer in range(config.num_hidden_layers)],
        norm=_norm(config),
        lm_head=Linear(
            config.hidden_size, config.vocab_size, keep_plain=config.tie_word_embeddings
        ),
        rotary=Rotary(config.rope),
    )


class ShortConv(Layer):
    """`out_proj(c * conv(b * x))` with `b, c, x = in_proj(n)`: no activation.

    layer: index of this layer among the convolutions. width: columns in a sum.
    Parameters: in_proj.weight [3D, D], weight [D, width], out_proj.weight [D, D], and with `bias`
    one of each.
    """

    keeps_bits: ClassVar[KeepsBits] = "portable"

    def __init__(self, layer: int, size: int, width: int, *, bias: bool) -> None:
        self.layer = layer
        self.in_proj = Linear(size, 3 * size, bias=bias)
        self.out_proj: Linear | RowParallelLinear = Linear(size, size, bias=bias)
        self.columns_weight: torch.Tensor
        self.columns_bias: torch.Tensor | None = None
        self.declare("weight", (size, width))
        if bias:
            self.declare("bias", (size,))

    def shard(self, groups: Groups, name: str = "") -> None:
        """Leaves this rank some of the channels: each is convolved by itself."""
        parts = {"in_proj": Linear, "out_proj": Linear}
        if not may_split(self, ShortConv, parts, groups.tensor, name):
            return
        assert isinstance(self.out_proj, Linear)
        size = self.out_proj.in_features
        self.out_proj = RowParallelLinear(self.out_proj, groups, f"{name}out_proj")
        held = groups.tensor.share(size)
        self.in_proj.keep_rows(
            *(range(first + held.start, first + held.stop) for first in (0, size, 2 * size))
        )
        for kind in self._declared():
            self.keep(kind, Shard.rows(held))

    def complete(self, tensors: dict[str, torch.Tensor], backend: KernelBackend) -> None:
        """Keeps the weight as one float32 row a column, and the bias in float32."""
        del backend
        self.columns_weight = tensors["weight"].t().float().contiguous()
        if "bias" in tensors:
            self.columns_bias = tensors["bias"].float()

    def __call__(self, x: torch.Tensor, run: ForwardPass) -> torch.Tensor:
        """x: [T, D] -> [T, D]. Writes this pass's columns."""
        backend = run.backend
        mixed = short_conv(
            self.in_proj(x, backend),
            self.columns_weight,
            self.columns_bias,
            _columns(run),
            self.layer,
            backend=backend,
        )
        return self.out_proj(mixed, backend)

    def plan(self, run: PassPlan, x: Buffer) -> Buffer:
        """As `__call__`."""
        mixed = plan_short_conv(
            run.plan,
            run.linear(self.in_proj, x),
            self.columns_weight,
            self.columns_bias,
            columns=run.given("conv_columns", lambda current: pass_address(_columns(current))),
            layer=self.layer,
        )
        return run.linear(self.out_proj, mixed)


def _columns(run: ForwardPass) -> ConvColumns:
    columns = run.slots[0]
    assert isinstance(columns, ConvColumns)
    return columns


def _block(config: LFM2Config, layer: int) -> PreNormBlock:
    return PreNormBlock(
        attention_norm=_norm(config),
        attention=_operator(config, layer),
        mlp_norm=_norm(config),
        mlp=GatedMLP(config.hidden_size, config.intermediate_size),
    )


def _operator(config: LFM2Config, layer: int) -> Sublayer:
    """The first half of a block."""
    if config.layer_types[layer] == "conv":
        index = config.conv_layers.index(layer)
        return ShortConv(index, config.hidden_size, config.conv_L_cache, bias=config.conv_bias)
    index = config.attention_layers.index(layer)
    return Attention(index, *config.attention_sizes, head_norm_eps=config.norm_eps)


def _norm(config: LFM2Config) -> RMSNorm:
    return RMSNorm(config.hidden_size, config.norm_eps, cast="before_weight")
