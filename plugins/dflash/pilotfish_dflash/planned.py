"""The draft's two passes as native calls.

Knows: their inputs and results. Does not know: what layers compute, or requests.
Axis letters: T packed rows, R rows that are wanted, D draft width, F features of the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof, c_void_p
from typing import TYPE_CHECKING

import torch

from pilotfish.kernels.native.buffers import Pointer
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.speculation.draft_pass import DraftPass

if TYPE_CHECKING:
    from pilotfish_dflash.network import DFlashLlama3

_CACHES = Pointer("context_caches")


class ContextPass(DraftPass):
    """fc, its norm, and keys and values of all layers."""

    def __init__(self, network: DFlashLlama3) -> None:
        super().__init__(network, dtype=network.dtype, cache_dtype=network.dtype)
        run = self.layers
        features = run.buffer(network.fc.in_features)
        rows = run.norm(network.hidden_norm, run.linear(network.fc, features))
        network.context.plan(run, rows, _CACHES)
        self.finish([features.columns()])

    def __call__(self, features: torch.Tensor, run: ForwardPass) -> None:
        """features: [T, F]."""
        caches = (c_void_p * len(run.caches))(*(cache.data_ptr() for cache in run.caches))
        self.run(run, [features], addresses={_CACHES.name: addressof(caches)})


class BlockPass(DraftPass):
    """The blocks, and the draft's norm of the rows that are wanted."""

    def __init__(self, network: DFlashLlama3) -> None:
        super().__init__(network, dtype=network.dtype, cache_dtype=network.dtype)
        run = self.layers
        entering = run.buffer(network.fc.out_features)
        x, residual = entering, None
        for layer in network.layers:
            x, residual = run.block(layer, x, residual)
        taken = None if residual is None else self.take(residual)
        normed, _ = run.add_norm(network.norm, self.take(x), taken, 1.0)
        self.finish([entering.columns()], [normed])

    def __call__(self, rows: torch.Tensor, run: ForwardPass, wanted: Sequence[int]) -> torch.Tensor:
        """rows: [T, D]. wanted: [R]. Returns a new [R, D]."""
        [normed] = self.run(run, [rows], wanted)
        assert normed is not None
        return normed
