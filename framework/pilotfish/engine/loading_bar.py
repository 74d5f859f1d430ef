"""LoadingBar: a bar on the terminal while weights are read.

Knows: how many bytes of a checkpoint were handed over. Does not know: who takes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pilotfish.engine.progress import open_bar
from pilotfish.weights.source import TensorInfo, WeightSource
from pilotfish.weights.stored_rows import PackedSource

if TYPE_CHECKING:
    import torch

    from pilotfish.kernels.linear.weight import PackedRows


class LoadingBar:
    """Counts the bytes of weights that are read, on stderr, and leaves nothing behind.

    sources: those that will be read. A context manager. shown: as of Progress.
    bytes_read: of each tensor of the first source, for a rank that reads a part of it; None: all.
    """

    def __init__(
        self,
        *sources: WeightSource,
        bytes_read: Mapping[str, int] | None = None,
        shown: bool | None = None,
    ) -> None:
        self._sizes = [
            (one, {name: info.num_bytes for name, info in one.infos.items()}) for one in sources
        ]
        if bytes_read is not None:
            self._sizes[0][1].update({name: bytes_read.get(name, 0) for name in self._sizes[0][1]})
        self._shown = shown
        self._bar: Any = None

    def __enter__(self) -> Self:
        total = sum(sum(sizes.values()) for _, sizes in self._sizes)
        self._bar = open_bar(
            self._shown, total=total, desc="loading", unit="B", unit_scale=True, unit_divisor=1000
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def counted(self, source: WeightSource) -> WeightSource:
        """The source, watched while it is read."""
        if self._bar is None:
            return source
        return _Counted(source, self._bar, next(s for one, s in self._sizes if one is source))


class _Counted:
    """A WeightSource, and a PackedSource, that counts what it hands over.

    sizes: bytes of each tensor.
    """

    def __init__(self, source: WeightSource, bar: Any, sizes: Mapping[str, int]) -> None:
        self._source = source
        self._bar = bar
        self._sizes = sizes

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self._source.infos

    def load(self, name: str) -> torch.Tensor:
        tensor = self._source.load(name)
        self._bar.update(self._sizes[name])
        return tensor

    def load_packed(self, name: str) -> PackedRows | None:
        source = self._source
        rows = source.load_packed(name) if isinstance(source, PackedSource) else None
        if rows is not None:
            self._bar.update(self._sizes[name])
        return rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)
