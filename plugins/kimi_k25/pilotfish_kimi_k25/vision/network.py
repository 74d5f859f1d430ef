"""VisionTower: pixels of images to the rows that stand for them in the text network.

Knows: the order of layers. Does not know: files, requests or caches.
Letters: P patches of all images, D tower width, N heads, H head width, n tokens of an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.elementwise import gelu, gelu_tanh
from pilotfish.kernels.paged_attention import paged_attention, plan_attention
from pilotfish.kernels.rope import apply_rope
from pilotfish.layers.layer import KeepsBits, Layer
from pilotfish.layers.linear import Linear
from pilotfish.layers.norm import LayerNorm
from pilotfish.state import KVCacheInputs
from pilotfish_kimi_k25.vision.config import VisionConfig
from pilotfish_kimi_k25.vision.positions import resampled, rotary_angles

Grid = tuple[int, int, int]
_PAGE_SIZE = 128


class PositionTable(Layer):
    """The learned positions, [rows, columns, D], kept in float32."""

    weight: torch.Tensor

    def __init__(self, config: VisionConfig) -> None:
        self.declare("weight", (config.position_rows, config.position_columns, config.hidden_size))


class VisionBlock(Layer):
    """`x += attention(norm1(x)); x += mlp(norm2(x))`, full attention inside each image."""

    keeps_bits: ClassVar[KeepsBits] = "portable"

    def __init__(self, config: VisionConfig) -> None:
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.norm1 = LayerNorm(width, config.norm_eps, bias=True)
        self.qkv = Linear(width, 3 * width, bias=True)
        self.out = Linear(width, width, bias=True)
        self.norm2 = LayerNorm(width, config.norm_eps, bias=True)
        self.fc1 = Linear(width, config.intermediate_size, bias=True)
        self.fc2 = Linear(config.intermediate_size, width, bias=True)

    def __call__(
        self,
        x: torch.Tensor,
        counts: Sequence[int],
        cos: torch.Tensor,
        sin: torch.Tensor,
        backend: KernelBackend,
    ) -> torch.Tensor:
        """x: [P', D], updated in place. counts: patches of each image; rows after them pad."""
        x.add_(self.out(self._attend(self.norm1(x, backend), counts, cos, sin, backend), backend))
        inner = gelu_tanh(self.fc1(self.norm2(x, backend), backend), backend=backend)
        return x.add_(self.fc2(inner, backend))

    def _attend(
        self,
        x: torch.Tensor,
        counts: Sequence[int],
        cos: torch.Tensor,
        sin: torch.Tensor,
        backend: KernelBackend,
    ) -> torch.Tensor:
        qkv_P3NH = self.qkv(x, backend).view(x.shape[0], 3 * self.num_heads, -1)
        apply_rope(qkv_P3NH[:, : 2 * self.num_heads], cos, sin, backend=backend)
        mixed = torch.zeros_like(x)
        start = 0
        for count in counts:
            own = qkv_P3NH[start : start + count].view(count, 3, self.num_heads, -1)
            mixed[start : start + count] = attend(own, backend).flatten(1)
            start += count
        return mixed


class Projector(Layer):
    """Norm of each patch, the patches of a token side by side, two layers with a GELU between."""

    keeps_bits: ClassVar[KeepsBits] = "portable"

    def __init__(self, config: VisionConfig) -> None:
        self.merged_size = config.merged_size
        self.norm = LayerNorm(config.hidden_size, config.projector_eps, bias=True)
        self.fc1 = Linear(config.merged_size, config.merged_size, bias=True)
        self.fc2 = Linear(config.merged_size, config.text_hidden_size, bias=True)

    def __call__(self, x: torch.Tensor, multiple: int, backend: KernelBackend) -> torch.Tensor:
        """x: [P, D], patches in the order of their tokens."""
        merged = self.norm(x, backend).view(-1, self.merged_size)
        num_rows = merged.shape[0]
        inner = gelu(self.fc1(_padded(merged, multiple), backend), backend=backend)
        return self.fc2(inner, backend)[:num_rows]


class VisionTower(Layer):
    """MoonViT and its projector.

    Several images of different grids run in one ragged pass; a row's bits are its image's own:
    linear layers get rows in multiples of `row_multiple`, attention works image by image,
    everything else element by element.
    Parameters: patch_embed, positions, layers.{layer}..., norm, projector...
    """

    keeps_bits: ClassVar[KeepsBits] = "portable"

    def __init__(self, config: VisionConfig) -> None:
        self.config = config
        self.patch_embed = Linear(config.patch_numbers, config.hidden_size, bias=True)
        self.positions = PositionTable(config)
        self.layers = tuple(VisionBlock(config) for _ in range(config.num_layers))
        self.norm = LayerNorm(config.hidden_size, config.norm_eps, bias=True)
        self.projector = Projector(config)

    def __call__(
        self,
        pixels: torch.Tensor,
        grids: Sequence[Grid],
        *,
        row_multiple: int,
        backend: KernelBackend,
    ) -> list[torch.Tensor]:
        """pixels: [P, 3, p, p] of all images -> one [n, text width] an image, its own memory."""
        counts = [math.prod(grid) for grid in grids]
        num_rows, device = sum(counts), pixels.device
        assert pixels.shape[0] == num_rows, (pixels.shape, grids)
        # On a CPU a matrix of one row is multiplied another way; see `row_multiple`.
        x = self.patch_embed(_padded(pixels.flatten(1), row_multiple), backend)
        table = self.positions.weight
        x[:num_rows] += torch.cat([resampled(table, h, w) for _, h, w in grids]).to(x.dtype)
        cos, sin = self._angles(grids, x.shape[0], device)
        for block in self.layers:
            x = block(x, counts, cos, sin, backend)
        x = self.norm(x, backend)[:num_rows]
        order = torch.cat(self._merge_orders(grids)).to(device)
        tokens = [self.config.num_tokens(grid) for grid in grids]
        rows = self.projector(x.index_select(0, order), row_multiple, backend)
        return [part.clone() for part in torch.split(rows, tokens)]

    def _angles(
        self, grids: Sequence[Grid], num_rows: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[P', H] each; zero where rows pad."""
        config = self.config
        found = [
            rotary_angles(h, w, config.head_dim, config.rope_theta, device) for _, h, w in grids
        ]
        angles = torch.zeros(2, num_rows, config.head_dim, device=device)
        for angle, parts in zip(angles, zip(*found, strict=True), strict=True):
            whole = torch.cat(parts)
            angle[: whole.shape[0]] = whole
        return angles[0], angles[1]

    def _merge_orders(self, grids: Sequence[Grid]) -> list[torch.Tensor]:
        """Places of each image's patches in the order of their tokens."""
        orders, start = [], 0
        down, across = self.config.merge_rows, self.config.merge_columns
        for _, rows, columns in grids:
            places = torch.arange(start, start + rows * columns)
            blocks = places.view(rows // down, down, columns // across, across)
            orders.append(blocks.transpose(1, 2).reshape(-1))
            start += rows * columns
        return orders


def attend(qkv: torch.Tensor, backend: KernelBackend) -> torch.Tensor:
    """Full attention of one image's patches: [n, 3, N, H] queries, keys, values -> [n, N, H].

    torch's own, which is faster, but where bits must not depend on the processor.
    """
    if not backend.portable:
        q, k, v = qkv.permute(1, 2, 0, 3).contiguous().unsqueeze(1)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)
    count, _, num_heads, width = qkv.shape
    num_pages = -(-count // _PAGE_SIZE)
    pages = qkv.new_zeros(num_pages, _PAGE_SIZE, 2, num_heads, width)
    pages.flatten(0, 1)[:count] = qkv[:, 1:]
    inputs = KVCacheInputs(
        blocks=(pages,),
        lookup_table=torch.arange(num_pages, dtype=torch.int32)[None],
        cache_lengths=torch.zeros(1, dtype=torch.int32),
        write_slots=torch.arange(count),
        page_size_tokens=_PAGE_SIZE,
        lengths=(0,),
        row_counts=(count,),
    )
    offsets = torch.tensor((0, count), dtype=torch.int32)
    return paged_attention(
        qkv[:, 0],
        pages,
        plan_attention(inputs, offsets, backend=backend),
        scale=width**-0.5,
        mode="block",
        backend=backend,
    )


def _padded(rows: torch.Tensor, multiple: int) -> torch.Tensor:
    short = -rows.shape[0] % multiple
    return torch.nn.functional.pad(rows, (0, 0, 0, short)) if short else rows
