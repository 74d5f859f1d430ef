"""How evenly a model's rows go to its experts, counted apart from what is timed.

Knows: what a model says of its experts. Does not know: layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pilotfish.bench.peers import PilotfishSide
from pilotfish.bench.workloads import TokenIds
from pilotfish.protocols.optional import of_model


def busiest_over_mean(side: PilotfishSide, prompts: Sequence[TokenIds], num_tokens: int) -> str:
    """Rows of the busiest expert of any layer over the mean of that layer, in these answers.

    "" for a model without experts, and for one whose passes are made in other processes alone.
    """
    engine: Any = side.llm.engine
    if not hasattr(engine, "runner"):
        return ""
    model = of_model(engine.runner.model)
    model.count_expert_loads()
    side.generate(prompts, num_tokens)
    ratios = {
        name: (loads.max() / loads.float().mean()).item()
        for name, loads in model.expert_loads().items()
        if loads.any()
    }
    if not ratios:
        return ""
    name = max(ratios, key=ratios.__getitem__)
    return f"{ratios[name]:.2f} ({name})"
