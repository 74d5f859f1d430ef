"""EAGLE drafts as a Pilotfish plugin: hooks only; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence

from pilotfish.hookspecs import hookimpl
from pilotfish.registry import SpeculatorSpec
from pilotfish_eagle.formats import DRAFT_ARCHITECTURES


@hookimpl
def pilotfish_speculators() -> Sequence[SpeculatorSpec]:
    """One spec: EAGLE-1, EAGLE-2 and EAGLE-3 drafts, for any target."""
    return [
        SpeculatorSpec(
            method="eagle",
            draft_architectures=DRAFT_ARCHITECTURES,
            driver="sequential",
            config="pilotfish_eagle.config:EagleConfig",
            model="pilotfish_eagle.model:EagleModel",
            needs=frozenset({"verify", "aux_hidden_states", "embed", "lm_head"}),
            draft_oracle="pilotfish_eagle.oracle:eagle_oracle",
            verified_against="a full recomputation in plain torch, written from the papers",
        )
    ]
