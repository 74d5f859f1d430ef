"""EaglePass: an EAGLE draft's pass as native calls.

Knows: which inputs each version has. Does not know: what the network computes.
Axis letters: T packed rows, R rows that are wanted, D draft width, F features of the target.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pilotfish.kernels.native.buffers import Columns
from pilotfish.kernels.rms_norm.native import plan_add_scaled
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.speculation.draft_pass import DraftPass
from pilotfish_eagle.network import EagleNetwork, LastRows


class EaglePass(DraftPass):
    """combines: what stands beside a token goes through `EagleNetwork.combine`; else it is D wide.

    dtype: of rows and pages.
    """

    def __init__(self, network: EagleNetwork, *, combines: bool, dtype: torch.dtype) -> None:
        super().__init__(network, dtype=dtype, cache_dtype=dtype)
        run, fc = self.layers, network.fc
        width = fc.out_features
        beside = fc.in_features if combines else width
        inputs: tuple[Columns, Columns]
        if network.is_third:
            embedded, hidden = run.buffer(width), run.buffer(beside)
            inputs = embedded.columns(), hidden.columns()
            if combines:
                hidden = network.plan_combine(run, hidden)
            ends = network.plan(run, embedded, hidden)
        else:
            both = run.buffer(width + beside)
            inputs = both.columns(0, width), both.columns(width)
            ends = network.plan_joined(run, both)
        x, residual = map(self.take, ends)
        whole = plan_add_scaled(run.plan, residual, x, 1.0)
        normed = None if network.norm is None else run.norm(network.norm, whole)
        head = network.lm_head
        self.finish(
            inputs, (whole, normed, None if head is None else run.linear(head, normed or whole))
        )

    def __call__(
        self, embedded: torch.Tensor, beside: torch.Tensor, run: ForwardPass, wanted: Sequence[int]
    ) -> LastRows:
        """embedded: [T, D]. beside: [T, D] or [T, F]. wanted: [R]."""
        whole, normed, logits = self.run(run, (embedded, beside), wanted)
        assert whole is not None
        return LastRows(whole, normed, logits)
