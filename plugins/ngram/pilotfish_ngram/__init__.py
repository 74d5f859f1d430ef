"""Prompt lookup as a Pilotfish plugin: hooks only; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence

from pilotfish.hookspecs import hookimpl
from pilotfish.registry import SpeculatorSpec


@hookimpl
def pilotfish_speculators() -> Sequence[SpeculatorSpec]:
    """One method, "ngram": no draft checkpoint, any target."""
    return [
        SpeculatorSpec(
            method="ngram",
            config="pilotfish_ngram.config:NgramConfig",
            model="pilotfish_ngram.proposer:NgramProposer",
            needs=frozenset({"verify"}),
            draft_oracle="pilotfish_ngram.oracle:NgramOracle",
            verified_against="plain decoding: texts are equal",
        )
    ]
