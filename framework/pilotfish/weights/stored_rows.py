"""StoredRows: a matrix whose rows are used as the file has them, where they lie.

Knows: which tensors can be used so, parts of several kinds under one another, and where they may be
cut. Does not know: file formats, or how rows are multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import attrs

from pilotfish.errors import ConfigError
from pilotfish.weights.formats.gguf_blocks import BLOCK_TYPES, dequantize
from pilotfish.weights.source import TensorInfo

if TYPE_CHECKING:
    import torch

    from pilotfish.kernels.linear.weight import PackedRows
    from pilotfish.parallel.shard import Shard

FLOAT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Kinds of plain numbers that are multiplied as they are, and the bytes of each."""
PACKED_KINDS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
"""Kinds of blocks that are multiplied as they are."""
_BLOCKS = {kind.name: kind for kind in BLOCK_TYPES.values()}


@attrs.frozen(eq=False)
class StoredRows:
    """shape: (O, K). dtype: the run's, of rows that are multiplied with it or looked up in it.

    parts: rows that follow one another, packed or of a float dtype that need not be the run's.
    Their memory is the mapped file's, or shared: nobody writes to it.
    """

    shape: tuple[int, int]
    parts: tuple[PackedRows, ...]
    dtype: torch.dtype

    @property
    def plain(self) -> torch.Tensor | None:
        """The whole as one contiguous tensor of the run's dtype, where that is what it is."""
        first, *others = self.parts
        if others or first.blocks.dtype != self.dtype or not first.blocks.is_contiguous():
            return None
        return first.blocks

    def shard(self, shard: Shard) -> StoredRows:
        """What a rank holds of it, where it lies. Raises ConfigError as `check_columns`."""
        if shard.axis == 0:
            parts = cut_rows(self.parts, shard.ranges)
        else:
            parts = [cut_columns(part, shard.ranges, "a weight") for part in self.parts]
        rows, columns = shard.shape(self.shape)
        return StoredRows((rows, columns), tuple(parts), self.dtype)


@runtime_checkable
class PackedSource(Protocol):
    """A WeightSource that may have packed tensors."""

    def load_packed(self, name: str) -> PackedRows | None:
        """One tensor's rows, mapped; None where it is not packed, or no matrix. Raises KeyError."""
        ...


def stays_stored(info: TensorInfo, dtype: str) -> bool:
    """Whether a tensor of the file is used as it is by a layer that takes StoredRows.

    dtype: the run's. Packed matrices are, and floats unless the run's are narrower: then fewer
    bytes were asked for.
    """
    if len(info.shape) != 2:
        return False
    if info.dtype in PACKED_KINDS:
        return True
    return 0 < FLOAT_BYTES.get(info.dtype, 0) <= FLOAT_BYTES[dtype]


def held_rows(lengths: Sequence[int], ranges: Sequence[range]) -> list[list[tuple[int, range]]]:
    """What ranges of rows take of pieces that lie under one another, for each piece.

    lengths: the rows of each piece. Returns (the place of the first among all rows that are taken,
    which of the piece's own rows) of each stretch.
    """
    found: list[list[tuple[int, range]]] = [[] for _ in lengths]
    place = 0
    for one in ranges:
        start = 0
        for piece, length in zip(found, lengths, strict=True):
            first, end = max(one.start, start), min(one.stop, start + length)
            if first < end:
                piece.append((place, range(first - start, end - start)))
                place += end - first
            start += length
    return found


def cut_rows(parts: Sequence[PackedRows], ranges: Sequence[range]) -> list[PackedRows]:
    """Some rows of parts that lie under one another, in the order of the ranges; views."""
    held = held_rows([part.out_features for part in parts], ranges)
    placed = [
        (place, _some_rows(part, rows))
        for part, stretches in zip(parts, held, strict=True)
        for place, rows in stretches
    ]
    return [part for _, part in sorted(placed, key=lambda one: one[0])]


def cut_columns(rows: PackedRows, ranges: Sequence[range], name: str) -> PackedRows:
    """Some columns of all rows: a view where they lie side by side and have no scale beside them.

    name: the tensor's, for the message. Raises ConfigError as `check_columns`.
    """
    from pilotfish.parallel.shard import Shard

    width, scale = rows.in_features, rows.scale
    block = block_columns(rows.kind) if scale is None else width // scale.shape[1]
    check_columns(name, rows.kind, block, ranges)

    def cut(table: torch.Tensor) -> torch.Tensor:
        size = table.shape[1]
        taken = (range(r.start * size // width, r.stop * size // width) for r in joined(ranges))
        return Shard.columns(*taken).of(table)

    blocks = cut(rows.blocks)
    if scale is not None:  # native code finds a row's scales by its place: both must be dense
        blocks, scale = blocks.contiguous(), cut(scale).contiguous()
    return attrs.evolve(rows, blocks=blocks, scale=scale, in_features=sum(map(len, ranges)))


def check_columns(name: str, kind: str, block: int, ranges: Sequence[range]) -> None:
    """Raises ConfigError where a range does not begin and end at whole blocks of columns."""
    for one in ranges:
        if one.start % block or one.stop % block:
            raise ConfigError(
                f"{name} is {kind.upper()}, in blocks of {block} columns; got a slice of columns "
                f"{one.start} to {one.stop}, wanted whole blocks: choose another tensor_parallel "
                "or reduction_slices, or a file of another kind"
            )


def block_columns(kind: str) -> int:
    """Columns of a block of a kind ("q4_k", "Q4_K"); 1 for plain numbers."""
    found = _BLOCKS.get(kind.upper())
    return 1 if found is None else found.size


def joined(ranges: Sequence[range]) -> list[range]:
    """The same, with ranges that follow one another as one."""
    found: list[range] = []
    for one in ranges:
        if found and found[-1].stop == one.start:
            found[-1] = range(found[-1].start, one.stop)
        else:
            found.append(one)
    return found


def numbers_of(rows: PackedRows) -> torch.Tensor:
    """The numbers that rows stand for: float32 of packed ones, else the very tensor."""
    if rows.kind.upper() not in PACKED_KINDS:
        return rows.blocks
    data = rows.blocks.contiguous().view(-1)
    return dequantize(data, _BLOCKS[rows.kind.upper()]).view(-1, rows.in_features)


def _some_rows(part: PackedRows, rows: range) -> PackedRows:
    taken = slice(rows.start, rows.stop)
    scale = None if part.scale is None else part.scale[taken]
    return attrs.evolve(part, blocks=part.blocks[taken], scale=scale)
