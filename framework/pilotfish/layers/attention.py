"""Attention: grouped-query attention over paged keys and values, q, k and v from one projection.

Knows: heads, norms and rotation of one layer. Does not know: requests or who owns a page.
Axis letters: T packed tokens, D model width, N query heads, K kv heads, H head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from pilotfish.errors import ConfigError
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.elementwise.native import plan_clip
from pilotfish.kernels.kv_write import write_kv
from pilotfish.kernels.kv_write.native import plan_write_kv
from pilotfish.kernels.native.buffers import Buffer
from pilotfish.kernels.paged_attention import Mode, lay_out, paged_attention
from pilotfish.kernels.paged_attention.planned import plan_paged_attention
from pilotfish.kernels.rms_norm import norm_heads
from pilotfish.kernels.rms_norm.native import plan_norm_heads
from pilotfish.kernels.rope import apply_rope
from pilotfish.kernels.rope.native import plan_apply_rope
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.layer import Layer
from pilotfish.layers.linear import Linear
from pilotfish.layers.pass_plan import PassPlan, has_plan
from pilotfish.layers.row_parallel import RowParallelLinear
from pilotfish.layers.splitting import may_split, not_split
from pilotfish.parallel.group import Group, Groups


class PagedAttentionLayer(Layer):
    """A layer that calls `paged_attention`, so that its rows are probed.

    head_shape: query heads, kv heads and head width of the calls. window, mode: as they get them.
    """

    head_shape: tuple[int, int, int]
    window: int | None = None
    mode: Mode = "causal"

    def lay_out(self, run: ForwardPass) -> None:
        """Called before the first layer of a pass: makes ready what attention shares in it.

        A layer that calls `paged_attention` with another plan than `run.plan` has its own.
        """
        num_heads, num_kv_heads, _ = self.head_shape
        lay_out(
            run.plan,
            num_rows=len(run.positions),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            window=self.window,
            mode=self.mode,
            backend=run.backend,
        )

    def shard(self, groups: Groups, name: str = "") -> None:
        """Refuses more than one rank: a subclass that can be split says how."""
        if groups.tensor.size > 1:
            raise not_split(self, name, "it has no `shard` of its own")
        super().shard(groups, name)


def lay_outs(network: Layer) -> tuple[Callable[[ForwardPass], None], ...]:
    """`lay_out` of every layer with attention, for `ForwardPass.start`."""
    layers = network.layers_inside()
    return tuple(layer.lay_out for layer in layers if isinstance(layer, PagedAttentionLayer))


def heads_of_rank(
    group: Group, num_heads: int, num_kv_heads: int, name: str
) -> tuple[range, range]:
    """The query heads of a rank and the kv heads that they meet.

    kv heads are split, or, where there are fewer than ranks, one is repeated on several. Raises
    ConfigError where the ranks do not share heads evenly, saying which numbers of ranks would.
    """
    size = group.size
    if num_heads % size or (num_kv_heads % size and size % num_kv_heads):
        fits = [
            n
            for n in range(1, num_heads + 1)
            if num_heads % n == 0 and (num_kv_heads % n == 0 or n % num_kv_heads == 0)
        ]
        raise ConfigError(
            f"{name.removesuffix('.')}: {num_heads} query and {num_kv_heads} kv heads over {size} "
            f"ranks; wanted tensor_parallel one of {', '.join(map(str, fits))}"
        )
    first, end = (rank * num_kv_heads // size for rank in (group.rank, group.rank + 1))
    return group.share(num_heads), range(first, max(first + 1, end))


class HeadNorm(Layer):
    """RMSNorm of every q and k head on its own, "before_weight" rounding.

    Parameters: q, k, each [H].
    """

    weight: torch.Tensor

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int, eps: float) -> None:
        self.counts = (num_heads, num_kv_heads)
        self.eps = eps
        self.declare("q", (head_dim,))
        self.declare("k", (head_dim,))

    def complete(self, tensors: dict[str, torch.Tensor], backend: KernelBackend) -> None:
        """Lays one weight row under each head: [N + K, H]."""
        del backend
        rows = [
            tensors[name].expand(count, -1)
            for name, count in zip(("q", "k"), self.counts, strict=True)
        ]
        self.weight = torch.cat(rows)

    def __call__(self, heads: torch.Tensor, backend: KernelBackend) -> torch.Tensor:
        """heads: [T, N + K, H], may be strided; normed in place and returned."""
        return norm_heads(heads, self.weight, self.eps, backend=backend)

    def plan(self, run: PassPlan, x: Buffer) -> None:
        """As `__call__`, of the heads in x's first columns."""
        plan_norm_heads(run.plan, x, self.weight, self.eps)


def _norm_in_place(norm: HeadNorm, heads: torch.Tensor, backend: KernelBackend) -> None:
    """Also where an own norm returns new heads."""
    normed = norm(heads, backend)
    if normed is not heads:
        heads.copy_(normed)


