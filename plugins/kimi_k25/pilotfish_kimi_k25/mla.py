"""LatentAttention: multi-head latent attention over one cached row a token.

Knows: projections, the latent's two parts, which form is computed. Does not know: requests.
Axis letters: T packed tokens, D model width, N heads, C width of the latent, R with the turned part
beside it, Q and V a head's dimensions that do not turn, and of its values.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.kv_write import write_kv
from pilotfish.kernels.kv_write.native import plan_write_kv
from pilotfish.kernels.native.buffers import Buffer
from pilotfish.kernels.rope import apply_rope
from pilotfish.kernels.rope.native import plan_apply_rope
from pilotfish.layers.attention import PagedAttentionLayer, heads_of_rank
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.layer import KeepsBits, Layer
from pilotfish.layers.linear import Linear
from pilotfish.layers.norm import RMSNorm
from pilotfish.layers.pass_plan import PassPlan
from pilotfish.layers.row_parallel import RowParallelLinear
from pilotfish.layers.splitting import may_split
from pilotfish.parallel.group import Groups
from pilotfish.parallel.shard import Shard
from pilotfish_kimi_k25.config import KimiK25Config
from pilotfish_kimi_k25.kernels.head_linear import head_linear
from pilotfish_kimi_k25.kernels.head_linear.native import plan_head_linear
from pilotfish_kimi_k25.kernels.mla_attention import (
    HeadWeights,
    attend_absorbed,
    attend_expanded,
    is_expanded_cheaper,
    lay_out_expanded,
)
from pilotfish_kimi_k25.kernels.mla_attention.native import plan_attend_absorbed

LATENT_NORM_EPS = 1e-6
"""The norms of the latents do not read `rms_norm_eps`; they have always had this."""


class UpProjection(Layer):
    """Makes every head's keys and values of the latent. Parameter: weight [N (Q + V), C]."""

    keeps_bits: ClassVar[KeepsBits] = "portable"
    heads: HeadWeights
    absorb: torch.Tensor

    def __init__(self, num_heads: int, key_width: int, value_width: int, latent: int) -> None:
        self.key_width = key_width
        self.shape = (num_heads, key_width + value_width, latent)
        self.declare("weight", (num_heads * (key_width + value_width), latent))

    def keep_heads(self, heads: range) -> None:
        """Leaves this rank some of the heads."""
        _, both, latent = self.shape
        self.shape = (len(heads), both, latent)
        self.keep("weight", Shard.rows(range(heads.start * both, heads.stop * both)))

    @property
    def product_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """N, O and K of the products it is used in."""
        num_heads, both, latent = self.shape
        value_width = both - self.key_width
        return (
            (num_heads, latent, self.key_width),
            (num_heads, value_width, latent),
            (num_heads, self.key_width, latent),
        )

    def complete(self, tensors: dict[str, torch.Tensor], backend: KernelBackend) -> None:
        """Cuts the weight into keys' and values'; both are copies, the whole is dropped."""
        weight = tensors.pop("weight").view(self.shape)
        up_key, up_value = weight.split_with_sizes(
            (self.key_width, self.shape[1] - self.key_width), 1
        )
        # Native products want a weight's rows contiguous: those of the form that bits hold for.
        if backend.name == "native":
            up_key = up_key.transpose(1, 2).contiguous().transpose(1, 2)
        else:
            up_key = up_key.contiguous()
        self.heads = HeadWeights(up_key=up_key, up_value=up_value.contiguous())
        self.absorb = up_key.transpose(1, 2)


