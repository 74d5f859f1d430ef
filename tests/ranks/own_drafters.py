"""Drafters of somebody else's: one whose shared calls call each other and keep something for each
request, and one with a `propose` of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pilotfish.plugin_specs import SpeculatorSpec
from pilotfish.plugins import load_registry
from pilotfish.registry import Plugin, Registry
from pilotfish.speculation import DraftBatch, DraftOutputs, DraftRows, Proposal
from pilotfish_eagle.model import EagleModel


class Counting(EagleModel):
    """counted: passes of each request that is running. released: how often one was."""

    shared_calls: ClassVar[tuple[str, ...]] = ("forward", "count")

    def __init__(self, setup: Any) -> None:
        super().__init__(setup)
        self.counted: dict[str, int] = {}
        self.released = 0

    def forward(self, rows: DraftRows) -> DraftOutputs:
        self.count(rows.request_ids)
        return super().forward(rows)

    def count(self, request_ids: tuple[str, ...]) -> None:
        for name in request_ids:
            self.counted[name] = self.counted.get(name, 0) + 1

    def release(self, request_id: str) -> None:
        self.released += 1
        self.counted.pop(request_id, None)


class Alone(EagleModel):
    """Says nothing of its `propose`, so nobody knows which calls are made there."""

    def propose(self, batch: DraftBatch) -> Sequence[Proposal]:
        return super().propose(batch)


def registry() -> Registry:
    """The installed plugins, and both, by the names of their classes."""
    specs = tuple(
        SpeculatorSpec(
            method=kind.__name__,
            draft_architectures=("LlamaForCausalLMEagle3",),
            driver="sequential",
            config="pilotfish_eagle.config:EagleConfig",
            model=f"{__name__}:{kind.__name__}",
            needs=frozenset({"verify", "aux_hidden_states", "embed", "lm_head"}),
        )
        for kind in (Counting, Alone)
    )
    return Registry(plugins=(*load_registry().plugins, Plugin(name="own", speculators=specs)))
