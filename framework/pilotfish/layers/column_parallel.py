"""ColumnParallelLinear: a product of which every rank makes some outputs and gets all of them.

Knows: which rank has which outputs, and how they come together. Does not know: what they are for.
Axis letters: T packed tokens, K input width, O output width.
"""

from __future__ import annotations

from typing import Any

import torch

from pilotfish.errors import PluginError
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.linear import LinearWeight, linear
from pilotfish.layers.linear import Linear
from pilotfish.parallel.collectives import all_gather_columns
from pilotfish.parallel.group import Group
from pilotfish.parallel.traffic import Collective, PassRows


class ColumnParallelLinear(Linear):
    """whole: the layer in whose place it stands; it was given no tensors. group: of its ranks.

    part: this rank's outputs. out_features: O. Raises PluginError for whoever reads `packed`.
    """

    plan = None  # type: ignore[assignment]

    def __init__(self, whole: Linear, group: Group) -> None:
        shapes = whole.parameter_shapes()
        super().__init__(
            whole.in_features,
            whole.out_features,
            bias="bias" in shapes,
            keep_plain=whole.keep_plain,
        )
        self.group = group
        self.keep_rows(self.group.share(whole.out_features))
        self.out_features = whole.out_features

    def complete(self, tensors: dict[str, Any], backend: KernelBackend) -> None:
        """Packs this rank's outputs."""
        self.part = self._pack(tensors, backend)

    @property
    def packed(self) -> LinearWeight:  # type: ignore[override]
        """No rank has it whole."""
        own = self.group.share(self.out_features)
        raise not_whole("packed", own, "the layer, called with rows and backend")

    def __call__(
        self, x: torch.Tensor, backend: KernelBackend, out_dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """x: [T, K] -> a new [T, O], on every rank."""
        own = linear(x, self.part, backend=backend, out_dtype=out_dtype)
        return all_gather_columns(self.group, own, self.out_features)

    def collectives(self, run: PassRows) -> tuple[Collective, ...]:
        """Every rank's outputs go to all."""
        if self.group.is_alone:
            return ()
        width = len(self.group.share_of(0, self.out_features))
        num_bytes = run.rows * width * run.itemsize
        return (Collective.of("all_gather", self.group.size, num_bytes),)


def not_whole(name: str, own: range, instead: str) -> PluginError:
    """Of a parameter that several ranks share."""
    return PluginError(
        f"{name} is shared by ranks, and this one has rows {own.start} to {own.stop}; wanted "
        f"{instead}, which asks all of them"
    )
