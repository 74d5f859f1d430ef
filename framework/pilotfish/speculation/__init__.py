"""Speculation: what a drafter is, the drivers that drafts share, acceptance counters and widths.

Import-light: names are resolved on first use, since most need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfish.lazy import lazy_names

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

_HOMES = {
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

__getattr__ = lazy_names(__name__, _HOMES)
