"""The rows behind `pilotfish bench --tensor-parallel`: several ranks beside one process.

Knows: which two sides are compared. Does not know: how a row is measured, or what ranks are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from pilotfish.bench.peers import PilotfishSide
from pilotfish.bench.report import BenchReport, BenchRow
from pilotfish.bench.rows import Suite
from pilotfish.bench.workloads import Workload
from pilotfish.config.parallel import ParallelConfig
from pilotfish.errors import ConfigError


def run_ranks(
    model: str,
    parallel: ParallelConfig,
    *,
    dtype: str = "auto",
    rounds: int = 5,
    prefills: Sequence[int] = (512,),
    progress: Callable[[str], None] = lambda _: None,
    show: Callable[[BenchRow], None] = lambda _: None,
) -> BenchReport:
    """Decoding and prefill on the ranks and on one process, in alternating rounds, greedy.

    One process has all threads and sums in as many slices, so that both make the same tokens, which
    are compared; ranks share the threads. The last row is the weights that a rank and the one
    process hold. Raises ConfigError for no rounds, and what `LLM` raises.
    """
    if rounds < 1:
        raise ConfigError(f"rounds is {rounds}; wanted at least 1")
    alone = ParallelConfig(reduction_slices=parallel.num_slices, distributed="spawn")
    progress("loading")
    rows = list[BenchRow]()
    with ExitStack() as exits:
        sides = []
        for config, name in ((parallel, _shape(parallel)), (alone, "one process")):
            side = PilotfishSide(model, dtype=dtype, parallel=config)
            exits.callback(side.llm.close)
            side.name = name
            sides.append(side)
        ours, theirs = sides
        work = Workload.of(theirs.llm)
        suite = Suite(work=work, rounds=rounds, prefills=tuple(prefills), progress=progress)
        for row in suite.speed_rows(ours, theirs, prefix=f"{ours.name}: "):
            show(row)
            rows.append(row)
        sizes = (sum(side.llm.memory_plan.weights.values()) / 1e6 for side in (ours, theirs))
        rows.append(BenchRow.cost("weights of a rank", *sizes, peer=theirs.name, unit="MB"))
        show(rows[-1])
        sample = work.text(ours.generate(work.short()[:1], work.num_decoded)[0])
        return BenchReport.of(theirs.llm, model=model, rows=tuple(rows), sample=sample)


def _shape(parallel: ParallelConfig) -> str:
    """What runs, in words."""
    ranks = f"{parallel.num_ranks} ranks" if parallel.num_ranks > 1 else ""
    if parallel.num_replicas == 1:
        return ranks
    return f"{parallel.num_replicas} replicas{' of ' if ranks else ''}{ranks}"
