"""EmbeddingCache: embeddings of images, kept by the hash of their content within a byte budget.

Knows: digests, tensors and their bytes. Does not know: images, requests or models.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from pilotfish.errors import StateError

if TYPE_CHECKING:
    import torch


class EmbeddingCache:
    """Digest -> [n, D] tensor; the longest unused go first when the budget is full.

    num_bytes is never above max_bytes: a tensor larger than all of the budget is not kept.
    max_bytes: the budget; 0 keeps nothing. hits, misses: of `get`, since it was made.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise StateError(f"max_bytes is {max_bytes}; wanted 0 or more")
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.hits = 0
        self.misses = 0
        self._kept: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._kept

    def get(self, digest: bytes) -> torch.Tensor | None:
        """The embeddings, now the youngest; None when they are not kept."""
        found = self._kept.get(digest)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end(digest)
        return found

    def put(self, digest: bytes, embeddings: torch.Tensor) -> None:
        """Keeps a tensor that has memory of its own; replaces what is kept under the digest."""
        self._drop(digest)
        size = embeddings.numel() * embeddings.element_size()
        if size > self.max_bytes:
            return
        while self.num_bytes + size > self.max_bytes:
            self._drop(next(iter(self._kept)))
        self._kept[digest] = embeddings
        self.num_bytes += size  # no signal parts these lines: Python sees to signals after calls

    def clear(self) -> None:
        """Forgets everything."""
        self._kept, self.num_bytes = OrderedDict(), 0

    def _drop(self, digest: bytes) -> None:
        found = self._kept.get(digest)
        if found is not None:
            size = found.numel() * found.element_size()
            del self._kept[digest]
            self.num_bytes -= size  # nor these