class LatentAttention(PagedAttentionLayer):
    """One layer's attention (DeepSeek-AI 2024, DeepSeek-V2, section 2.1).

    layer: index of this layer's pages in the cache. scale: of the scores.
    Parameters: qkv_a.weight [q_lora_rank + R, D], q_norm, q_b.weight [N (Q + R - C), q_lora_rank];
    without a latent for queries q.weight [N (Q + R - C), D] and kv_a.weight [R, D] instead;
    kv_norm, kv_b.weight [N (Q + V), C], out.weight [D, N V]; biases of qkv_a (kv_a) and out.
    """

    keeps_bits: ClassVar[KeepsBits] = "portable"

    def __init__(self, layer: int, config: KimiK25Config, scale: float) -> None:
        c = config
        self.layer = layer
        self.scale = scale
        self.num_heads = c.num_attention_heads
        self.q_parts = (c.qk_nope_head_dim, c.qk_rope_head_dim)
        self.row_parts = (c.kv_lora_rank, c.qk_rope_head_dim)
        self.latent = c.kv_lora_rank
        self.row_width = c.latent_width
        self.interleaved = c.rope_interleave
        self.head_shape = (self.num_heads, 1, c.latent_width)
        q_width = self.num_heads * c.qk_head_dim
        self.q_rank = c.q_lora_rank
        if c.q_lora_rank is None:
            self.q = Linear(c.hidden_size, q_width)
            self.kv_a = Linear(c.hidden_size, c.latent_width, bias=c.attention_bias)
        else:
            both = c.q_lora_rank + c.latent_width
            self.qkv_a = Linear(c.hidden_size, both, bias=c.attention_bias)
            self.q_norm = RMSNorm(c.q_lora_rank, LATENT_NORM_EPS)
            self.q_b = Linear(c.q_lora_rank, q_width)
        self.kv_norm = RMSNorm(c.kv_lora_rank, LATENT_NORM_EPS)
        self.kv_b = UpProjection(self.num_heads, c.qk_nope_head_dim, c.v_head_dim, c.kv_lora_rank)
        self.v_width = c.v_head_dim
        self.out_width = self.num_heads * c.v_head_dim
        self.out: Linear | RowParallelLinear = Linear(
            self.out_width, c.hidden_size, bias=c.attention_bias
        )

    def shard(self, groups: Groups, name: str = "") -> None:
        """Leaves this rank some of the heads; every rank has all of the latent."""
        parts = {"q": Linear, "q_b": Linear, "kv_b": UpProjection, "out": Linear}
        if not may_split(self, LatentAttention, parts, groups.tensor, name):
            return
        assert isinstance(self.out, Linear)
        heads, _ = heads_of_rank(groups.tensor, self.num_heads, 1, name)
        self.out = RowParallelLinear(self.out, groups, f"{name}out")
        width = sum(self.q_parts)
        q = self.q if self.q_rank is None else self.q_b
        q.keep_rows(range(heads.start * width, heads.stop * width))
        self.kv_b.keep_heads(heads)
        self.num_heads = len(heads)
        self.head_shape = (self.num_heads, 1, self.row_width)
        self.out_width = self.num_heads * self.v_width

    def lay_out(self, run: ForwardPass) -> None:
        """As the base; the expanded form reads pages of its own."""
        if self._expands(run):
            lay_out_expanded(run.plan, len(run.positions), self.num_heads, backend=run.backend)
        else:
            super().lay_out(run)

    def __call__(self, x: torch.Tensor, run: ForwardPass) -> torch.Tensor:
        """x: [T, D] -> [T, D]. Writes this pass's rows into the layer's pages."""
        q, latent, turning = self._project(x, run.backend)
        plain, q_turning = q.split_with_sizes(self.q_parts, -1)
        rope_part, row = self._turn(q_turning, latent, turning, run)
        cache = run.caches[self.layer]
        write_kv(row, cache, run.write_slots, backend=run.backend)
        seen = self._attend(plain, rope_part, cache, run)
        return self.out(seen.reshape(-1, self.out_width), run.backend)

    def _project(
        self, x: torch.Tensor, backend: KernelBackend
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q [T, N, Q + R - C], the latent [T, C] and what is to be turned beside it [T, R - C]."""
        if self.q_rank is None:
            q = self.q(x, backend)
            latent, turning = self.kv_a(x, backend).split_with_sizes(self.row_parts, -1)
        else:
            parts = self.qkv_a(x, backend).split_with_sizes((self.q_rank, *self.row_parts), -1)
            q_latent, latent, turning = parts
            q = self.q_b(self.q_norm(q_latent, backend), backend)
        return q.view(q.shape[0], self.num_heads, -1), self.kv_norm(latent, backend), turning

    def _turn(
        self, q: torch.Tensor, latent: torch.Tensor, turning: torch.Tensor, run: ForwardPass
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """q: [T, N, R - C]. Returns it turned, and the cache's rows [T, R].

        Both at once: with few rows the number of calls is the time.
        """
        rope_part = torch.cat((q, turning.unsqueeze(1)), 1)
        apply_rope(rope_part, *run.angles, interleaved=self.interleaved, backend=run.backend)
        row = torch.cat((latent, rope_part.select(1, self.num_heads)), 1)
        return rope_part.narrow(1, 0, self.num_heads), row

    def _attend(
        self, plain: torch.Tensor, rope_part: torch.Tensor, cache: torch.Tensor, run: ForwardPass
    ) -> torch.Tensor:
        """[T, N, V]. One form for all rows where bits matter: the two round differently."""
        backend, heads = run.backend, self.kv_b.heads
        if self._expands(run):
            whole = torch.cat((plain, rope_part), -1)
            return attend_expanded(whole, cache, run.plan, heads, scale=self.scale, backend=backend)
        absorbed = torch.cat((head_linear(plain, self.kv_b.absorb, backend=backend), rope_part), -1)
        seen = attend_absorbed(
            absorbed,
            cache,
            run.plan,
            latent_width=self.latent,
            scale=self.scale,
            backend=backend,
        )
        return head_linear(seen, heads.up_value, backend=backend)

    def _expands(self, run: ForwardPass) -> bool:
        if run.backend.invariant:
            return False
        return is_expanded_cheaper(run.plan, self.kv_b.heads, self.row_width)

    def plan(self, run: PassPlan, x: Buffer) -> Buffer:
        """As `__call__` in the absorbed form; heads turn in the rows that the projections made."""
        run.unless("expanded attention", self._expands)
        plan, (plain, turning) = run.plan, self.q_parts
        q, rows, first = self._plan_projections(run, x)
        for heads, buffer, at, width in (
            (self.num_heads, q, plain, plain + turning),
            (1, rows, first + self.latent, turning),
        ):
            plan_apply_rope(
                plan,
                buffer,
                run.cos,
                run.sin,
                heads=heads,
                head_width=width,
                interleaved=self.interleaved,
                first=at,
            )
        cache = run.cache(self.layer, self.row_width)
        plan_write_kv(
            plan,
            rows.columns(first),
            cache,
            run.write_slots,
            width=self.row_width,
            cache_dtype=run.cache_dtype,
        )
        seen = plan_attend_absorbed(
            plan,
            plan_head_linear(plan, q, self.kv_b.absorb),
            cache,
            run.attention,
            num_heads=self.num_heads,
            latent_width=self.latent,
            cache_dtype=run.cache_dtype,
            scale=self.scale,
        )
        return run.linear(self.out, plan_head_linear(plan, seen, self.kv_b.heads.up_value))

    def _plan_projections(self, run: PassPlan, x: Buffer) -> tuple[Buffer, Buffer, int]:
        """q [T, N (Q + R - C)], rows of at least R, and the column in which their last R begin."""
        first = self.q_rank or 0
        if self.q_rank is None:
            q, rows = run.linear(self.q, x), run.linear(self.kv_a, x)
        else:
            rows = run.linear(self.qkv_a, x)
            q = run.linear(self.q_b, run.norm(self.q_norm, rows.columns(0, first)))
        latent = rows.columns(first, self.latent)
        run.norm(self.kv_norm, latent, latent)
        return q, rows, first
