"""Peak memory of a fresh process that loads a model and generates.

Knows: how a process measures itself. Does not know: other rows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from pilotfish.bench.report import BenchRow
from pilotfish.errors import PilotfishError

ALLOWANCE_BYTES = 64 * 10**6
"""What tokenizers and activations may take beside an importing process, weights and state."""

NUM_TOKENS = 16
"""Of the answer that is generated meanwhile, to the prompt that the row of cached prefixes has."""


def peak_memory_rows(model: str, dtype: str, peers: Mapping[str, int]) -> list[BenchRow]:
    """Ours: peak resident bytes. Theirs: what a process has that imported torch and pilotfish,
    weights, the state that was touched and the allowance, together; then each peer's.

    peers: name -> peak bytes of a fresh process that did the same.
    """
    program = "import sys; from pilotfish.bench.memory import report; report(*sys.argv[1:])"
    command = [sys.executable, "-c", program, model, dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PilotfishError(
            f"the process whose memory is measured ended with {done.returncode}: "
            f"{done.stderr.strip()[-2000:]}"
        )
    figures = json.loads(done.stdout)
    bound = sum(figures[f"{part}_bytes"] for part in ("imported", "weights", "state"))
    peer = f"imports, weights, touched state and {ALLOWANCE_BYTES / 1e6:.0f} MB"
    return [
        BenchRow.cost(
            "peak memory", figures["peak_bytes"] / 1e6, num_bytes / 1e6, peer=peer, unit="MB"
        )
        for peer, num_bytes in {peer: bound + ALLOWANCE_BYTES, **peers}.items()
    ]


def report(model: str, dtype: str) -> None:
    """What the fresh process runs: prints its figures as JSON."""
    from pilotfish.bench.workloads import Workload
    from pilotfish.config import SamplingParams
    from pilotfish.engine import LLM

    imported = peak_bytes()
    llm = LLM(model, dtype=dtype, device="cpu")
    work = Workload.of(llm)
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)
    llm.generate([work.random(work.num_shared, 0)], params)
    plan = llm.memory_plan
    num_pages = -(-(work.num_shared + NUM_TOKENS) // plan.page_size_tokens)
    figures = {
        "peak_bytes": peak_bytes(),
        "imported_bytes": imported,
        "weights_bytes": sum(plan.weights.values()),
        "state_bytes": num_pages * sum(plan.paged_caches.values()) + sum(plan.slots.values()),
    }
    print(json.dumps(figures))


def peak_bytes() -> int:
    """Of this program. Linux's `ru_maxrss` would also know the process that started it."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
