"""ForwardPass: what every layer of one pass shares; made once a pass, thrown away after it.

Knows: angles, the attention plan, where rows go in the caches. Does not know: weights.
Axis letters: T packed tokens (padding included), R rotated width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import torch

from pilotfish.errors import PluginError
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
        by itself (see `invariance.linear_probe`).
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


def pair_of(block: object, made: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What a block returned. Raises PluginError naming the block where it is no pair of tensors."""
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], torch.Tensor):
        return made
    got = [type(each).__name__ for each in made] if isinstance(made, tuple) else type(made).__name__
    raise PluginError(
        f"the block {type(block).__name__} returned {got}; wanted (x, residual): its last "
        "sublayer's output, and the residual stream without it, as the norm that reads their sum "
        "adds them"
    )
