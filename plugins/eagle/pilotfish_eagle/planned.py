"""EaglePass: a draft's pass as native calls, laid down once and run in one go.

Knows: where a pass's inputs and results lie. Does not know: what the network computes.
Axis letters: T packed rows, R rows that are wanted, D draft width, F features of the target.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.native.buffers import Buffer, Pointer, Rows
from pilotfish.kernels.rms_norm.native import plan_add_scaled
from pilotfish.kernels.take_rows.native import plan_take_rows
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.pass_plan import PassPlan
from pilotfish_eagle.network import EagleNetwork, LastRows

_WANTED = Pointer("wanted")


class EaglePass:
    """network: its weights are there. width: D. beside: the width of what stands beside a token.

    combines: that is features which go through `EagleNetwork.combine`, [T, F].
    """

    def __init__(
        self,
        network: EagleNetwork,
        backend: KernelBackend,
        *,
        width: int,
        beside: int,
        combines: bool,
        dtype: torch.dtype,
        cache_dtype: torch.dtype,
    ) -> None:
        run = self._run = PassPlan.empty(
            rotated=network.rotary.parameters.rotary_dim,
            dtype=dtype,
            cache_dtype=cache_dtype,
            backend=backend,
        )
        self._wanted = Rows("R")
        self._width = width
        self._inputs: tuple[Buffer, ...]
        if network.is_third:
            embedded, hidden = self._inputs = run.buffer(width), run.buffer(beside)
            if combines:
                hidden = network.plan_combine(run, hidden)
            ends = network.plan(run, embedded, hidden)
        else:
            (both,) = self._inputs = (run.buffer(width + beside),)
            ends = network.plan_joined(run, both)
        run.plan.fill(*self._inputs)
        x, residual = (plan_take_rows(run.plan, rows, _WANTED, self._wanted) for rows in ends)
        self._whole = plan_add_scaled(run.plan, residual, x, 1.0)
        self._normed: Buffer | None = None
        self._logits: Buffer | None = None
        if network.norm is not None:
            self._normed = run.norm(network.norm, self._whole)
        if network.lm_head is not None:
            self._logits = run.linear(network.lm_head, self._normed or self._whole)
        made = (self._whole, self._normed, self._logits)
        run.plan.read(*(buffer for buffer in made if buffer is not None))
        self._calls = run.plan.finish()

    @property
    def num_torch_steps(self) -> int:
        """What of a pass is no native call."""
        return self._calls.num_torch_steps

    def __call__(
        self, embedded: torch.Tensor, beside: torch.Tensor, run: ForwardPass, wanted: Sequence[int]
    ) -> LastRows:
        """embedded: [T, D]. beside: [T, D] or [T, F]. wanted: [R]."""
        calls, index = self._calls, torch.tensor(wanted, dtype=torch.int64)
        calls.begin({self._run.rows: run.num_rows, self._wanted: len(wanted)})
        first, *others = (calls.tensor(buffer) for buffer in self._inputs)
        first[:, : self._width].copy_(embedded)
        (others[0] if others else first[:, self._width :]).copy_(beside)
        self._run.run(calls, run, {"wanted": index.data_ptr()})
        normed, logits = (
            None if buffer is None else calls.tensor(buffer).clone()
            for buffer in (self._normed, self._logits)
        )
        return LastRows(calls.tensor(self._whole).clone(), normed, logits)
