"""How a network's layers are filled from a checkpoint, in the way that suits their backend.

Knows: which layers use the file's own rows. Does not know: rules or formats.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pilotfish.kernels import KernelBackend
from pilotfish.layers.layer import Layer
from pilotfish.parallel.shard import Shard
from pilotfish.weights import LoadPlan, WeightSource, execute_load


def load_layers(
    network: Layer,
    plan: LoadPlan,
    source: WeightSource,
    dtype: torch.dtype,
    *,
    backend: KernelBackend,
    device: torch.device | str = "cpu",
    shards: Mapping[str, Shard] = {},
) -> None:
    """Fills every layer of `network`.

    dtype: the run's. On the native backend matrices stay where and as they are in the file.
    shards: what this rank holds of the parameters that it does not hold whole.

    Raises as `check_shards`, before anything is read.
    """
    execute_load(
        plan,
        source,
        lambda name, tensor: network.assign(name, tensor, backend),
        dtype,
        device=device,
        keeps=network.may_stay if backend.name == "native" else None,
        shards=shards,
    )
