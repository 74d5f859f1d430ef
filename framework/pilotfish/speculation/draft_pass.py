"""DraftPass: a draft's pass as native calls, laid down once and run in one go.

Knows: where a pass's inputs and results lie. Does not know: what a network computes.
Axis letters: T packed rows, R rows that are wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from pilotfish.kernels.native.buffers import Buffer, Columns, Pointer, Rows
from pilotfish.kernels.take_rows.native import plan_take_rows
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.pass_plan import PassPlan
from pilotfish.speculation.draft_model import DraftNetwork

_WANTED = Pointer("wanted")


class DraftPass:
    """Base; a subclass plans the network's layers with `layers`, then calls `finish`.

    network: its weights are there. dtype: of rows between layers. cache_dtype: of pages.
    """

    def __init__(
        self, network: DraftNetwork, *, dtype: torch.dtype, cache_dtype: torch.dtype
    ) -> None:
        self.layers = PassPlan(
            rotary=network.rotary, dtype=dtype, cache_dtype=cache_dtype, backend=network.backend
        )
        self._wanted = Rows("R")

    def take(self, rows: Buffer) -> Buffer:
        """Plans [T, *] -> [R, *]: the rows that are wanted."""
        return plan_take_rows(self.layers.plan, rows, _WANTED, self._wanted)

    def finish(self, inputs: Sequence[Columns], results: Sequence[Buffer | None] = ()) -> None:
        """No more layers. inputs, results: in the order of `run`."""
        plan, self._inputs, self._results = self.layers.plan, inputs, results
        plan.fill(*dict.fromkeys(columns.buffer for columns in inputs))
        plan.read(*(buffer for buffer in results if buffer is not None))
        self._calls = plan.finish()

    @property
    def num_torch_steps(self) -> int:
        """What of a pass is no native call."""
        return self._calls.num_torch_steps

    def run(
        self,
        current: ForwardPass,
        inputs: Sequence[torch.Tensor],
        wanted: Sequence[int] = (),
        addresses: Mapping[str, int] | None = None,
    ) -> list[torch.Tensor | None]:
        """inputs: each [T, width]. wanted: [R]. addresses: of pointers that the layers ask beside.

        Returns copies of the results, None for None.
        """
        calls, index = self._calls, torch.tensor(wanted, dtype=torch.int64)
        calls.begin({self.layers.rows: current.num_rows, self._wanted: len(wanted)})
        for columns, rows in zip(self._inputs, inputs, strict=True):
            columns.of(calls.tensor(columns.buffer)).copy_(rows)
        self.layers.run(calls, current, {_WANTED.name: index.data_ptr(), **(addresses or {})})
        return [None if one is None else calls.tensor(one).clone() for one in self._results]
