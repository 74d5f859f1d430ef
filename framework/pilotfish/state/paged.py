"""PagedCache: the tensors of one paged cache.

Knows: memory and its layout. Does not know: which page belongs to whom.
Axis letters: L layers, P pages, S tokens in a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pilotfish.errors import StateError
from pilotfish.state.specs import PagedStateSpec


class PagedCache:
    """One paged cache: per layer a tensor `blocks[l]: [P, S, *row_shape]` of the spec's dtype.

    The memory comes uninitialised: a row may be read only after it was written. With `poison`
    every row that nobody may read is NaN (for whole numbers the largest), so that a test sees a
    forbidden read.
    """

    def __init__(
        self,
        spec: PagedStateSpec,
        *,
        num_pages: int,
        page_size_tokens: int,
        device: torch.device | str = "cpu",
        poison: bool = False,
    ) -> None:
        self.spec = spec
        self.num_pages = num_pages
        self.page_size_tokens = page_size_tokens
        self.device = torch.device(device)
        self.poison = poison
        dtype: torch.dtype = getattr(torch, spec.dtype)
        shape = (num_pages, page_size_tokens, *spec.row_shape)
        self.blocks = tuple(
            torch.empty(shape, dtype=dtype, device=self.device) for _ in range(spec.num_layers)
        )
        self.poison_value = float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max
        self.poison_pages(range(num_pages))

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers."""
        return self.num_pages * self.page_size_tokens * self.spec.bytes_per_token

    def poison_pages(self, pages: Sequence[int]) -> None:
        """Overwrites whole pages, when poisoning is on."""
        if self.poison and pages:
            index = torch.tensor(list(pages), device=self.device)
            for block in self.blocks:
                block[index] = self.poison_value

    def poison_rows(self, page: int, start: int, stop: int) -> None:
        """Overwrites rows start to stop of one page, when poisoning is on."""
        if self.poison and start < stop:
            for block in self.blocks:
                block[page, start:stop] = self.poison_value


def make_paged_caches(specs: Sequence[PagedStateSpec], **options: Any) -> dict[str, PagedCache]:
    """One cache a spec, by name. options: as of `PagedCache`. Raises StateError for equal names."""
    made: dict[str, PagedCache] = {}
    for spec in specs:
        if spec.name in made:
            raise StateError(f"two paged caches are named {spec.name!r}; wanted one name each")
        made[spec.name] = PagedCache(spec, **options)
    return made
