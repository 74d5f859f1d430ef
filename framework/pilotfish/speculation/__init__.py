"""Speculation: what a drafter is, the drivers that drafts share, acceptance counters and widths.

Import-light: names are resolved on first use, since most need torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pilotfish.speculation.block import BlockProposer, BlockRows, ContextRows
    from pilotfish.speculation.choosing import Chosen, TokenChooser
    from pilotfish.speculation.counters import SpeculationCounters
    from pilotfish.speculation.proposer import (
        DraftBatch,
        DraftRequest,
        Proposal,
        Proposer,
        ProposerSetup,
        SpeculatorConfig,
    )
    from pilotfish.speculation.sequential import DraftOutputs, DraftRows, SequentialProposer
    from pilotfish.speculation.stateless import StatelessConfig
    from pilotfish.speculation.width import WidthPolicy

_HOME = {
    "BlockProposer": "block",
    "BlockRows": "block",
    "ContextRows": "block",
    "Chosen": "choosing",
    "TokenChooser": "choosing",
    "SpeculationCounters": "counters",
    "DraftBatch": "proposer",
    "DraftRequest": "proposer",
    "Proposal": "proposer",
    "Proposer": "proposer",
    "ProposerSetup": "proposer",
    "SpeculatorConfig": "proposer",
    "DraftOutputs": "sequential",
    "DraftRows": "sequential",
    "SequentialProposer": "sequential",
    "StatelessConfig": "stateless",
    "WidthPolicy": "width",
}

__all__ = [
    "BlockProposer",
    "BlockRows",
    "Chosen",
    "ContextRows",
    "SpeculationCounters",
    "DraftBatch",
    "DraftOutputs",
    "DraftRequest",
    "DraftRows",
    "Proposal",
    "Proposer",
    "ProposerSetup",
    "SequentialProposer",
    "SpeculatorConfig",
    "StatelessConfig",
    "TokenChooser",
    "WidthPolicy",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"pilotfish.speculation.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
