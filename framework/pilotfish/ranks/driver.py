"""Driver: loads a prepared model on all of its ranks.

Knows: the order of the steps. Does not know: how ranks are told, or what they load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import attrs

from pilotfish.ranks.launch import Launcher
from pilotfish.ranks.ranks import Ranks
from pilotfish.ranks.sharded_draft import on_all_ranks
from pilotfish.ranks.sharded_model import ShardedModel

if TYPE_CHECKING:
    from pilotfish.loading.prepared import Prepared
    from pilotfish.protocols import PipelineModel
    from pilotfish.speculation import Proposer
    from pilotfish.state import StateManager
    from pilotfish.weights import WeightSource


def load_on_ranks(
    prepared: Prepared,
    options: Mapping[str, Any],
    counted: Callable[[WeightSource], WeightSource] = lambda weights: weights,
    launcher: Launcher | None = None,
) -> tuple[Prepared, StateManager, Ranks, Proposer | None]:
    """Starts the other ranks and loads, here and there at once.

    prepared: of rank 0. options: those of `prepare_from_options` that it was made with. counted:
    see `Prepared.load`. launcher: see `Ranks`. Returns what was prepared with a model whose passes
    all ranks run, its state, the ranks, to be closed, and the drafter where ranks share it. Raises
    RankError, and what `Prepared.load` raises; then nothing of the ranks is left.
    """
    ranks = Ranks(prepared.pipeline_config.parallel, prepared.groups, launcher)
    try:
        ranks.start(options, prepared.memory_plan)
        whole, state, proposer = load_here(prepared, ranks, counted)
        ranks.wait_ready()
    except BaseException:
        ranks.close()
        raise
    return whole, state, ranks, proposer


def load_here(
    prepared: Prepared, ranks: Ranks, counted: Callable[[WeightSource], WeightSource]
) -> tuple[Prepared, StateManager, Proposer | None]:
    """Loads rank 0's shard, and its shard of the drafter, where ranks share that; what is returned
    tells the ranks of its passes.
    """
    model, draft = ShardedModel(prepared.model, ranks), prepared.draft
    whole = attrs.evolve(
        prepared,
        model=cast("PipelineModel", model),
        draft=None if draft is None else on_all_ranks(draft, ranks, prepared.model),
    )
    state = whole.load(counted)
    model.attach(state, whole.state_specs)
    if draft is None or draft.share is None:
        return whole, state, None
    return whole, state, whole.load_proposer(draft.registry, counted)
