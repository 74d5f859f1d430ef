"""DFlashLlama3: the draft's network, put together from shared layers.

Knows: the context's projection, the blocks, the draft's own norm. Does not know: requests, files,
or the target's embedding and head, which it borrows.
Axis letters: T packed rows, T' rows with padding, D draft width, F features of the target, L
layers, K kv heads, H head width.
Source: "DFlash: Block Diffusion for Flash Speculative Decoding", arXiv 2602.06036.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import torch

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.context_kv_write import write_context_kv
from pilotfish.kernels.context_kv_write.native import plan_write_context_kv
from pilotfish.kernels.native.buffers import Buffer, Pointer
from pilotfish.layers.attention import heads_of_rank
from pilotfish.layers.layer import Layer
from pilotfish.layers.linear import Linear
from pilotfish.layers.norm import RMSNorm
from pilotfish.layers.pass_plan import PassPlan, has_plan, is_as_written
from pilotfish.layers.splitting import may_split
from pilotfish.parallel.group import Groups
from pilotfish.speculation.draft_model import DraftNetwork, draft_block
from pilotfish.state import KVCacheInputs
from pilotfish_dflash.config import DFlashConfig
from pilotfish_dflash.planned import BlockPass, ContextPass

Planned = TypeVar("Planned", ContextPass, BlockPass)


class ContextKV(Layer):
    """Keys and values of all layers, from one projection of the context's rows.

    num_heads: query heads of the blocks' attention.
    Parameters: kv.weight [L 2 K H, D] (layer by layer, keys before values), kv.bias, k_norm [L, H].
    """

    k_norm: torch.Tensor

    def __init__(self, config: DFlashConfig) -> None:
        kv_heads, head_dim = config.num_key_value_heads, config.head_dim
        self.num_heads = config.num_attention_heads
        self.shape = (-1, config.num_hidden_layers, 2, kv_heads, head_dim)
        self.eps = config.rms_norm_eps
        rows = config.num_hidden_layers * 2 * kv_heads * head_dim
        self.kv = Linear(config.hidden_size, rows, bias=config.attention_bias)
        self.declare("k_norm", (config.num_hidden_layers, head_dim))

    def shard(self, groups: Groups, name: str = "") -> None:
        """Leaves this rank, in every layer, the keys and values that its query heads meet."""
        if not may_split(self, ContextKV, {"kv": Linear}, groups.tensor, name):
            return
        _, num_layers, _, kv_heads, head_dim = self.shape
        _, held = heads_of_rank(groups.tensor, self.num_heads, kv_heads, name)
        starts = range(0, num_layers * 2 * kv_heads, kv_heads)
        self.kv.keep_rows(
            *(
                range((start + held.start) * head_dim, (start + held.stop) * head_dim)
                for start in starts
            )
        )
        self.shape = (-1, num_layers, 2, len(held), head_dim)

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


class DFlashLlama3(DraftNetwork):
    """A draft without what it borrows of its target.

    config: of the draft. num_context_features: aux hidden states of the target that fc reads; None
        takes the config's. backend: of all kernels.
    Parameters: the base's, fc.weight, hidden_norm.weight, context..., layers.{layer}...,
    norm.weight.
    """

    num_context_features: int

    def __init__(
        self,
        config: DFlashConfig,
        *,
        num_context_features: int | None = None,
        backend: KernelBackend | None = None,
    ) -> None:
        super().__init__(config, backend)
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self.num_context_features = (
            config.num_context_features if num_context_features is None else num_context_features
        )
        width, eps = config.hidden_size, config.rms_norm_eps
        self.fc = Linear(self.num_context_features * config.target_hidden_size, width)
        self.hidden_norm = RMSNorm(width, eps)
        self.context = ContextKV(config)
        self.layers = [
            draft_block(
                config,
                layer,
                window=mask_spec.window,
                mode="causal" if mask_spec.is_causal else "block",
                qkv_bias=config.attention_bias,
                out_bias=config.attention_bias,
                head_norm_eps=eps,
            )
            for layer, mask_spec in enumerate(config.mask_specs)
        ]
        self.norm = RMSNorm(width, eps)

    def project_target_hidden(self, target_hs_concat: torch.Tensor) -> torch.Tensor:
        """The target's features as the draft's context: `hidden_norm(fc(cat aux hidden states))`.

        target_hs_concat: [T, F], the aux hidden states side by side in fc's order -> [T, D].
        """
        num_rows = target_hs_concat.shape[0]
        rows = self.padded(target_hs_concat)
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
        run = self.start(kv, input_row_offsets, started, attends=False)
        self.context.write(self.padded(ctx_hidden), run.angles, kv, self.backend)

    def take_in(
        self,
        features: torch.Tensor,
        input_row_offsets: torch.Tensor,
        kv: KVCacheInputs,
        started: Sequence[int] | None = None,
    ) -> None:
        """`materialize_kv` of what `project_target_hidden` makes of features [T, F]."""
        planned = self._planned(ContextPass)
        if planned is None:
            context = self.project_target_hidden(features)
            self.materialize_kv(context, input_row_offsets, kv, started)
            return
        planned(features, self.start(kv, input_row_offsets, started, attends=False))

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
        planned = self._planned(BlockPass)
        run = self.start(kv, input_row_offsets, started)
        if planned:
            return planned(input_embeds, run, range(num_rows) if wanted is None else wanted)
        x, residual = self.padded(input_embeds), None
        for layer in self.layers:
            x, residual = layer(x, residual, run)
        normed = self.norm.add(x, residual, self.backend)[0][:num_rows]
        return normed if wanted is None else normed[torch.tensor(wanted, device=normed.device)]

    def plan_pass(self) -> None:
        """Lays both passes down as native calls, where they may be."""
        self._planned(ContextPass)
        self._planned(BlockPass)

    def _planned(self, kind: type[Planned]) -> Planned | None:
        """A pass as native calls; None too where the context computes in a way of its own."""

        def make() -> Planned | Literal[False]:
            return is_as_written(self, DFlashLlama3) and has_plan(self.context) and kind(self)

        return self.planned(kind, make)
