"""The benchmark's own parts: rounds, token comparison, rows. Speed itself is never asserted."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pilotfish import openmp
from pilotfish.bench import BenchReport, BenchRow, run_suite
from pilotfish.bench.measure import alternate
from pilotfish.bench.peer_process import PeerProcess
from pilotfish.bench.peers import PilotfishSide, TransformersSide
from pilotfish.bench.suite import compare_tokens
from pilotfish.bench.workloads import QUOTED, TEXTS, TokenIds, Workload
from pilotfish.errors import ConfigError, PilotfishError

PROMPTS = [[1, 2, 3], [5, 6, 7, 8, 9, 10, 11], [4]]


def test_rounds_alternate_and_the_median_counts() -> None:
    calls: list[str] = []
    figures = {"a": iter([9.0, 1.0, 5.0, 2.0]), "b": iter([9.0, 4.0, 3.0, 8.0])}

    def side(name: str) -> float:
        calls.append(name)
        return next(figures[name])

    medians = alternate([lambda _: side("a"), lambda _: side("b")], rounds=3)
    assert medians == [2.0, 4.0]
    assert "".join(calls) == "baabbaab"


def test_both_sides_give_the_same_tokens(tiny_checkpoint: Path) -> None:
    ours = PilotfishSide(str(tiny_checkpoint), dtype="float32")
    theirs = TransformersSide(str(tiny_checkpoint), dtype="float32")
    assert compare_tokens(ours, theirs, PROMPTS, num_tokens=8) is True


class Liar:
    """A side that answers something else."""

    name = "liar"

    def generate(self, prompts: Sequence[TokenIds], num_tokens: int) -> list[TokenIds]:
        return [[0] * num_tokens for _ in prompts]


def test_other_tokens_are_not_called_equal(tiny_checkpoint: Path) -> None:
    ours = PilotfishSide(str(tiny_checkpoint), dtype="float32")
    assert compare_tokens(ours, Liar(), PROMPTS, num_tokens=8) is False


def exits(directory: str, *, dtype: str) -> Liar:
    os._exit(3)


class Breaks(Liar):
    """A side that fails at work."""

    name = "breaks"

    def __init__(self, directory: str, *, dtype: str) -> None:
        if dtype != "float32":
            raise TypeError(f"no {dtype}")

    def generate(self, prompts: Sequence[TokenIds], num_tokens: int) -> list[TokenIds]:
        raise RuntimeError(f"{num_tokens} are too many")


class Ends(Breaks):
    """A side whose process ends at work."""

    name = "ends"

    def generate(self, prompts: Sequence[TokenIds], num_tokens: int) -> list[TokenIds]:
        os._exit(4)


def test_a_side_in_a_process_of_its_own_gives_the_same_tokens(tiny_checkpoint: Path) -> None:
    ours = PilotfishSide(str(tiny_checkpoint), dtype="float32")
    with PeerProcess(TransformersSide, str(tiny_checkpoint), dtype="float32") as theirs:
        assert theirs.name == "transformers"
        assert compare_tokens(ours, theirs, PROMPTS, num_tokens=8) is True
    with pytest.raises(OSError, match="closed"):
        theirs.generate(PROMPTS, 1)


class TellsSpinCount(Breaks):
    """A side whose token is how long its OpenMP threads spin; 0: as torch has it."""

    def generate(self, prompts: Sequence[TokenIds], num_tokens: int) -> list[TokenIds]:
        return [[int(os.environ.get("GOMP_SPINCOUNT", "0"))]]


@pytest.mark.parametrize(("of_the_user", "ours", "theirs"), [(None, 5000, 0), ("77", 77, 77)])
def test_a_peer_does_not_run_with_what_we_set_for_our_own_threads(
    monkeypatch: pytest.MonkeyPatch, of_the_user: str | None, ours: int, theirs: int
) -> None:
    monkeypatch.setattr(openmp, "_set_here", set())
    monkeypatch.setenv("GOMP_SPINCOUNT", of_the_user or "0")
    if of_the_user is None:
        monkeypatch.delenv("GOMP_SPINCOUNT")
    openmp.spin_briefly()
    with PeerProcess(TellsSpinCount, "", dtype="float32") as peer:
        assert peer.generate([], 1) == [[theirs]]
    assert int(os.environ["GOMP_SPINCOUNT"]) == ours


def test_what_fails_in_the_other_process_is_told() -> None:
    with pytest.raises(PilotfishError, match="breaks: TypeError: no bfloat16"):
        PeerProcess(Breaks, "", dtype="bfloat16")
    with (
        PeerProcess(Breaks, "", dtype="float32") as side,
        PeerProcess(Ends, "", dtype="float32") as ended,
    ):
        for count in (2, 3):
            with pytest.raises(PilotfishError, match=f"breaks: RuntimeError: {count} are too many"):
                side.generate(PROMPTS, count)
        for _ in range(2):
            with pytest.raises(PilotfishError, match="process of ends ended with exit code 4; "):
                ended.generate(PROMPTS, 2)
    with pytest.raises(PilotfishError, match=r"ended with exit code 3; wanted an answer$"):
        PeerProcess(exits, "", dtype="float32")


def test_an_unknown_peer_is_refused() -> None:
    with pytest.raises(ConfigError, match="transformers"):
        run_suite("demo", against=["vlllm"])


def test_a_ratio_above_one_is_a_win_for_rates_and_costs() -> None:
    fast = BenchRow.rate("r", 30.0, 20.0, peer="p", equal=True)
    cheap = BenchRow.cost("c", 2.0, 3.0, peer="p", equal="1 of 2 equal; near-ties: x")
    assert fast.ratio == cheap.ratio == 1.5
    report = BenchReport(model="m", dtype="float32", threads=2, rows=(fast, cheap), sample="text")
    rows = json.loads(json.dumps(report.to_json()))
    assert rows[0] == {
        "name": "r",
        "ours": 30.0,
        "theirs": 20.0,
        "peer": "p",
        "ratio": 1.5,
        "unit": "tokens/s",
        "tokens_equal": True,
    }
    assert rows[-1]["machine"]["threads"] == 2
    assert "| r | 30 | 20 | p | 1.50 | tokens/s | yes |" in report.to_markdown()
    assert "near-ties" in report.to_markdown()


def test_a_bench_that_cannot_be_run_says_why(tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="rounds is 0; wanted at least 1"):
        run_suite("demo", rounds=0)
    with pytest.raises(ConfigError, match=r"prefill lengths are \[64\]; wanted 1 to 63"):
        run_suite(str(tiny_checkpoint), dtype="float32", prefills=[64])


def test_workloads_fit_small_vocabularies_and_need_no_tokenizer() -> None:
    work = Workload(vocab_size=7, max_seq_len=64, tokenizer=None)
    assert len(work.short()) == len(TEXTS)
    assert {token for seed in range(9) for token in work.random(50, seed)} == {3, 4, 5, 6}
    assert work.random(20, 1) == work.random(20, 1) != work.random(20, 2)
    assert work.text([3, 4]) == "3 4"


def test_the_whole_suite_runs_on_a_checkpoint_without_a_tokenizer(tiny_checkpoint: Path) -> None:
    """Every row is there with tokens equal; how large the figures are is not asserted."""
    report = run_suite(
        str(tiny_checkpoint), against=["transformers"], dtype="float32", rounds=1, prefills=[32]
    )
    names = [row.name for row in report.rows]
    assert len(names) == len(set(names))
    for name in (
        "decode, 1 request",
        "decode, 8 requests",
        "prefill of 32 tokens",
        "load safetensors",
        "load safetensors, to the first token",
        "invariant against fastest: decode, 1 request",
        "first token, 32 tokens with a cached prefix",
        "peak memory",
    ):
        assert name in names
    assert all(row.tokens_equal in (True, None) for row in report.rows), report.to_markdown()
    assert all(row.ours > 0 and row.theirs > 0 for row in report.rows)


class Letters:
    """A tokenizer with a token for every letter."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 50 for letter in text]


def test_prompts_fit_a_short_context_and_the_rows_say_so() -> None:
    tokenizer: Any = Letters()
    short = Workload(vocab_size=64, max_seq_len=48, tokenizer=tokenizer)
    assert (short.num_decoded, short.num_prompt) == (24, 23)
    for prompts in (short.copies(), short.short()):
        assert all(len(prompt) + short.num_decoded + 1 <= 48 for prompt in prompts)
    assert short.copies()[0] == tokenizer.encode(QUOTED[0])[-23:]
    assert short.cut_note(QUOTED) == ", prompts cut to 23 tokens"
    assert short.cut_note(["x" * 23]) == ""
    long = Workload(vocab_size=64, max_seq_len=4096, tokenizer=tokenizer)
    assert long.copies()[0] == tokenizer.encode(QUOTED[0])
    assert long.cut_note([*QUOTED, *TEXTS]) == ""
    with pytest.raises(ConfigError, match="the context is 2 tokens; wanted 3 at least"):
        Workload(vocab_size=64, max_seq_len=2, tokenizer=tokenizer).short()
