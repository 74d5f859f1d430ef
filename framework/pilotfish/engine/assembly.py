"""Assembly: an engine from what was prepared and loaded.

Knows: which parts an engine has, with and without a drafter. Does not know: how any part works.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pilotfish.engine.engine import Engine
from pilotfish.engine.runner import Runner
from pilotfish.engine.scheduler import Scheduler
from pilotfish.engine.speculative import Speculation
from pilotfish.platform.heap import keep_freed_memory
from pilotfish.sampling import Sampler
from pilotfish.speculation import SpeculationCounters
from pilotfish.speculation.acceptance_rules import acceptance_rule

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfish.loading.prepared import Prepared
    from pilotfish.speculation import Proposer
    from pilotfish.state import StateManager


def make_engine(prepared: Prepared, state: StateManager, proposer: Proposer | None) -> Engine:
    """An engine without requests. proposer: loaded; None for plain decoding."""
    if prepared.device.type == "cpu":
        keep_freed_memory()
    runtime = prepared.pipeline_config.runtime
    runner = _runner(prepared, state, proposer)

    def release(request_id: str) -> None:
        runner.release(request_id)
        prepared.model.release(request_id)

    scheduler = Scheduler(
        state,
        max_batch_size=runtime.max_batch_size,
        max_batch_tokens=runtime.max_batch_tokens,
        on_release=release,
        num_scratch=0 if prepared.draft is None else prepared.draft.num_scratch_rows,
    )
    return Engine(scheduler, runner)


def counters_for(prepared: Prepared) -> Callable[[], SpeculationCounters] | None:
    """Makes a request's counters; None without speculation."""
    options = prepared.pipeline_config.speculative
    if options is None:
        return None
    return partial(SpeculationCounters, method=options.method, acceptance=options.acceptance)


def _runner(prepared: Prepared, state: StateManager, proposer: Proposer | None) -> Runner:
    draft, sampler = prepared.draft, Sampler()
    if draft is None or proposer is None:
        return Runner(prepared.model, state, sampler)
    speculation = Speculation(
        acceptance=acceptance_rule(draft.speculative, sampler, prepared.backend),
        proposer=proposer,
        policy=draft.policy,
        num_scratch=draft.num_scratch_rows,
        vocab_size=prepared.vocab_size,
        max_batch_tokens=prepared.pipeline_config.runtime.max_batch_tokens,
    )
    return Runner(prepared.model, state, sampler, speculation)
