"""DeferredTensor: a parameter whose bytes are mapped and not read yet.

Knows: what it will look like, and how to read it. Does not know: files or layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    import torch


@attrs.frozen(eq=False)
class DeferredTensor:
    """shape: of the tensor. read: makes it, the caller's own; drop the record with the result, or
    the mapping lives beside it.
    """

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]
