"""The suite behind `pilotfish bench`: every row that a CPU user would ask for.

Knows: which rows there are and what each compares. Does not know: how sides run or prompts are
made.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence

import attrs

from pilotfish.bench.measure import alternate, timed
from pilotfish.bench.memory import peak_memory_row
from pilotfish.bench.peer_process import PeerProcess
from pilotfish.bench.peers import (
    PilotfishSide,
    Side,
    TransformersSide,
    as_safetensors_directory,
)
from pilotfish.bench.report import BenchReport, BenchRow
from pilotfish.bench.workloads import TEXTS, TokenIds, Workload
from pilotfish.engine.loading import prepare_from_options
from pilotfish.errors import ConfigError, PilotfishError

PEERS = ("transformers",)
PREFILLS = (512,)


def run_suite(
    model: str,
    *,
    against: Sequence[str] = (),
    dtype: str = "bfloat16",
    rounds: int = 5,
    prefills: Sequence[int] = PREFILLS,
    progress: Callable[[str], None] = lambda _: None,
) -> BenchReport:
    """Runs every row; peers are measured in alternation with us, in processes of their own.

    model: as for `LLM`. against: names of peers, see PEERS. rounds: of which a row is the median.
    prefills: lengths of prompts whose prefill is timed. progress: told what is measured next.
    Raises ConfigError for a peer that is not known, no rounds, or a prompt that does not fit.
    """
    for peer in against:
        if peer not in PEERS:
            raise ConfigError(f"peer {peer!r} is not known; wanted one of {', '.join(PEERS)}")
    if rounds < 1:
        raise ConfigError(f"rounds is {rounds}; wanted at least 1")
    import torch

    prepared = prepare_from_options(model, dtype=dtype, device="cpu")  # refuses what can be
    longest = prepared.model.config.get_max_seq_len() - 1
    if not all(1 <= length <= longest for length in prefills):
        raise ConfigError(f"prefill lengths are {list(prefills)}; wanted 1 to {longest}")
    del prepared
    progress("loading")
    ours = PilotfishSide(model, dtype=dtype)
    suite = _Suite(
        work=Workload.of(ours.llm), rounds=rounds, prefills=tuple(prefills), progress=progress
    )
    rows: list[BenchRow] = []
    with tempfile.TemporaryDirectory() as scratch:
        if "transformers" in against:
            directory = as_safetensors_directory(ours.llm.model_path, dtype, scratch)
            twin = PilotfishSide(directory, dtype=dtype)
            with PeerProcess(TransformersSide, directory, dtype=dtype) as theirs:
                rows += suite.speed_rows(twin, theirs)
            del twin
            rows += suite.load_rows(directory, dtype)
    fastest = PilotfishSide(model, dtype=dtype, arithmetic="fastest")
    short = attrs.evolve(suite, prefills=suite.prefills[:1])
    rows += short.speed_rows(ours, fastest, prefix="invariant against fastest: ")
    del fastest
    rows.append(suite.prefix_row(model, dtype))
    progress("peak memory")
    rows.append(peak_memory_row(model, dtype))
    sample = suite.work.text(ours.generate(suite.work.short()[:1], suite.work.num_decoded)[0])
    return BenchReport(
        model=model, dtype=dtype, threads=torch.get_num_threads(), rows=tuple(rows), sample=sample
    )


@attrs.frozen(kw_only=True)
class _Suite:
    """What all rows have in common."""

    work: Workload
    rounds: int
    prefills: tuple[int, ...]
    progress: Callable[[str], None]

    def speed_rows(self, ours: PilotfishSide, theirs: Side, *, prefix: str = "") -> list[BenchRow]:
        """Decoding and prefill, with the tokens of both sides compared."""
        rows = []
        prompts = self.work.short()
        for batch in (prompts[:1], prompts):
            name = f"{prefix}decode, {len(batch)} request{'s' if len(batch) > 1 else ''}"
            name += self.work.cut_note(TEXTS[: len(batch)])
            self.progress(name)
            rates = self._alternate(
                self._decode_rate(ours, batch), self._decode_rate(theirs, batch)
            )
            equal = compare_tokens(ours, theirs, batch, self.work.num_decoded)
            rows.append(BenchRow.rate(name, *rates, peer=theirs.name, equal=equal))
        for length in self.prefills:
            name = f"{prefix}prefill of {length} tokens"
            self.progress(name)
            rates = self._alternate(
                self._prefill_rate(ours, length), self._prefill_rate(theirs, length)
            )
            equal = compare_tokens(ours, theirs, [self.work.random(length, 0)], num_tokens=1)
            rows.append(BenchRow.rate(name, *rates, peer=theirs.name, equal=equal))
        return rows

    def load_rows(self, directory: str, dtype: str) -> list[BenchRow]:
        """Model and tokenizer: until they are loaded, and until the first token is there."""
        self.progress("load")
        prompt = self.work.short()[:1]

        def seconds(make: Callable[..., Side], num_tokens: int) -> Callable[[int], float]:
            def load() -> None:
                side = make(directory, dtype=dtype)
                if num_tokens:
                    side.generate(prompt, num_tokens)

            return lambda _: timed(load)[0]

        rows = []
        names = {0: "load safetensors", 1: "load safetensors, to the first token"}
        for num_tokens, name in names.items():
            pair = self._alternate(
                seconds(PilotfishSide, num_tokens), seconds(TransformersSide, num_tokens)
            )
            rows.append(BenchRow.cost(name, *pair, peer=TransformersSide.name))
        return rows

    def prefix_row(self, model: str, dtype: str) -> BenchRow:
        """A prompt, first cold and then again: seconds to the first token."""
        self.progress("cached prefix")
        side = PilotfishSide(model, dtype=dtype, prefix_caching=True)
        cold_tokens: dict[int, list[TokenIds]] = {}
        warm_tokens: dict[int, list[TokenIds]] = {}

        def cold(round_number: int) -> float:
            side.llm.forget_cached_prefixes()
            prompt = self.work.random(self.work.num_shared, round_number)
            seconds, cold_tokens[round_number] = timed(lambda: side.generate([prompt], 1))
            return seconds

        def warm(round_number: int) -> float:
            prompt = self.work.random(self.work.num_shared, round_number)
            side.generate([prompt], 1)
            seconds, warm_tokens[round_number] = timed(lambda: side.generate([prompt], 1))
            return seconds

        seconds = self._alternate(warm, cold)
        return BenchRow.cost(
            f"first token, {self.work.num_shared} tokens with a cached prefix",
            *seconds,
            peer="pilotfish cold",
            equal=cold_tokens == warm_tokens,
        )

    def _alternate(
        self, ours: Callable[[int], float], theirs: Callable[[int], float]
    ) -> tuple[float, float]:
        first, second = alternate([ours, theirs], rounds=self.rounds)
        return first, second

    def _prefill_rate(self, side: Side, num_tokens: int) -> Callable[[int], float]:
        def run(round_number: int) -> float:
            prompt = self.work.random(num_tokens, round_number)
            seconds, _ = timed(lambda: side.generate([prompt], 1))
            return num_tokens / seconds

        return run

    def _decode_rate(self, side: Side, prompts: list[TokenIds]) -> Callable[[int], float]:
        """Tokens a second after the first one: a run of N+1 tokens less a run of one."""
        count = self.work.num_decoded

        def run(_: int) -> float:
            first = timed(lambda: side.generate(prompts, 1))[0]
            whole = timed(lambda: side.generate(prompts, count + 1))[0]
            if whole <= first:
                raise PilotfishError(
                    f"{side.name}: {count + 1} tokens took {whole:.3g} s and one took "
                    f"{first:.3g} s; wanted a model large enough to be timed, on a quieter machine"
                )
            return len(prompts) * count / (whole - first)

        return run


def compare_tokens(
    ours: PilotfishSide, theirs: Side, prompts: list[TokenIds], num_tokens: int
) -> bool | str:
    """True when all tokens agree; else a sentence when each first difference is a near-tie.

    A near-tie: our logits of the two tokens differ by no more than four units in the last place
    of the run's dtype at their size; anything wider is a real difference and gives False.
    """
    import torch

    found = []
    dtype = ours.llm.dtype
    pairs = zip(
        prompts,
        ours.generate(prompts, num_tokens),
        theirs.generate(prompts, num_tokens),
        strict=True,
    )
    for prompt, our_ids, their_ids in pairs:
        if our_ids == their_ids:
            continue
        at = next(i for i, (a, b) in enumerate(zip(our_ids, their_ids, strict=True)) if a != b)
        logits = ours.llm.score(prompt + our_ids[:at])[-1]
        mine, other = logits[our_ids[at]].item(), logits[their_ids[at]].item()
        if abs(mine - other) > 4 * torch.finfo(getattr(torch, dtype)).eps * abs(mine):
            return False
        found.append(f"token {at}, logits {mine:.4g} and {other:.4g}")
    if not found:
        return True
    return f"{len(prompts) - len(found)} of {len(prompts)} equal; near-ties: {'; '.join(found)}"
