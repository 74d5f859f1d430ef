"""ConvStateCache: the columns of the short convolutions of every live request.

Knows: which columns a request's next row reads, after any history of passes and commits. Does not
know: models, pages' owners or the maths.
Letters: L conv layers, D model width, W conv_kernel, M columns of memory, C columns in a ring.

A request's slot is a ring of C = W + rows_in_place columns per layer. Its last W committed columns
begin at `first`; the rows of a pass write behind them, and a commit of `a` rows moves `first` by
`a`: no column is copied, and rejected ones are overwritten later. A pass of more rows than the ring
takes has memory of its own, W + n columns, from which the commit copies W back.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import torch

from pilotfish.errors import StateError
from pilotfish.kernels.short_conv import ColumnRun, ConvColumns
from pilotfish.state import SlotPool


@attrs.define
class _Columns:
    """One request. base: first column of its ring; first: where in the ring its window begins.

    strip: [L, W + n, D], the window and n reserved rows, where the ring is too small for them.
    """

    base: int
    first: int = 0
    num_committed: int = 0
    num_reserved: int = 0
    strip: torch.Tensor | None = None


class ConvStateCache:
    """Slots of convolution columns; a `SlotCache`.

    num_conv_layers, hidden_size, conv_kernel: L, D and W. max_slots: requests at once.
    cache_name: the paged cache whose passes read it. rows_in_place: rows of a pass that a slot
    takes.
    num_pages: pages at whose ends columns may be kept; 0 keeps none.
    poison: fill what nobody may read with NaN.

    memory: [L, M, D] with M = max_slots * C; slot s has columns s * C to (s + 1) * C.
    A state, as `get_states` and `update_states` give and take it, is [N, D, W]: the last W columns,
    newest last. The oldest of them is read by no later row, and is 0 after a prefix hit.
    """

    def __init__(  # noqa: PLR0917
        self,
        num_conv_layers: int,
        hidden_size: int,
        conv_kernel: int,
        dtype: torch.dtype,
        max_slots: int,
        device: torch.device | str,
        *,
        cache_name: str = "kv",
        rows_in_place: int = 32,
        num_pages: int = 0,
        poison: bool = False,
    ) -> None:
        self.width = conv_kernel
        self.ring = conv_kernel + rows_in_place
        self.cache_name = cache_name
        self.rows_in_place = rows_in_place
        self.poison = poison
        self.device = torch.device(device)
        self.slots = SlotPool(max_slots)
        self.memory = torch.empty(
            (num_conv_layers, max_slots * self.ring, hidden_size), dtype=dtype, device=self.device
        )
        self.kept = torch.empty(
            (num_conv_layers, num_pages, conv_kernel - 1, hidden_size),
            dtype=dtype,
            device=self.device,
        )
        self._layers = self.memory.unbind(0)
        self._is_kept = bytearray(num_pages)
        self._requests: dict[str, _Columns] = {}
        if poison:
            self.memory.fill_(torch.nan)
            self.kept.fill_(torch.nan)

    # The lifecycle

    def claim(self, request_id: str) -> None:
        """Gives a request a slot of zeros.

        Raises StateError when it has one, OutOfSlotsError when none is free.
        """
        base = self.slots.claim(request_id) * self.ring
        self._requests[request_id] = _Columns(base)
        self.memory[:, base : base + self.width] = 0

    def reserve(self, request_id: str, num_tokens: int) -> None:
        """Makes room for n rows after the committed ones; drops rows that were not committed."""
        request = self._request(request_id)
        strip = None
        if num_tokens > self.rows_in_place:
            num_layers, _, size = self.memory.shape
            strip = self.memory.new_empty((num_layers, self.width + num_tokens, size))
            if self.poison:
                strip.fill_(torch.nan)
            strip[:, : self.width] = self._window(request)
        request.strip, request.num_reserved = strip, num_tokens

    def commit(self, request_id: str, num_tokens: int) -> None:
        """Selects the window that ends at row `num_tokens` of the reserved ones.

        Raises StateError when fewer were reserved.
        """
        request = self._request(request_id)
        if not 0 <= num_tokens <= request.num_reserved:
            raise StateError(
                f"cannot commit {num_tokens} rows of request {request_id!r}: "
                f"{request.num_reserved} are reserved; reserve them first"
            )
        if request.strip is None:
            request.first = (request.first + num_tokens) % self.ring
        elif num_tokens:
            window = request.strip[:, num_tokens : num_tokens + self.width]
            self._set_window(request, window)
        request.strip, request.num_reserved = None, 0
        request.num_committed += num_tokens
        if self.poison:
            self._poison_all_but_window(request)

    def release(self, request_id: str) -> None:
        """Takes the slot back. Raises StateError when the request has none."""
        self.slots.release(request_id)
        request = self._requests.pop(request_id)
        if self.poison:
            self.memory[:, request.base : request.base + self.ring] = torch.nan

    def num_committed(self, request_id: str) -> int:
        """Rows that count."""
        return self._request(request_id).num_committed

    # Prefix hits

    def restorable(self, page: int) -> bool:
        """Whether the columns before the end of `page` are kept."""
        return bool(self._is_kept) and bool(self._is_kept[page])

    def restore(self, request_id: str, page: int, num_tokens: int) -> None:
        """Puts a request, claimed and empty, at the boundary that ends `page`.

        Raises StateError when nothing is kept for the page.
        """
        request = self._request(request_id)
        if not self.restorable(page):
            raise StateError(f"nothing is kept at the end of page {page}: ask `restorable` first")
        self.memory[:, request.base + 1 : request.base + self.width] = self.kept[:, page]
        request.num_committed = num_tokens

    def keep(self, request_id: str, page: int, num_tokens: int) -> None:
        """Keeps the W - 1 columns before row `num_tokens`, if they are still here."""
        request = self._request(request_id)
        # Where in the window and the rows after it the kept columns begin.
        begin = num_tokens - request.num_committed + 1
        if not self._is_kept or self._is_kept[page] or begin < 0:
            return
        self.kept[:, page] = self._columns(request, begin, self.width - 1)
        self._is_kept[page] = 1

    def forget(self, page: int) -> None:
        """Drops what is kept for a page, if anything is."""
        if self._is_kept:
            self._is_kept[page] = 0
            if self.poison:
                self.kept[:, page] = torch.nan

    def clear(self) -> None:
        """Takes every slot back and drops all that is kept, whatever was left half done."""
        self.slots.clear()
        self._requests.clear()
        self._is_kept = bytearray(len(self._is_kept))
        if self.poison:
            self.memory.fill_(torch.nan)
            self.kept.fill_(torch.nan)

    # What a pass needs

    def inputs(
        self,
        cache_name: str,
        request_ids: Sequence[str],
        row_counts: Sequence[int],
        skip: Sequence[int] | None = None,
    ) -> ConvColumns | None:
        """The places of the columns of one pass; None for a pass over another paged cache.

        row_counts: [B], rows of this pass. skip: [B], rows of earlier passes that are reserved and
        not committed yet.
        """
        if cache_name != self.cache_name:
            return None
        width, ring = self.width, self.ring
        places: list[int] = []
        columns: list[int] = []
        rows: list[int] = []
        runs: list[ColumnRun] = []
        first_row = 0
        for b, (request_id, count) in enumerate(zip(request_ids, row_counts, strict=True)):
            request = self._request(request_id)
            # Row i of the reservation owns column W + i, counted from the window's first.
            start = 1 + (skip[b] if skip is not None else 0)
            if request.strip is not None:
                if count:
                    memory = request.strip.unbind(0)
                    runs.append(
                        ColumnRun(memory=memory, first_row=first_row, num_rows=count, start=start)
                    )
            else:
                base, start = request.base, request.first + start
                for i in range(start, start + count):
                    columns += [base + j % ring for j in range(i, i + width)]
                places += range(count)
                rows += range(first_row, first_row + count)
            first_row += count
        count = len(rows)
        packed = np.array([*columns, *columns[width - 1 :: width], *rows, *places], dtype=np.int64)
        sent = torch.from_numpy(packed).to(self.device, non_blocking=True)
        end = count * width
        return ConvColumns(
            memory=self._layers,
            columns=sent[:end].view(count, width),
            own=sent[end : end + count],
            rows=sent[end + count : end + 2 * count] if runs else None,
            places=sent[end + 2 * count :],
            runs=tuple(runs),
            row_counts=tuple(row_counts),
            ring=ring,
        )

    # States as tensors

    def get_states(self, request_ids: Sequence[str]) -> list[torch.Tensor]:
        """The committed state of some requests: per layer a new [N, D, W]."""
        windows = [self._window(self._request(request_id)) for request_id in request_ids]
        if not windows:
            return list(self.memory.new_empty((self.memory.shape[0], 0, *self._state_shape)))
        return list(torch.stack(windows, dim=1).transpose(2, 3).contiguous())

    def update_states(self, request_ids: Sequence[str], new_states: Sequence[torch.Tensor]) -> None:
        """Overwrites the state of some requests, whose lengths stay and which reserved no rows.

        new_states: per layer [N, D, W]. Raises StateError when a shape does not fit or a request
        has rows that are not committed.
        """
        shape = (len(request_ids), *self._state_shape)
        shapes = [tuple(state.shape) for state in new_states]
        if shapes != [shape] * self.memory.shape[0]:
            raise StateError(
                f"the new states are {shapes}; wanted {self.memory.shape[0]} layers of {shape}"
            )
        requests = [self._request(request_id) for request_id in request_ids]
        for request_id, request in zip(request_ids, requests, strict=True):
            if request.num_reserved:
                raise StateError(
                    f"request {request_id!r} has {request.num_reserved} rows that are not "
                    "committed; commit them first"
                )
        for layer, state in zip(self._layers, new_states, strict=True):
            for window, request in zip(state.transpose(1, 2), requests, strict=True):
                layer[request.base : request.base + self.width] = window
        for request in requests:
            request.first = 0

    # Parts

    @property
    def _state_shape(self) -> tuple[int, int]:
        return self.memory.shape[2], self.width

    def _request(self, request_id: str) -> _Columns:
        try:
            return self._requests[request_id]
        except KeyError:
            raise StateError(f"request {request_id!r} is not claimed; claim it first") from None

    def _window(self, request: _Columns) -> torch.Tensor:
        """[L, W, D], its last W committed columns."""
        return self._ring_columns(request, 0, self.width)

    def _columns(self, request: _Columns, begin: int, count: int) -> torch.Tensor:
        """[L, count, D], counted from the window's first column; reserved rows included."""
        if request.strip is not None:
            return request.strip[:, begin : begin + count]
        return self._ring_columns(request, begin, count)

    def _ring_columns(self, request: _Columns, begin: int, count: int) -> torch.Tensor:
        start = (request.first + begin) % self.ring
        if start + count <= self.ring:
            return self.memory[:, request.base + start : request.base + start + count]
        wanted = [request.base + i % self.ring for i in range(start, start + count)]
        return self.memory[:, wanted]

    def _set_window(self, request: _Columns, window: torch.Tensor) -> None:
        request.first = 0
        self.memory[:, request.base : request.base + self.width] = window

    def _poison_all_but_window(self, request: _Columns) -> None:
        start, stop = request.first + self.width, request.first + self.ring
        others = [request.base + i % self.ring for i in range(start, stop)]
        self.memory[:, others] = torch.nan
