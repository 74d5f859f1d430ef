"""Speculation beside our own plain decoding, with random drafts of real shapes.

Knows: which drafts there are, and what is timed. Does not know: transformers.
The acceptance is synthetic: a fixed share of drafts counts, whatever they are, so texts are not
real. It says what a draft of that shape costs, and would give if so many of its tokens were right.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_dflash_draft
import make_eagle1_draft

from gpu.models import Plan, free_memory
from gpu.results import Results
from pilotfish import LLM, SamplingParams, SpeculativeConfig
from pilotfish.bench.measure import alternate
from pilotfish.bench.workloads import TokenIds, Workload

RATE = 0.8
WIDTHS = {"eagle": 4, "dflash": 7}
MAKERS: dict[str, Callable[[str, Path], None]] = {
    "eagle": make_eagle1_draft.write,
    "dflash": make_dflash_draft.write,
}


def measure_drafts(
    part: str,
    target: Path,
    scratch: Path,
    *,
    plan: Plan,
    methods: tuple[str, ...],
    results: Results,
) -> None:
    """One row for each method and batch size. The largest batch of the plan is left out."""
    plain = plan.load(target)
    for method in methods:
        draft = scratch / f"{target.name}-{method}"
        if not (draft / "config.json").exists():
            MAKERS[method](str(target), draft)
        width = WIDTHS[method]
        options = SpeculativeConfig(
            method=method, width=width, acceptance="synthetic", synthetic_rate=RATE
        )
        ours = plan.load(target, draft=str(draft), speculative=options)
        for batch in plan.batches[:-1]:
            name = f"{method}, {width} drafted, {batch} requests"
            results.add(part, **_row(name, ours, plain, batch=batch, plan=plan))
        del ours
        free_memory()
    del plain
    free_memory()


def _row(name: str, ours: LLM, plain: LLM, *, batch: int, plan: Plan) -> dict[str, Any]:
    work = Workload.of(plain)
    prompts = [work.random(plan.num_prompt, seed) for seed in range(batch)]
    committed: list[float] = []

    def rate(llm: LLM) -> Callable[[int], float]:
        return lambda _: _rate(llm, prompts, plan.num_decoded, committed)

    rates = alternate([rate(ours), rate(plain)], rounds=plan.rounds)
    return {
        "name": name,
        "value": rates[0],
        "theirs": rates[1],
        "peer": "pilotfish plain",
        "unit": "tokens/s",
        "step_ms": 1e3 * batch * committed[-1] / rates[0],
        "plain_step_ms": 1e3 * batch / rates[1],
        "tokens_a_step": committed[-1],
        "tokens": "not real",
    }


def _rate(llm: LLM, prompts: list[TokenIds], count: int, committed: list[float]) -> float:
    """Tokens a second after the first one; requests that run together wait for one another."""
    params = SamplingParams(temperature=0, max_tokens=count + 1, ignore_eos=True)
    outputs = llm.generate(list(prompts), params, progress=False)
    shares = [out.speculative["mean_committed_per_step"] for out in outputs if out.speculative]
    if shares:
        committed.append(sum(shares) / len(shares))
    return len(outputs) * count / max(out.timing.decode_s for out in outputs)
