"""What a model declares of its caches: geometry only, no tensors and no torch.

A paged spec grows by one row a token; a slot spec has one fixed block a request.
"""

from __future__ import annotations

import math
from typing import Any, Self

import attrs

from pilotfish.config.checks import int_at_least, is_int
from pilotfish.errors import ConfigError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "uint8": 1}


def _check_shape(instance: Any, attribute: Any, value: Any) -> None:
    if value is None and attribute.name != "slot_shape":
        return
    if not isinstance(value, tuple) or not all(is_int(size) and size >= 0 for size in value):
        raise ConfigError(
            f"{type(instance).__name__}.{attribute.name} is {value!r}; wanted a tuple of sizes, "
            "as in (64,)"
        )


def _check_dtype(instance: Any, attribute: Any, value: Any) -> None:
    if value not in DTYPE_BYTES:
        raise ConfigError(
            f"{type(instance).__name__}.dtype is {value!r}; wanted one of these names: "
            f"{', '.join(DTYPE_BYTES)}"
        )


@attrs.frozen(kw_only=True)
class PagedStateSpec:
    """A paged cache of the page space: `num_layers` layers, each with one row of `row_shape` a
    token.

    Target and draft share page ids; each paged cache has its own geometry and dtype.
    name: unique among the caches of one engine, e.g. "kv".
    heads_axis: of row_shape, what counts kv heads, which tensor-parallel ranks split; None: every
        rank keeps whole rows.
    """

    name: str
    num_layers: int = attrs.field(validator=int_at_least(0))
    row_shape: tuple[int, ...] = attrs.field(validator=_check_shape)
    dtype: str = attrs.field(validator=_check_dtype)
    heads_axis: int | None = None

    def of_rank(self, num_ranks: int) -> Self:
        """What each of some tensor-parallel ranks keeps: its kv heads, or one where there are fewer
        than ranks.
        """
        if self.heads_axis is None:
            return self
        shape = list(self.row_shape)
        shape[self.heads_axis] = max(1, shape[self.heads_axis] // num_ranks)
        return attrs.evolve(self, row_shape=tuple(shape))

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token takes in this cache, all layers."""
        return self.num_layers * math.prod(self.row_shape) * DTYPE_BYTES[self.dtype]


@attrs.frozen(kw_only=True)
class SlotStateSpec:
    """A cache with one block of `slot_shape` per request and layer, e.g. convolution columns.

    boundary_shape: what a layer keeps of the state at the end of a page, so that a prefix hit can
        start there; None for a cache that keeps nothing, which takes no hits.
    row_shape: what a layer keeps of every row of a pass until it is committed; None for nothing.
    has_channels: whether the last axis of every shape counts channels, which tensor-parallel ranks
        split; else every rank keeps all.
    """

    name: str
    num_layers: int = attrs.field(validator=int_at_least(0))
    slot_shape: tuple[int, ...] = attrs.field(validator=_check_shape)
    boundary_shape: tuple[int, ...] | None = attrs.field(default=None, validator=_check_shape)
    row_shape: tuple[int, ...] | None = attrs.field(default=None, validator=_check_shape)
    dtype: str = attrs.field(validator=_check_dtype)
    has_channels: bool = False

    def of_rank(self, num_ranks: int) -> Self:
        """What each of some tensor-parallel ranks keeps."""
        if not self.has_channels:
            return self
        shapes: dict[str, Any] = {
            name: (*shape[:-1], shape[-1] // num_ranks)
            for name in ("slot_shape", "boundary_shape", "row_shape")
            if (shape := getattr(self, name)) is not None
        }
        return attrs.evolve(self, **shapes)

    @property
    def bytes_per_slot(self) -> int:
        """Bytes that one request takes, all layers."""
        return self._bytes(self.slot_shape)

    @property
    def bytes_per_boundary(self) -> int:
        """Bytes kept at the end of one page, all layers."""
        return self._bytes(self.boundary_shape)

    @property
    def bytes_per_row(self) -> int:
        """Bytes that one row of a pass takes until it is committed, all layers."""
        return self._bytes(self.row_shape)

    def _bytes(self, shape: tuple[int, ...] | None) -> int:
        return 0 if shape is None else self.num_layers * math.prod(shape) * DTYPE_BYTES[self.dtype]


StateSpec = PagedStateSpec | SlotStateSpec


@attrs.frozen(kw_only=True)
class KVCacheParams:
    """Geometry of ordinary keys and values.

    A token's row in a layer is [2, num_kv_heads, head_dim]: its keys, then its values.
    """

    num_layers: int = attrs.field(validator=int_at_least(0))
    num_kv_heads: int = attrs.field(validator=int_at_least(1))
    head_dim: int = attrs.field(validator=int_at_least(1))
    dtype: str = "float32"
    name: str = "kv"

    def of_rank(self, num_ranks: int) -> Self:
        """What each of some tensor-parallel ranks keeps."""
        return attrs.evolve(self, num_kv_heads=max(1, self.num_kv_heads // num_ranks))

    @property
    def spec(self) -> PagedStateSpec:
        """The paged cache these parameters declare."""
        return PagedStateSpec(
            name=self.name,
            num_layers=self.num_layers,
            row_shape=(2, self.num_kv_heads, self.head_dim),
            dtype=self.dtype,
            heads_axis=1,
        )


@attrs.frozen(kw_only=True)
class LatentCacheParams:
    """Geometry of a cache whose heads share one row: a token's row in a layer is [row_width].

    The row is what keys and values are made of, or read as, for every head.
    """

    num_layers: int = attrs.field(validator=int_at_least(0))
    row_width: int = attrs.field(validator=int_at_least(1))
    dtype: str = "float32"
    name: str = "kv"

    def of_rank(self, num_ranks: int) -> Self:
        """What each of some tensor-parallel ranks keeps: whole rows."""
        del num_ranks
        return self

    @property
    def spec(self) -> PagedStateSpec:
        """The paged cache these parameters declare."""
        return PagedStateSpec(
            name=self.name,
            num_layers=self.num_layers,
            row_shape=(self.row_width,),
            dtype=self.dtype,
        )


CacheParams = KVCacheParams | LatentCacheParams
