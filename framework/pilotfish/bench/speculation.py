"""The rows behind `pilotfish bench --speculative`: a drafter beside our own plain decoding.

Knows: which prompts a drafter is tried on, and where a step's time goes. Does not know: drafters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import attrs

from pilotfish.bench.measure import alternate, in_words, timed
from pilotfish.bench.report import BenchReport, BenchRow
from pilotfish.bench.workloads import QUOTED, TEXTS, TokenIds, Workload
from pilotfish.config import CacheConfig, SamplingParams, SpeculativeConfig
from pilotfish.engine import LLM, RequestOutput
from pilotfish.errors import ConfigError
from pilotfish.loading.prepare import prepare_from_options


def run_speculation(
    model: str,
    speculative: SpeculativeConfig,
    *,
    draft: str | None = None,
    dtype: str = "auto",
    rounds: int = 5,
    progress: Callable[[str], None] = lambda _: None,
    show: Callable[[BenchRow], None] = lambda _: None,
) -> BenchReport:
    """Decoding with and without the drafter, in alternating rounds, greedy.

    Sets: prompts whose answers quote them, and free-form ones; each prompt alone, then all
    together. The last row is the share of a step that is neither the target's pass nor the draft's.
    Raises ConfigError for no rounds, and what `LLM` raises.
    """
    if rounds < 1:
        raise ConfigError(f"rounds is {rounds}; wanted at least 1")
    options: dict[str, Any] = {"dtype": dtype, "device": "cpu"}
    options["cache"] = CacheConfig(prefix_caching=False)
    prepare_from_options(model, draft=draft, speculative=speculative, **options)  # may refuse
    progress("loading")
    plain = LLM(model, **options)
    ours = LLM(model, draft=draft, speculative=speculative, **options)
    work = Workload.of(plain)
    bench = _Bench(
        ours=ours,
        plain=plain,
        rounds=rounds,
        num_tokens=work.num_decoded + 1,
        is_real=speculative.acceptance in ("coupled", "residual"),
    )
    rows = list[BenchRow]()

    def add(row: BenchRow) -> None:
        show(row)
        rows.append(row)

    seconds = timed(lambda: bench.answer(plain, work.short()[:1]))[0]
    # Of two sides and two sets: four prompts one by one, and together in the time of some more.
    progress(f"all, in {in_words(2 * 2 * 6 * (rounds + 1) * seconds)}, if drafts change nothing")
    quoting = ("quoting", work.copies(), work.cut_note(QUOTED))
    free = ("free-form", work.short()[:4], work.cut_note(TEXTS[:4]))
    for name, prompts, note in (quoting, free):
        for together in (False, True):
            title = f"{name}, {len(prompts)} requests {'together' if together else 'one by one'}"
            title += note
            progress(title)
            add(bench.row(title, prompts, together=together))
    progress("overhead of a step")
    add(bench.overhead(work.copies()[:1]))
    sample = work.text(list(bench.answer(ours, work.copies()[:1])[0].token_ids))
    return BenchReport.of(plain, model=model, rows=tuple(rows), sample=sample)


@attrs.frozen(kw_only=True)
class _Bench:
    """is_real: whether the drafter's texts are the target's own."""

    ours: LLM
    plain: LLM
    rounds: int
    num_tokens: int
    is_real: bool

    def answer(self, llm: LLM, prompts: Sequence[TokenIds]) -> list[RequestOutput]:
        """Greedy, of one length."""
        params = SamplingParams(temperature=0, max_tokens=self.num_tokens, ignore_eos=True)
        return llm.generate(list(prompts), params, progress=False)

    def row(self, name: str, prompts: Sequence[TokenIds], *, together: bool) -> BenchRow:
        """Tokens a second after the first one, and whether the texts are equal."""
        batches = [prompts] if together else [[prompt] for prompt in prompts]
        tokens: dict[bool, list[list[int]]] = {}
        committed: list[float] = []

        def rate(llm: LLM, is_ours: bool) -> Callable[[int], float]:
            def run(_: int) -> float:
                outputs = [out for batch in batches for out in self.answer(llm, batch)]
                tokens[is_ours] = [list(out.token_ids) for out in outputs]
                if is_ours:
                    committed[:] = [_committed(out) for out in outputs]
                # Requests that run together wait for one another: the longest one counts.
                seconds = [out.timing.decode_s for out in outputs]
                total = max(seconds) if together else sum(seconds)
                return len(outputs) * (self.num_tokens - 1) / total

            return run

        rates = alternate([rate(self.ours, True), rate(self.plain, False)], rounds=self.rounds)
        equal: bool | str = tokens[True] == tokens[False]
        if not self.is_real:
            equal = "not real: drafts are accepted whatever they are"
        title = f"{name} ({sum(committed) / len(committed):.2f} tokens a step)"
        return BenchRow.rate(title, *rates, peer="pilotfish plain", equal=equal)

    def overhead(self, prompts: Sequence[TokenIds]) -> BenchRow:
        """Seconds of verifying, accepting and committing that are not the target's pass, in
        hundredths of that pass; drafting left out.
        """
        shares = []
        for _ in range(self.rounds):
            with _Stopwatch(self.ours) as watch:
                self.answer(self.ours, prompts)
            shares.append(100 * (watch.steps - watch.passes - watch.drafting) / watch.passes)
        share = sorted(shares)[len(shares) // 2]
        return BenchRow.cost(
            "overhead of a step", share, 6.0, peer="bound of 6", unit="% of a pass"
        )


def _committed(output: RequestOutput) -> float:
    assert output.speculative is not None
    return float(output.speculative["mean_committed_per_step"])


class _Stopwatch:
    """Seconds in steps that decode, in their passes of the target, and in drafting."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self.steps = self.passes = self.drafting = 0.0
        self._undo: list[tuple[Any, str]] = []

    def __enter__(self) -> _Stopwatch:
        engine = self._llm.engine
        self._watch(engine, "step", "steps")
        self._watch(engine.runner.model, "execute", "passes")
        self._watch(self._llm.proposer, "propose", "drafting")
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name in self._undo:
            delattr(owner, name)

    def _watch(self, owner: Any, name: str, total: str) -> None:
        """Puts a timed method before the class's own; its first call, the prefill, is left out."""
        real, seen = getattr(owner, name), [0]

        def watched(*args: Any) -> Any:
            start = perf_counter()
            try:
                return real(*args)
            finally:
                seen[0] += 1
                if seen[0] > 1:
                    setattr(self, total, getattr(self, total) + perf_counter() - start)

        setattr(owner, name, watched)
        self._undo.append((owner, name))
