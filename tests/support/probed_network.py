"""A network with one of everything that is probed, and a count of the probes.

Imports little: other processes run it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pilotfish.invariance import linear_probe, padding
from pilotfish.invariance.padding import RowPadding
from pilotfish.invariance.probe_cache import ProbeCache
from pilotfish.kernels import KernelBackend
from pilotfish.layers.attention import PagedAttentionLayer
from pilotfish.layers.layer import Layer
from pilotfish.layers.linear import Linear

TORCH = KernelBackend("torch")


class Network(Layer):
    """One of everything that is probed."""

    def __init__(self) -> None:
        self.body = Linear(64, 48, bias=True)
        self.attention = PagedAttentionLayer()
        self.attention.head_shape = (4, 2, 16)
        self.lm_head = Linear(64, 40)


def probe_network(backend: KernelBackend = TORCH) -> RowPadding:
    """As when a model is loaded."""
    network = Network()
    return RowPadding.probe(
        network, network.lm_head, backend=backend, dtype=torch.float32, known=ProbeCache()
    )


def counted(patch: Callable[[Any, str, Any], None] = setattr) -> list[str]:
    """What is probed from now on, call by call."""
    calls: list[str] = []
    for module, name in ((linear_probe, "probe"), (padding, "attention_row_multiple")):
        real = getattr(module, name)

        def probe(*tried: Any, real: Any = real) -> int | None:
            calls.append(str(tried))
            found: int | None = real(*tried)
            return found

        patch(module, name, probe)
    return calls
