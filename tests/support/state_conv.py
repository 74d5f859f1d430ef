"""A real convolution cache beside the toys of the state machine, fed by the real kernel.

Every column is a hash of all keys up to it, so a column of another row, of a rejected token or of
another request can not look right; every output of the kernel is compared to a naive sum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import attrs
import torch
from hypothesis import strategies as st

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.short_conv import ConvColumns, short_conv
from pilotfish.state import KVCacheInputs
from pilotfish_lfm2.cache import ConvStateCache

LAYERS = 2


@attrs.frozen(kw_only=True)
class ConvShape:
    """width: columns in a sum. rows_in_place: of a slot. max_slots: live requests at once."""

    width: int
    rows_in_place: int
    max_slots: int


def conv_shapes() -> st.SearchStrategy[ConvShape | None]:
    """So few rows in place that many passes need memory of their own; seldom no cache at all."""
    shapes = st.builds(
        ConvShape,
        width=st.sampled_from((3, 1, 2, 4)),
        rows_in_place=st.sampled_from((4, 1, 2, 8)),
        max_slots=st.sampled_from((6, 3)),
    )
    return st.one_of(shapes, shapes, shapes, st.none())


@attrs.frozen(kw_only=True)
class FedRows:
    """Rows of one request in a pass. history: all keys up to the last of them."""

    salt: bytes
    history: Sequence[int]
    count: int


def column_value(salt: bytes, history: Sequence[int]) -> float:
    """What a row's column holds: small, so that weighted sums are exact in float32."""
    digest = hashlib.sha256(salt + b"/" + ",".join(map(str, history)).encode()).digest()
    return float(1 + int.from_bytes(digest[:2], "big") % 5000)


class ConvSide:
    """The cache, and what its columns and the kernel's sums must be."""

    def __init__(self, shape: ConvShape, num_pages: int) -> None:
        self.shape = shape
        self.cache = ConvStateCache(
            LAYERS,
            1,
            shape.width,
            torch.float32,
            shape.max_slots,
            "cpu",
            cache_name="kv",
            rows_in_place=shape.rows_in_place,
            num_pages=num_pages,
            poison=True,
        )
        self.weight = torch.tensor([[2.0 * j + 1] for j in range(shape.width)])

    def is_full(self, num_live: int) -> bool:
        """Whether another claim must be refused."""
        return num_live >= self.shape.max_slots

    def columns(self, salt: bytes, keys: Sequence[int], stop: int) -> list[float]:
        """The columns that row stop - 1 sums up, oldest first; zeros before the first row."""
        start = stop - self.shape.width
        return [column_value(salt, keys[: i + 1]) if i >= 0 else 0.0 for i in range(start, stop)]

    def run(self, inputs: KVCacheInputs, rows: Sequence[FedRows]) -> None:
        """One pass of every layer; layer l's columns are l + 1 times the first one's."""
        (view,) = inputs.slots
        assert isinstance(view, ConvColumns)
        values, sums = [], []
        for fed in rows:
            for stop in range(len(fed.history) - fed.count + 1, len(fed.history) + 1):
                seen = self.columns(fed.salt, fed.history, stop)
                values.append(seen[-1])
                sums.append(sum((2.0 * j + 1) * value for j, value in enumerate(seen)))
        for layer in range(LAYERS):
            x = torch.tensor(values).view(-1, 1) * (layer + 1)
            bcx = torch.cat((torch.ones_like(x), torch.ones_like(x), x), dim=1)
            out = short_conv(bcx, self.weight, None, view, layer, backend=KernelBackend())
            assert out.view(-1).tolist() == [one * (layer + 1) for one in sums]

    def check(self, name: str, salt: bytes, keys: Sequence[int]) -> None:
        """Its committed columns are those of its committed keys, whatever happened before."""
        assert self.cache.num_committed(name) == len(keys)
        # The oldest column of a state is read by no later row.
        wanted = self.columns(salt, keys, len(keys))[1:]
        for layer, state in enumerate(self.cache.get_states([name])):
            assert state[0, 0, 1:].tolist() == [(layer + 1) * value for value in wanted]

    def kept_pages(self, num_pages: int) -> set[int]:
        """Pages at whose end columns are kept."""
        return {page for page in range(num_pages) if self.cache.restorable(page)}
