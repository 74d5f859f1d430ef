"""How each row of the suite is measured: both sides by turns, and the tokens of both compared.

Knows: what a row compares. Does not know: which rows a run has, how sides run or prompts are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs

from pilotfish.bench.agreement import Judge, compare_tokens
from pilotfish.bench.measure import alternate, timed
from pilotfish.bench.peer_process import PeerProcess
from pilotfish.bench.peers import OneByOne, PilotfishSide, SampledSide, Side
from pilotfish.bench.report import BenchRow
from pilotfish.bench.workloads import QUOTED, TEXTS, TokenIds, Workload
from pilotfish.errors import PilotfishError

QUESTION_TOKENS = 40
"""Of a prompt as short as a question in a chat template."""


@attrs.frozen(kw_only=True)
class Suite:
    """What all rows have in common. prefills: lengths of prompts whose prefill is timed."""

    work: Workload
    rounds: int
    prefills: tuple[int, ...]
    progress: Callable[[str], None]

    def seconds_of_a_round(self, side: Side) -> float:
        """What one side of `speed_rows` takes, measured."""

        def once() -> None:
            for batch in self._batches():
                side.generate(batch, 1)
                side.generate(batch, self.work.num_decoded + 1)
            for length in self.prefills:
                side.generate([self.work.random(length, -2)], 1)

        return timed(once)[0]

    def speed_rows(
        self,
        ours: PilotfishSide,
        theirs: Side,
        *,
        prefix: str = "",
        judge: Judge | None = None,
    ) -> Iterator[BenchRow]:
        """Decoding and prefill, with the tokens of both sides compared; each when it is there."""
        for batch in self._batches():
            name = prefix + self._decode_name(batch)
            self.progress(name)
            rates = self._decode_rates(ours, theirs, batch)
            equal = compare_tokens(ours, theirs, batch, self.work.num_decoded, judge)
            yield BenchRow.rate(name, *rates, peer=theirs.name, equal=equal)
        for length in self.prefills:
            name = f"{prefix}prefill of {length} tokens"
            self.progress(name)
            rates = self._alternate(
                self._prefill_rate(ours, length), self._prefill_rate(theirs, length)
            )
            equal = compare_tokens(ours, theirs, [self.work.random(length, 0)], 1, judge)
            yield BenchRow.rate(name, *rates, peer=theirs.name, equal=equal)

    def quoting_row(self, drafted: PilotfishSide, theirs: Side, judge: Judge) -> BenchRow:
        """Texts that quote their prompts, one by one: ours with drafts, theirs as it is."""
        prompts = self.work.copies()
        name = f"quoting with n-gram drafts, {len(prompts)} requests one by one"
        name += self.work.cut_note(QUOTED)
        self.progress(f"{name}, beside {theirs.name}")
        peer = OneByOne(theirs)
        rates = self._decode_rates(OneByOne(drafted), peer, prompts)
        equal = compare_tokens(drafted, peer, prompts, self.work.num_decoded, judge)
        return BenchRow.rate(name, *rates, peer=theirs.name, equal=equal)

    def first_token_row(self, ours: PilotfishSide, theirs: Side, judge: Judge) -> BenchRow:
        """Of a loaded model, after a prompt as short as a question."""
        length = min(QUESTION_TOKENS, self.work.max_seq_len // 2)
        name = f"first token after {length} prompt tokens"
        self.progress(name)

        def seconds(side: Side) -> Callable[[int], float]:
            return lambda i: timed(lambda: side.generate([self.work.random(length, i)], 1))[0]

        pair = self._alternate(seconds(ours), seconds(theirs))
        equal = compare_tokens(ours, theirs, [self.work.random(length, 0)], 1, judge)
        return BenchRow.cost(name, *pair, peer=theirs.name, equal=equal)

    def sampled_rows(self, greedy: PilotfishSide) -> Iterator[BenchRow]:
        """What drawing tokens costs, of our own."""
        for batch in self._batches():
            name = f"sampled against greedy: {self._decode_name(batch)}"
            self.progress(name)
            rates = self._decode_rates(SampledSide(greedy.llm), greedy, batch)
            yield BenchRow.rate(name, *rates, peer="pilotfish greedy")

    def load_rows(self, path: str, dtype: str, theirs: PeerProcess) -> Iterator[BenchRow]:
        """Model and tokenizer: until they are loaded, and until the first token is there."""
        self.progress("load")
        prompt = self.work.short()[:1]
        what = "GGUF" if path.endswith(".gguf") else "safetensors"

        def ours(num_tokens: int) -> Callable[[int], float]:
            def load() -> None:
                side = PilotfishSide(path, dtype=dtype)
                if num_tokens:
                    side.generate(prompt, num_tokens)

            return lambda _: timed(load)[0]

        def peers(num_tokens: int) -> Callable[[int], float]:
            return lambda _: theirs.load_again(prompt, num_tokens)

        for num_tokens, name in {0: f"load {what}", 1: f"load {what}, to the first token"}.items():
            pair = self._alternate(ours(num_tokens), peers(num_tokens))
            yield BenchRow.cost(name, *pair, peer=theirs.name)

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

    def _batches(self) -> list[list[TokenIds]]:
        prompts = self.work.short()
        return [prompts[:1], prompts]

    def _decode_name(self, batch: list[TokenIds]) -> str:
        name = f"decode, {len(batch)} request{'s' if len(batch) > 1 else ''}"
        return name + self.work.cut_note(TEXTS[: len(batch)])

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

    def _decode_rates(
        self, ours: Side, theirs: Side, prompts: list[TokenIds]
    ) -> tuple[float, float]:
        return self._alternate(self._decode_rate(ours, prompts), self._decode_rate(theirs, prompts))

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
