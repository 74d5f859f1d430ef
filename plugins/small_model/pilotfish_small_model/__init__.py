"""A small ordinary model as the draft of a large one: hooks only; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence

from pilotfish.hookspecs import hookimpl
from pilotfish.registry import SpeculatorSpec


@hookimpl
def pilotfish_speculators() -> Sequence[SpeculatorSpec]:
    """One method, "small_model": a draft of any architecture that is served, for any target."""
    return [
        SpeculatorSpec(
            method="small_model",
            draft_architectures=("*",),
            config="pilotfish_small_model.config:SmallModelConfig",
            model="pilotfish_small_model.proposer:SmallModelProposer",
            needs=frozenset({"verify"}),
            draft_oracle="pilotfish_small_model.oracle:SmallModelOracle",
            verified_against="plain decoding: texts are equal; the draft with itself: all accepted",
        )
    ]
