"""The draft networks of EAGLE-1 and EAGLE-3, put together from shared layers.

Knows: fc, the blocks, the draft's own norm. Does not know: requests or files.
Axis letters: T packed rows, D draft width, F features of the target, V target's vocabulary.
Sources: Li et al. 2024, "EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty" and
"EAGLE-2"; Li et al. 2025, "EAGLE-3: Scaling up Inference Acceleration via Training-Time Test".
"""

from __future__ import annotations

import attrs
import torch

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.native.buffers import Buffer
from pilotfish.layers.attention import Attention
from pilotfish.layers.block import Block, PreNormBlock
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.layer import Layer
from pilotfish.layers.linear import Linear
from pilotfish.layers.norm import RMSNorm
from pilotfish.layers.pass_plan import PassPlan
from pilotfish.models.decoder import Residual
from pilotfish.speculation.draft_model import DraftNetwork, draft_block
from pilotfish_eagle.config import EagleConfig


class FirstBlock(Block):
    """EAGLE-1's layer 0: `h = x + attention(x); h = h + mlp(norm(h))`, no norm at its input."""

    def __init__(self, config: EagleConfig) -> None:
        like = _block(config, 0)
        self.attention, self.mlp_norm, self.mlp = like.attention, like.mlp_norm, like.mlp

    def __call__(
        self, x: torch.Tensor, residual: torch.Tensor | None, run: ForwardPass
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Block`; x: [T, D], what fc put out."""
        assert residual is None
        normed, residual = self.mlp_norm.add(self.attention(x, run), x, run.backend)
        return self.mlp(normed, run), residual

    def plan(self, run: PassPlan, x: Buffer, residual: Buffer | None) -> tuple[Buffer, Buffer]:
        """As `__call__`."""
        assert residual is None
        normed, residual = run.add_norm(self.mlp_norm, run.sublayer(self.attention, x), x, 1.0)
        return run.sublayer(self.mlp, normed), residual


class JoiningBlock(Layer):
    """EAGLE-3's layer 0, whose attention reads token and feature side by side.

    `x = cat[input_norm(embedding), hidden_norm(h)]; h = r + attention(x); h = h + mlp(norm(h))`,
    where r is h, or with `norm_before_residual` the normed h.
    """

    def __init__(self, config: EagleConfig) -> None:
        like = _block(config, 0)
        self.input_norm, self.mlp_norm, self.mlp = like.attention_norm, like.mlp_norm, like.mlp
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = WideAttention(config)
        self.norm_before_residual = config.norm_before_residual

    def __call__(
        self, embedded: torch.Tensor, hidden: torch.Tensor, run: ForwardPass
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """embedded, hidden: [T, D]; may update `hidden` in place. Returns as `Block`."""
        backend = run.backend
        normed = self.hidden_norm(hidden, backend)
        joined = torch.cat((self.input_norm(embedded, backend), normed), dim=-1)
        residual = normed if self.norm_before_residual else hidden
        rows, residual = self.mlp_norm.add(self.attention(joined, run), residual, backend)
        return self.mlp(rows, run), residual

    def plan(self, run: PassPlan, embedded: Buffer, hidden: Buffer) -> tuple[Buffer, Buffer]:
        """As `__call__`; the norms write side by side."""
        joined = run.buffer(embedded.width + hidden.width)
        run.norm(self.input_norm, embedded, joined.columns(0, embedded.width))
        run.norm(self.hidden_norm, hidden, joined.columns(embedded.width))
        residual = run.norm(self.hidden_norm, hidden) if self.norm_before_residual else hidden
        x = run.sublayer(self.attention, joined)
        rows, residual = run.add_norm(self.mlp_norm, x, residual, 1.0)
        return run.sublayer(self.mlp, rows), residual


class WideAttention(Attention):
    """Attention whose q, k and v are read from rows of twice the width that it puts out."""

    def __init__(self, config: EagleConfig) -> None:
        super().__init__(
            0, *config.attention_sizes, out_bias=config.out_bias, window=config.windows[0]
        )
        rows = self.heads_shape[1] * config.head_dim
        self.qkv = Linear(2 * config.hidden_size, rows, bias=config.qkv_bias)


@attrs.frozen
class LastRows:
    """Of the rows that are wanted: whole, normed: [R, D], the residual stream, and after the norm.

    logits: [R, own vocabulary] of the run's dtype. normed, logits: None where there is no norm or
    head of the draft's own.
    """

    whole: torch.Tensor
    normed: torch.Tensor | None
    logits: torch.Tensor | None = None


class EagleNetwork(DraftNetwork):
    """A draft of either version, without what it borrows of its target.

    norm: None where there is none before the head.
    Parameters: the base's, input_norm.weight, fc_norm.{tap}.weight, fc..., first...,
    layers.{layer}..., norm.weight.
    """

    def __init__(self, config: EagleConfig, backend: KernelBackend | None = None) -> None:
        super().__init__(config, backend)
        width, is_third = config.hidden_size, config.version == 3
        self.is_third = is_third
        eps = config.rms_norm_eps
        self.input_norm = RMSNorm(config.num_features, eps) if config.norm_before_fc else None
        aux_hidden_state_layers = config.aux_hidden_state_layers if config.fc_norm else ()
        self.fc_norm = [RMSNorm(config.target_hidden_size, eps) for _ in aux_hidden_state_layers]
        fc_width = config.num_features if is_third else config.num_features + width
        self.fc = Linear(fc_width, width, bias=bool(config.fc_bias))
        self.joining = JoiningBlock(config) if is_third else None
        self.first = None if is_third else FirstBlock(config)
        self.layers = [_block(config, layer) for layer in range(1, config.num_hidden_layers)]
        self.norm = RMSNorm(width, eps) if is_third and config.norms_head else None

    def combine(self, features: torch.Tensor) -> torch.Tensor:
        """EAGLE-3 only. features: [T, F], the target's aux hidden states in fc's order."""
        if self.input_norm is not None:
            features = self.input_norm(features, self.backend)
        if self.fc_norm:
            parts = features.chunk(len(self.fc_norm), dim=-1)
            normed = [
                norm(part.contiguous(), self.backend)
                for norm, part in zip(self.fc_norm, parts, strict=True)
            ]
            features = torch.cat(normed, dim=-1)
        return self.fc(features, self.backend)

    def run(self, embedded: torch.Tensor, hidden: torch.Tensor, run: ForwardPass) -> Residual:
        """embedded: [T, D] of the row's token. hidden: [T, D], what stands beside it: a feature
        that went through `combine`, or the hidden state of the row before; may be updated in place.
        """
        if self.joining is not None:
            x, residual = self.joining(embedded, hidden, run)
        else:
            assert self.first is not None
            rows = self.fc(torch.cat((embedded, hidden), dim=-1), run.backend)
            x, residual = self.first(rows, None, run)
        for block in self.layers:
            x, residual = block(x, residual, run)
        return Residual(x, residual, 1.0)

    def plan_combine(self, run: PassPlan, features: Buffer) -> Buffer:
        """As `combine`; may overwrite the features."""
        if self.input_norm is not None:
            features = run.norm(self.input_norm, features)
        for tap, norm in enumerate(self.fc_norm):
            width = features.width // len(self.fc_norm)
            part = features.columns(tap * width, width)
            run.norm(norm, part, part)
        return run.linear(self.fc, features)

    def plan(self, run: PassPlan, embedded: Buffer, hidden: Buffer) -> tuple[Buffer, Buffer]:
        """As `run`, of EAGLE-3: the open stream's x and residual."""
        assert self.joining is not None
        return self._plan_rest(run, *run.block(self.joining, embedded, hidden))

    def plan_joined(self, run: PassPlan, both: Buffer) -> tuple[Buffer, Buffer]:
        """As `run`, of EAGLE-1; both: [T, 2 D], an embedding and what stands beside it."""
        assert self.first is not None
        return self._plan_rest(run, *run.block(self.first, run.linear(self.fc, both), None))

    def _plan_rest(self, run: PassPlan, x: Buffer, residual: Buffer) -> tuple[Buffer, Buffer]:
        for block in self.layers:
            x, residual = run.block(block, x, residual)
        return x, residual


def _block(config: EagleConfig, layer: int) -> PreNormBlock:
    """A layer after the first: the same in both versions."""
    return draft_block(
        config,
        layer,
        mlp_bias=config.mlp_bias,
        qkv_bias=config.qkv_bias,
        out_bias=config.out_bias,
        window=config.windows[layer],
    )
