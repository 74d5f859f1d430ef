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
    """

    def __init__(self, *sources: WeightSource, shown: bool | None = None) -> None:
        self._sources = sources
        self._shown = shown
        self._bar: Any = None

    def __enter__(self) -> Self:
        total = sum(info.num_bytes for one in self._sources for info in one.infos.values())
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
        return source if self._bar is None else _Counted(source, self._bar)


class _Counted:
    """A WeightSource, and a PackedSource, that counts what it hands over."""

    def __init__(self, source: WeightSource, bar: Any) -> None:
        self._source = source
        self._bar = bar

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self._source.infos

    def load(self, name: str) -> torch.Tensor:
        tensor = self._source.load(name)
        self._bar.update(self._source.infos[name].num_bytes)
        return tensor

    def load_packed(self, name: str) -> PackedRows | None:
        source = self._source
        rows = source.load_packed(name) if isinstance(source, PackedSource) else None
        if rows is not None:
            self._bar.update(source.infos[name].num_bytes)
        return rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)