class Attention(PagedAttentionLayer):
    """One layer's attention.

    layer: index of this layer's pages in the cache. scale: of the scores; None means H^-1/2.
    window: keys a row may see, itself included; None for all. rope: whether heads are rotated.
    mode: "block" lets rows of a pass see later ones too; see `paged_attention`.
    qkv_bias, out_bias: which projections have one. clip: bound on the values of q, k and v.
    head_norm_eps: not None where q and k heads are normed before they are rotated.
    interleaved: rotary pairs are neighbours instead of half a head apart.
    Parameters: qkv.weight [(N + 2K) H, D], out.weight [D, N H], their biases, head_norm.{q,k}.
    """

    def __init__(
        self,
        layer: int,
        width: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        scale: float | None = None,
        window: int | None = None,
        mode: Mode = "causal",
        rope: bool = True,
        qkv_bias: bool = False,
        out_bias: bool = False,
        clip: float | None = None,
        head_norm_eps: float | None = None,
        interleaved: bool = False,
    ) -> None:
        self.layer = layer
        self._have_heads(num_heads, num_kv_heads, head_dim)
        self.scale = head_dim**-0.5 if scale is None else scale
        self.window = window
        self.mode: Mode = mode
        self.rope = rope
        self.clip = clip
        self.interleaved = interleaved
        self.qkv = Linear(width, (num_heads + 2 * num_kv_heads) * head_dim, bias=qkv_bias)
        self.out: Linear | RowParallelLinear = Linear(self.out_width, width, bias=out_bias)
        self.head_norm: HeadNorm | None = None
        if head_norm_eps is not None:
            self.head_norm = HeadNorm(num_heads, num_kv_heads, head_dim, head_norm_eps)

    def _have_heads(self, num_heads: int, num_kv_heads: int, head_dim: int) -> None:
        self.num_heads = num_heads
        self.head_shape = (num_heads, num_kv_heads, head_dim)
        self.num_turning = num_heads + num_kv_heads
        self.heads_shape = (-1, num_heads + 2 * num_kv_heads, head_dim)
        self.kv_shape = (-1, 2, num_kv_heads, head_dim)
        self.out_width = num_heads * head_dim

    def shard(self, groups: Groups, name: str = "") -> None:
        """Leaves this rank some of the heads, and cuts the columns of `out`."""
        (num_heads, num_kv_heads, head_dim), group = self.head_shape, groups.tensor
        parts = {"qkv": Linear, "out": Linear, "head_norm": HeadNorm}
        if not may_split(self, Attention, parts, group, name):
            return
        heads, kv_heads = heads_of_rank(group, num_heads, num_kv_heads, name)
        assert isinstance(self.out, Linear)
        self.out = RowParallelLinear(self.out, groups, f"{name}out")
        self.qkv.keep_rows(
            *(
                range((before + held.start) * head_dim, (before + held.stop) * head_dim)
                for before, held in (
                    (0, heads),
                    (num_heads, kv_heads),
                    (num_heads + num_kv_heads, kv_heads),
                )
            )
        )
        self._have_heads(len(heads), len(kv_heads), head_dim)
        if self.head_norm is not None:
            self.head_norm.counts = (len(heads), len(kv_heads))

    def __call__(self, x: torch.Tensor, run: ForwardPass) -> torch.Tensor:
        """x: [T, D] -> [T, D]. Writes this pass's keys and values into the layer's pages."""
        backend = run.backend
        qkv = self.qkv(x, backend)
        if self.clip is not None:
            qkv.clamp_(-self.clip, self.clip)
        heads = qkv.view(self.heads_shape)
        turning = heads[:, : self.num_turning]
        q = heads[:, : self.num_heads]
        if self.head_norm is not None:
            _norm_in_place(self.head_norm, turning, backend)
        if self.rope:
            apply_rope(turning, *run.angles, interleaved=self.interleaved, backend=backend)
        cache = run.caches[self.layer]
        kv = heads[:, self.num_heads :].view(self.kv_shape)
        write_kv(kv, cache, run.write_slots, backend=backend)
        seen = paged_attention(
            q,
            cache,
            run.plan,
            scale=self.scale,
            window=self.window,
            mode=self.mode,
            backend=backend,
        )
        return self.out(seen.view(-1, self.out_width), backend)

    def plan(self, run: PassPlan, x: Buffer) -> Buffer:
        """As `__call__`."""
        plan, head_dim = run.plan, self.head_shape[2]
        qkv = run.linear(self.qkv, x)
        if self.clip is not None:
            plan_clip(plan, qkv, self.clip)
        norm = self.head_norm
        if norm is not None and has_plan(norm):
            norm.plan(run, qkv)
        elif norm is not None:
            plan.torch(
                lambda rows: _norm_in_place(
                    norm, rows.view(self.heads_shape)[:, : self.num_turning], run.backend
                ),
                qkv,
            )
        if self.rope:
            plan_apply_rope(
                plan,
                qkv,
                run.cos,
                run.sin,
                heads=self.num_turning,
                head_width=head_dim,
                interleaved=self.interleaved,
            )
        cache = run.cache(self.layer, 2 * self.head_shape[1] * head_dim)
        plan_write_kv(
            plan,
            qkv.columns(self.num_heads * head_dim),
            cache,
            run.write_slots,
            width=2 * self.head_shape[1] * head_dim,
            cache_dtype=run.cache_dtype,
        )
        seen = plan_paged_attention(
            plan,
            qkv,
            cache,
            run.attention,
            head_shape=self.head_shape,
            cache_dtype=run.cache_dtype,
            scale=self.scale,
            window=self.window,
            is_block=self.mode == "block",
        )
        return run.linear(self.out, seen)
