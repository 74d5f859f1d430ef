"""The draft's two passes as native calls, laid down once and run in one go.

Knows: where a pass's inputs and results lie. Does not know: what layers compute, or requests.
Axis letters: T packed rows, R rows that are wanted, D draft width, F features of the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof, c_void_p
from typing import TYPE_CHECKING

import torch

from pilotfish.kernels.native.buffers import Buffer, Pointer, Rows
from pilotfish.kernels.native.numbers import address_of
from pilotfish.kernels.take_rows.native import plan_take_rows
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.pass_plan import PassPlan
from pilotfish.state import KVCacheInputs

if TYPE_CHECKING:
    from pilotfish_dflash.network import DFlashLlama3

_WANTED, _CACHES = Pointer("wanted"), Pointer("context_caches")


class ContextPass:
    """fc, its norm, and keys and values of all layers. network: its weights are there."""

    def __init__(
        self, network: DFlashLlama3, *, dtype: torch.dtype, cache_dtype: torch.dtype
    ) -> None:
        run = self._run = _empty(network, dtype, cache_dtype)
        self._features = run.buffer(network.fc.packed.in_features)
        rows = run.norm(network.hidden_norm, run.linear(network.fc, self._features))
        network.context.plan(run, rows, _CACHES)
        run.plan.fill(self._features)
        self._calls = run.plan.finish()

    @property
    def num_torch_steps(self) -> int:
        """What of a pass is no native call."""
        return self._calls.num_torch_steps

    def __call__(
        self, features: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], kv: KVCacheInputs
    ) -> None:
        """features: [T, F]. angles: cos and sin, each [T, rotated] float32."""
        calls, num_rows = self._calls, features.shape[0]
        caches = (c_void_p * len(kv.blocks))(*(cache.data_ptr() for cache in kv.blocks))
        calls.begin({self._run.rows: num_rows})
        calls.tensor(self._features).copy_(features)
        addresses = {
            name: address_of(name, tensor, torch.float32, num_rows, self._run.cos.width)
            for name, tensor in zip(("cos", "sin"), angles, strict=True)
        }
        slots = address_of("write_slots", kv.write_slots, torch.int64, num_rows)
        addresses |= {"write_slots": slots, _CACHES.name: addressof(caches)}
        calls.run(addresses, torch.get_num_threads())


class BlockPass:
    """The blocks, and the draft's norm of the rows that are wanted. network: as above."""

    def __init__(
        self, network: DFlashLlama3, *, dtype: torch.dtype, cache_dtype: torch.dtype
    ) -> None:
        run = self._run = _empty(network, dtype, cache_dtype)
        self._wanted = Rows("R")
        self._x = run.buffer(network.fc.packed.out_features)
        x, residual = self._x, None
        for layer in network.layers:
            x, residual = run.block(layer, x, residual)
        ends = [x] if residual is None else [x, residual]
        x, *before = (plan_take_rows(run.plan, rows, _WANTED, self._wanted) for rows in ends)
        self._normed: Buffer = run.add_norm(network.norm, x, before[0] if before else None, 1.0)[0]
        run.plan.fill(self._x)
        run.plan.read(self._normed)
        self._calls = run.plan.finish()

    @property
    def num_torch_steps(self) -> int:
        """What of a pass is no native call."""
        return self._calls.num_torch_steps

    def __call__(self, rows: torch.Tensor, run: ForwardPass, wanted: Sequence[int]) -> torch.Tensor:
        """rows: [T, D]. wanted: [R]. Returns a new [R, D]."""
        calls, index = self._calls, torch.tensor(wanted, dtype=torch.int64)
        calls.begin({self._run.rows: rows.shape[0], self._wanted: len(wanted)})
        calls.tensor(self._x).copy_(rows)
        self._run.run(calls, run, {_WANTED.name: index.data_ptr()})
        return calls.tensor(self._normed).clone()


def _empty(network: DFlashLlama3, dtype: torch.dtype, cache_dtype: torch.dtype) -> PassPlan:
    return PassPlan.empty(
        rotated=network.rotary.parameters.rotary_dim,
        dtype=dtype,
        cache_dtype=cache_dtype,
        backend=network.backend,
    )
