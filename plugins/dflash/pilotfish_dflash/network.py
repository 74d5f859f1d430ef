"""DFlashLlama3: the draft's network, put together from shared layers.

Knows: the context's projection, the blocks, the draft's own norm. Does not know: requests, files,
or the target's embedding and head, which it borrows.
Axis letters: T packed rows, T' rows with padding, D draft width, F features of the target, L
layers, K kv heads, H head width.
Source: "DFlash: Block Diffusion for Flash Speculative Decoding", arXiv 2602.06036.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch

from pilotfish.invariance.rows import padded
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.context_kv_write import write_context_kv
from pilotfish.kernels.context_kv_write.native import plan_write_context_kv
from pilotfish.kernels.native.buffers import Buffer, Pointer
from pilotfish.kernels.paged_attention import AttentionPlan, plan_attention
from pilotfish.layers.attention import Attention
from pilotfish.layers.block import PreNormBlock
from pilotfish.layers.embedding import Embedding
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.layer import Layer
from pilotfish.layers.linear import Linear
from pilotfish.layers.mlp import GatedMLP
from pilotfish.layers.norm import RMSNorm
from pilotfish.layers.pass_plan import PassPlan, has_plan, is_as_written
from pilotfish.layers.rope import Rotary
from pilotfish.speculation.draft_vocabulary import DraftVocabulary
from pilotfish.state import KVCacheInputs
from pilotfish_dflash.config import DFlashConfig
from pilotfish_dflash.planned import BlockPass, ContextPass

Planned = TypeVar("Planned", ContextPass, BlockPass)


class ContextKV(Layer):
    """Keys and values of all layers, from one projection of the context's rows.

    Parameters: kv.weight [L 2 K H, D] (layer by layer, keys before values), kv.bias, k_norm [L, H].
    """

    k_norm: torch.Tensor

    def __init__(self, config: DFlashConfig) -> None:
        self.shape = (
            *(-1, config.num_hidden_layers, 2),
            *(config.num_key_value_heads, config.head_dim),
        )
        self.eps = config.rms_norm_eps
        rows = config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim
        self.kv = Linear(config.hidden_size, rows, bias=config.attention_bias)
        self.declare("k_norm", (config.num_hidden_layers, config.head_dim))

    def write(
        self,
        rows: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        kv: KVCacheInputs,
        backend: KernelBackend,
    ) -> None:
        """rows: [T', D], T' - T of them padding; angles: cos and sin, each [T', R] float32."""
        made = self.kv(rows, backend).view(self.shape)
        write_context_kv(
            made,
            self.k_norm,
            angles,
            kv.blocks,
            kv.write_slots,
            eps=self.eps,
            backend=backend,
        )

    def plan(self, run: PassPlan, rows: Buffer, caches: Pointer) -> None:
        """As `write`; caches: the address of the addresses of all layers' pages."""
        plan_write_context_kv(
            run.plan,
            run.linear(self.kv, rows),
            self.k_norm,
            (run.cos, run.sin),
            caches=caches,
            write_slots=run.write_slots,
            cache_dtype=run.cache_dtype,
            eps=self.eps,
        )


class DFlashLlama3(Layer):
    """A draft without what it borrows of its target.

    config: of the draft. num_context_features: taps of the target that fc reads; None takes the
        config's. backend: of all kernels. row_multiple, attention_multiple: rows are padded to
        them, so that a row's bits are its own; set when the weights are known.
    embed_tokens, lm_head, vocabulary: None where the file has none.
    Parameters: fc.weight, hidden_norm.weight, context..., layers.{layer}..., norm.weight.
    """

    num_context_features: int

    def __init__(
        self,
        config: DFlashConfig,
        *,
        num_context_features: int | None = None,
        backend: KernelBackend | None = None,
    ) -> None:
        self.num_context_features = (
            config.num_context_features if num_context_features is None else num_context_features
        )
        self.backend = KernelBackend() if backend is None else backend
        self.row_multiple = 1
        self.attention_multiple: int | None = None
        self._passes: dict[type[Any], ContextPass | BlockPass | Literal[False]] = {}
        width, eps = config.hidden_size, config.rms_norm_eps
        self.rotary = Rotary(config.rope)
        self.fc = Linear(self.num_context_features * config.target_hidden_size, width)
        self.hidden_norm = RMSNorm(width, eps)
        self.context = ContextKV(config)
        self.layers = [_block(config, layer) for layer in range(config.num_hidden_layers)]
        self.norm = RMSNorm(width, eps)
        self.embed_tokens: Embedding | None = None
        self.lm_head: Linear | None = None
        self.vocabulary: DraftVocabulary | None = None
        if config.own_embedding:
            self.embed_tokens = Embedding(config.vocab_size, width)
        if config.own_head:
            self.lm_head = Linear(width, config.draft_vocab_size)
        if config.has_offsets:
            self.vocabulary = DraftVocabulary(config.draft_vocab_size, config.target_vocab_size)

    def project_target_hidden(self, target_hs_concat: torch.Tensor) -> torch.Tensor:
        """The target's features as the draft's context: `hidden_norm(fc(cat taps))`.

        target_hs_concat: [T, F], the taps side by side in fc's order -> [T, D].
        """
        num_rows = target_hs_concat.shape[0]
        rows = self._padded(target_hs_concat)
        return self.hidden_norm(self.fc(rows, self.backend), self.backend)[:num_rows]

    def materialize_kv(
        self,
        ctx_hidden: torch.Tensor,
        input_row_offsets: torch.Tensor,
        kv: KVCacheInputs,
        started: Sequence[int] | None = None,
    ) -> None:
        """Writes every layer's keys and values of rows of the context; reads no other row.

        ctx_hidden: [T, D], of `project_target_hidden`. input_row_offsets: [B+1] int32. kv: where
        the rows lie; row i of request b stands at position lengths[b] + i. started: [B], tokens
        each request was started with, for angles that depend on it.
        """
        rows = self._padded(ctx_hidden)
        angles = self._angles(kv, input_row_offsets, rows.shape[0], started)
        self.context.write(rows, angles, kv, self.backend)

    def take_in(
        self,
        features: torch.Tensor,
        input_row_offsets: torch.Tensor,
        kv: KVCacheInputs,
        started: Sequence[int] | None = None,
    ) -> None:
        """`materialize_kv` of what `project_target_hidden` makes of features [T, F]."""
        planned = self._planned(ContextPass, features, kv)
        if planned is None:
            context = self.project_target_hidden(features)
            self.materialize_kv(context, input_row_offsets, kv, started)
            return
        angles = self._angles(kv, input_row_offsets, features.shape[0], started)
        planned(features, angles, kv)

    def forward_block(
        self,
        input_embeds: torch.Tensor,
        kv: KVCacheInputs,
        input_row_offsets: torch.Tensor,
        started: Sequence[int] | None = None,
        wanted: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """One pass over the blocks.

        input_embeds: [T, D], of the anchors and the mask tokens. kv, input_row_offsets, started: as
        `materialize_kv`. Writes the rows' keys and values; they are scratch. wanted: [R], None: all
        rows.
        Returns [R, D] after the final norm.
        """
        num_rows = input_embeds.shape[0]
        planned = self._planned(BlockPass, input_embeds, kv)
        rows = input_embeds if planned else self._padded(input_embeds)
        cos, sin = self._angles(kv, input_row_offsets, rows.shape[0], started)
        run = ForwardPass(
            backend=self.backend,
            cos=cos,
            sin=sin,
            plan=self._plan(kv, input_row_offsets),
            caches=kv.blocks,
            write_slots=kv.write_slots,
        )
        if planned:
            return planned(input_embeds, run, range(num_rows) if wanted is None else wanted)
        x, residual = rows, None
        for layer in self.layers:
            x, residual = layer(x, residual, run)
        normed = self.norm.add(x, residual, self.backend)[0][:num_rows]
        return normed if wanted is None else normed[torch.tensor(wanted, device=normed.device)]

    def _planned(
        self, kind: type[Planned], rows: torch.Tensor, kv: KVCacheInputs
    ) -> Planned | None:
        """A pass as native calls, planned when first asked for; None on another backend.

        None too where the network, or its context, computes in a way of its own.
        """
        if self.backend.name != "native":
            return None
        if kind not in self._passes:
            is_plain = is_as_written(self, DFlashLlama3) and has_plan(self.context)
            dtypes = {"dtype": rows.dtype, "cache_dtype": kv.blocks[0].dtype}
            self._passes[kind] = is_plain and kind(self, **dtypes)
        found = self._passes[kind]
        assert found is False or isinstance(found, kind)
        return found or None

    def _plan(self, kv: KVCacheInputs, offsets: torch.Tensor) -> AttentionPlan:
        return plan_attention(
            kv, offsets, backend=self.backend, row_multiple=self.attention_multiple
        )

    def _padded(self, rows: torch.Tensor) -> torch.Tensor:
        """A copy of rows [T, *] with zeros up to the row multiple: passes work in place."""
        short = padded(rows.shape[0], self.row_multiple) - rows.shape[0]
        return torch.nn.functional.pad(rows, (0, 0, 0, short)) if short else rows.clone()

    def _angles(
        self,
        kv: KVCacheInputs,
        offsets: torch.Tensor,
        num_padded: int,
        started: Sequence[int] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of every row, padding included: [T', R] float32."""
        num_rows, counts = sum(kv.row_counts), offsets.diff()
        positions = torch.arange(num_rows, device=offsets.device)
        starts = kv.cache_lengths.long() - offsets[:-1]
        positions += starts.repeat_interleave(counts, output_size=num_rows)
        lengths = None
        if self.rotary.parameters.depends_on_length:
            lengths = positions + 1
            if started is not None:
                least = torch.tensor(started, device=offsets.device)
                least = least.repeat_interleave(counts, output_size=num_rows)
                lengths = torch.maximum(lengths, least)
            lengths = torch.nn.functional.pad(lengths, (0, num_padded - num_rows))
        positions = torch.nn.functional.pad(positions, (0, num_padded - num_rows))
        return self.rotary(positions, lengths, self.backend)


def _block(config: DFlashConfig, layer: int) -> PreNormBlock:
    mask_spec = config.mask_specs[layer]
    attention = Attention(
        layer,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        window=mask_spec.window,
        mode="causal" if mask_spec.is_causal else "block",
        qkv_bias=config.attention_bias,
        out_bias=config.attention_bias,
        head_norm_eps=config.rms_norm_eps,
    )
    eps = config.rms_norm_eps
    return PreNormBlock(
        RMSNorm(config.hidden_size, eps),
        attention,
        RMSNorm(config.hidden_size, eps),
        GatedMLP(config.hidden_size, config.intermediate_size),
    )
