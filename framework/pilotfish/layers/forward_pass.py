"""ForwardPass: what every layer of one pass shares; made once a pass, thrown away after it.

Knows: angles, the attention plan, where rows go in the caches. Does not know: weights.
Axis letters: T packed tokens (padding included), R rotated width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch

from pilotfish.kernels import KernelBackend

if TYPE_CHECKING:
    from pilotfish.kernels.paged_attention import AttentionPlan
    from pilotfish.state import SlotInputs


def _contiguous(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous()


@attrs.frozen(kw_only=True)
class ForwardPass:
    """One pass over a padded ragged batch.

    cos, sin: [T, R] float32, each row's angles.
    plan: which keys each row may see. caches: per layer, the pages keys and values lie in.
    write_slots: [rows] int64, where the keys and values of the real rows go.
    slots: this pass's views of the caches without pages.
    row_multiple: T is a multiple of it, and so must be any part of the rows that a layer multiplies
        by itself (see `kernels.linear.row_multiple`).
    """

    backend: KernelBackend
    cos: torch.Tensor = attrs.field(converter=_contiguous)
    sin: torch.Tensor = attrs.field(converter=_contiguous)
    plan: AttentionPlan
    caches: tuple[torch.Tensor, ...]
    write_slots: torch.Tensor = attrs.field(converter=_contiguous)
    slots: tuple[SlotInputs, ...] = ()
    row_multiple: int = 1

    @property
    def num_rows(self) -> int:
        """Rows of the pass that are no padding: the first ones."""
        return self.write_slots.shape[0]
