"""Speculation: what a drafter is, the drivers that drafts share, acceptance counters and widths.

Import-light: names are resolved on first use, since most need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfish.batch import Proposal
from pilotfish.lazy import lazy_names

if TYPE_CHECKING:
    from pilotfish.speculation.block import BlockProposer, BlockRows, ContextRows
    from pilotfish.speculation.choosing import Chosen, TokenChooser
    from pilotfish.speculation.counters import SpeculationCounters
    from pilotfish.speculation.proposer import (
        DraftBatch,
        DraftRequest,
        Proposer,
        ProposerSetup,
        SpeculatorConfig,
    )
    from pilotfish.speculation.sequential import DraftOutputs, DraftRows, SequentialProposer
    from pilotfish.speculation.stateless import StatelessConfig
    from pilotfish.speculation.width import WidthPolicy

_PROPOSER = ("DraftBatch", "DraftRequest", "Proposer", "ProposerSetup", "SpeculatorConfig")
_HOMES = {
    **dict.fromkeys(("BlockProposer", "BlockRows", "ContextRows"), "block"),
    **dict.fromkeys(("Chosen", "TokenChooser"), "choosing"),
    "SpeculationCounters": "counters",
    **dict.fromkeys(_PROPOSER, "proposer"),
    **dict.fromkeys(("DraftOutputs", "DraftRows", "SequentialProposer"), "sequential"),
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
