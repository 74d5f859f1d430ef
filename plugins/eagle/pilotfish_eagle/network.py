"""The draft networks of EAGLE-1 and EAGLE-3, put together from shared layers.

Knows: fc, the blocks, the draft's own norm, head and vocabulary. Does not know: requests or files.
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
from pilotfish.layers.embedding import Embedding
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.layer import Layer
from pilotfish.layers.linear import Linear
from pilotfish.layers.mlp import GatedMLP
from pilotfish.layers.norm import RMSNorm
from pilotfish.layers.pass_plan import PassPlan
from pilotfish.layers.rope import Rotary
from pilotfish.models.decoder import Residual
from pilotfish.speculation.draft_vocabulary import DraftVocabulary
from pilotfish_eagle.config import EagleConfig


class FirstBlock(Block):
    """EAGLE-1's layer 0: `h = x + attention(x); h = h + mlp(norm(h))`, no norm at its input."""

    def __init__(self, attention: Attention, mlp_norm: RMSNorm, mlp: GatedMLP) -> None:
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp

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

    def __init__(
        self,
        input_norm: RMSNorm,
        hidden_norm: RMSNorm,
        attention: Attention,
        mlp_norm: RMSNorm,
        mlp: GatedMLP,
        *,
        norm_before_residual: bool,
    ) -> None:
        self.input_norm = input_norm
        self.hidden_norm = hidden_norm
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp
        self.norm_before_residual = norm_before_residual

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
        width, heads, kv_heads = (
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
        )
        super().__init__(
            0,
            width,
            heads,
            kv_heads,
            config.head_dim,
            out_bias=config.out_bias,
            window=config.windows[0],
        )
        rows = (heads + 2 * kv_heads) * config.head_dim
        self.qkv = Linear(2 * width, rows, bias=config.qkv_bias)


@attrs.frozen
class LastRows:
    """Of the rows that are wanted: whole, normed: [R, D], the residual stream, and after the norm.

    logits: [R, own vocabulary] of the run's dtype. normed, logits: None where there is no norm or
    head of the draft's own.
    """

    whole: torch.Tensor
    normed: torch.Tensor | None
    logits: torch.Tensor | None = None

    def first(self, count: int) -> LastRows:
        """The first of these rows."""
        normed, logits = (
            None if part is None else part[:count] for part in (self.normed, self.logits)
        )
        return LastRows(self.whole[:count], normed, logits)


class EagleNetwork(Layer):
    """A draft of either version, without what it borrows of its target.

    embed_tokens, norm, lm_head, vocabulary: None where the draft has none of its own.
    Parameters: embed_tokens.weight, input_norm.weight, fc_norm.{tap}.weight, fc..., first...,
    layers.{layer}..., norm.weight, lm_head.weight, vocabulary.offsets.
    """

    def __init__(self, config: EagleConfig) -> None:
        width, is_third = config.hidden_size, config.version == 3
        self.is_third = is_third
        self.recycles_normed = config.recycles_normed
        self.rotary = Rotary(config.rope)
        self.embed_tokens: Embedding | None = None
        if config.own_embedding:
            self.embed_tokens = Embedding(config.vocab_size, width)
        eps = config.rms_norm_eps
        self.input_norm = RMSNorm(config.num_features, eps) if config.norm_before_fc else None
        taps = config.taps if config.fc_norm else ()
        self.fc_norm = [RMSNorm(config.target_hidden_size, eps) for _ in taps]
        fc_width = config.num_features if is_third else config.num_features + width
        self.fc = Linear(fc_width, width, bias=bool(config.fc_bias))
        self.joining = _joining_block(config) if is_third else None
        self.first = None if is_third else _first_block(config)
        self.layers = [_block(config, layer) for layer in range(1, config.num_hidden_layers)]
        self.norm = RMSNorm(width, eps) if is_third and config.norms_head else None
        self.lm_head: Linear | None = None
        self.vocabulary: DraftVocabulary | None = None
        if is_third and (config.own_head or config.has_tied_head):
            self.lm_head = Linear(width, config.draft_vocab_size, keep_plain=config.has_tied_head)
        if is_third and config.has_offsets:
            self.vocabulary = DraftVocabulary(config.draft_vocab_size, config.target_vocab_size)

    def combine(self, features: torch.Tensor, backend: KernelBackend) -> torch.Tensor:
        """EAGLE-3 only. features: [T, F] of the target at the taps, in fc's order -> [T, D]."""
        if self.input_norm is not None:
            features = self.input_norm(features, backend)
        if self.fc_norm:
            parts = features.chunk(len(self.fc_norm), dim=-1)
            normed = [
                norm(part.contiguous(), backend)
                for norm, part in zip(self.fc_norm, parts, strict=True)
            ]
            features = torch.cat(normed, dim=-1)
        return self.fc(features, backend)

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

    def finish(self, whole: torch.Tensor, backend: KernelBackend) -> LastRows:
        """whole: [R, D], the residual stream of the rows that are wanted."""
        normed = None if self.norm is None else self.norm(whole, backend)
        if self.lm_head is None:
            return LastRows(whole, normed)
        return LastRows(whole, normed, self.lm_head(whole if normed is None else normed, backend))


def _first_block(config: EagleConfig) -> FirstBlock:
    return FirstBlock(_attention(config, 0), _norm(config), _mlp(config))


def _joining_block(config: EagleConfig) -> JoiningBlock:
    return JoiningBlock(
        input_norm=_norm(config),
        hidden_norm=_norm(config),
        attention=WideAttention(config),
        mlp_norm=_norm(config),
        mlp=_mlp(config),
        norm_before_residual=config.norm_before_residual,
    )


def _block(config: EagleConfig, layer: int) -> PreNormBlock:
    """A layer after the first: the same in both versions."""
    return PreNormBlock(_norm(config), _attention(config, layer), _norm(config), _mlp(config))


def _attention(config: EagleConfig, layer: int) -> Attention:
    return Attention(
        layer,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        qkv_bias=config.qkv_bias,
        out_bias=config.out_bias,
        window=config.windows[layer],
    )


def _mlp(config: EagleConfig) -> GatedMLP:
    return GatedMLP(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)


def _norm(config: EagleConfig) -> RMSNorm:
    return RMSNorm(config.hidden_size, config.rms_norm_eps)
