"""DFlash drafts as a Pilotfish plugin: hooks only; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence

from pilotfish.hookspecs import hookimpl
from pilotfish.registry import SpeculatorSpec
from pilotfish_dflash.formats import DRAFT_ARCHITECTURES


@hookimpl
def pilotfish_speculators() -> Sequence[SpeculatorSpec]:
    """One spec: DFlash drafts, for any target."""
    return [
        SpeculatorSpec(
            method="dflash",
            draft_architectures=DRAFT_ARCHITECTURES,
            driver="block",
            config="pilotfish_dflash.config:DFlashConfig",
            model="pilotfish_dflash.model:DFlashProposer",
            needs=frozenset({"verify", "aux_hidden_states", "embed", "lm_head"}),
            draft_oracle="pilotfish_dflash.oracle:dflash_oracle",
            verified_against="a full recomputation in plain torch, and z-lab's package dflash 0.1",
        )
    ]
