"""The benchmark's own parts: rounds, token comparison, rows. Speed itself is never asserted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from bench.planted_peers import Breaks, Ends, Liar, TellsSpinCount, exits
from pilotfish import SpeculativeConfig
from pilotfish.bench import BenchRow, peer_process, rows, run_speculation, run_suite
from pilotfish.bench import suite as suite_module
from pilotfish.bench.agreement import Judge, compare_tokens
from pilotfish.bench.llama_cpp import LlamaCppLookup, LlamaCppSide, check_llama_cpp
from pilotfish.bench.measure import Median, alternate
from pilotfish.bench.peer_process import PeerProcess
from pilotfish.bench.peers import PilotfishSide, TransformersSide
from pilotfish.bench.workloads import QUOTED, TEXTS, TokenIds, Workload
from pilotfish.errors import ConfigError, PilotfishError
from pilotfish.platform import openmp
from support.gguf_files import write_gguf

PROMPTS = [[1, 2, 3], [5, 6, 7, 8, 9, 10, 11], [4]]
IMPORTED = (
    *("pilotfish.bench.peers", "pytest", "transformers.generation.utils"),
    *("transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama"),
    __name__,
)


@pytest.fixture
def forked_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of peers come from one that has imported what they do: it takes most of their time.

    Not where they are to find what the user has set, which that one found before.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([*IMPORTED])
    monkeypatch.setattr(peer_process, "get_context", lambda _: context)


def test_rounds_alternate_and_the_median_counts() -> None:
    calls: list[str] = []
    figures = {"a": iter([9.0, 1.0, 5.0, 2.0]), "b": iter([9.0, 4.0, 3.0, 8.0])}

    def side(name: str) -> float:
        calls.append(name)
        return next(figures[name])

    medians = alternate([lambda _: side("a"), lambda _: side("b")], rounds=3)
    assert medians == [2.0, 4.0]
    assert [median.spread for median in medians] == [(5 - 1) / 2 / 2, (8 - 3) / 2 / 4]
    assert Median.of([3.0]).spread is None
    assert "".join(calls) == "baabbaab"


def test_both_sides_give_the_same_tokens(tiny_checkpoint: Path) -> None:
    ours = PilotfishSide(str(tiny_checkpoint), dtype="float32")
    theirs = TransformersSide(str(tiny_checkpoint), dtype="float32")
    assert compare_tokens(ours, theirs, PROMPTS, num_tokens=8) is True


def test_other_tokens_are_not_called_equal(tiny_checkpoint: Path) -> None:
    ours = PilotfishSide(str(tiny_checkpoint), dtype="float32")
    assert compare_tokens(ours, Liar(), PROMPTS, num_tokens=8) is False


@attrs.frozen
class Departs:
    """A side that answers as ours does, but for one token of every prompt."""

    ours: PilotfishSide
    at: int
    token: int
    name = "departs"

    def generate(self, prompts: Sequence[TokenIds], num_tokens: int) -> list[TokenIds]:
        rows = self.ours.generate(prompts, num_tokens)
        return [[*row[: self.at], self.token, *[0] * (num_tokens - self.at - 1)] for row in rows]


def test_a_judge_tells_near_ties_from_real_differences(tiny_checkpoint: Path) -> None:
    """Other tokens may come from the first difference on, if its gap is below the judge's."""
    ours = PilotfishSide(str(tiny_checkpoint), dtype="bfloat16")
    exact = PilotfishSide(str(tiny_checkpoint), dtype="float32").llm
    (row,) = ours.generate(PROMPTS[:1], 8)
    logits = exact.score([*PROMPTS[0], *row[:3]])[-1]
    second = int(logits.argsort(descending=True)[1])
    gap = (logits[row[3]] - logits[second]).abs().item()
    assert second != row[3]
    assert gap > 0
    theirs = Departs(ours, 3, second)

    def verdict(widest_gap: float) -> bool | str:
        return compare_tokens(ours, theirs, PROMPTS[:1], 8, Judge(llm=exact, widest_gap=widest_gap))

    assert verdict(gap * 1.01) == f"0 of 1 equal; near-ties: token 3, gap {gap:.2g}"
    assert verdict(gap * 0.99) is False
    last = int(logits.argmin())
    judge = Judge(llm=exact, widest_gap=gap * 1.01)
    assert compare_tokens(ours, Departs(ours, 3, last), PROMPTS[:1], 8, judge) is False
    assert compare_tokens(ours, ours, PROMPTS, 8, judge) is True


def test_a_side_in_a_process_of_its_own_gives_the_same_tokens(tiny_checkpoint: Path) -> None:
    ours = PilotfishSide(str(tiny_checkpoint), dtype="float32")
    with PeerProcess(TransformersSide, str(tiny_checkpoint), dtype="float32") as theirs:
        assert theirs.name == "transformers"
        assert compare_tokens(ours, theirs, PROMPTS, num_tokens=8) is True
    with pytest.raises(OSError, match="closed"):
        theirs.generate(PROMPTS, 1)


@pytest.mark.usefixtures("forked_peers")
def test_a_peer_is_loaded_again_and_tells_of_itself(tiny_checkpoint: Path) -> None:
    with PeerProcess(TransformersSide, str(tiny_checkpoint), dtype="float32") as peer:
        assert peer.about == ""
        before = peer.generate(PROMPTS, 4)
        assert peer.load_again([], 0) > 0
        assert peer.load_again(PROMPTS, 1) > 0
        assert peer.generate(PROMPTS, 4) == before
        assert 10**7 < peer.peak_bytes() < 10**11


def test_the_process_of_a_peer_imports_no_torch_for_us() -> None:
    """In a program of its own: this one's tests import torch, and a new process their file."""
    program = (
        "import sys\n"
        "from pilotfish.bench.llama_cpp import LlamaCppSide\n"
        "from pilotfish.bench.peer_process import PeerProcess\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


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


@pytest.mark.usefixtures("forked_peers")
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
    tight = attrs.evolve(work, max_seq_len=24)
    assert {len(prompt) for prompt in tight.copies()} == {11}
    assert {len(prompt) for prompt in tight.short()} == {8, 9, 10, 11}


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thing timed takes longer than the one before: rows of a toy on a busy machine do not."""
    seconds = iter(range(1, 10**6))
    monkeypatch.setattr(rows, "timed", lambda run: (float(next(seconds)), run()))


@pytest.mark.usefixtures("ticks")
@pytest.mark.usefixtures("forked_peers")
def test_the_whole_suite_runs_on_a_checkpoint_without_a_tokenizer(tiny_checkpoint: Path) -> None:
    """Every row is there with tokens equal; how large the figures are is not asserted."""
    told: list[str] = []
    shown: list[BenchRow] = []
    report = run_suite(
        str(tiny_checkpoint),
        against=["transformers"],
        dtype="float32",
        rounds=1,
        prefills=[32],
        progress=told.append,
        show=shown.append,
    )
    assert told[0] == "loading"
    assert re.fullmatch(r"all, in about \d+ (s|min), if peers are as fast", told[1])
    assert tuple(shown) == report.rows
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


def test_the_rows_of_a_drafter_come_when_they_are_measured(tiny_checkpoint: Path) -> None:
    told: list[str] = []
    shown: list[BenchRow] = []
    report = run_speculation(
        str(tiny_checkpoint),
        SpeculativeConfig(method="ngram"),
        dtype="float32",
        rounds=1,
        progress=told.append,
        show=shown.append,
    )
    assert re.fullmatch(r"all, in about \d+ (s|min), if drafts change nothing", told[1])
    assert tuple(shown) == report.rows
    assert [row.tokens_equal for row in shown] == [True, True, True, True, None]
    assert [row.peer for row in shown] == [*["pilotfish plain"] * 4, "bound of 6"]


def tiny_gguf(path: Path, context: int) -> Path:
    """A random Llama of float32 rows and no tokenizer, which llama.cpp reads too."""
    width, hidden, vocab = 64, 96, 256
    shapes = {"token_embd": (vocab, width), "output_norm": (width,)}
    for layer in ("blk.0.", "blk.1."):
        shapes |= {f"{layer}{name}": (width,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"{layer}{name}": (width, width) for name in ("attn_q", "attn_output")}
        shapes |= {f"{layer}{name}": (width // 2, width) for name in ("attn_k", "attn_v")}
        shapes |= {f"{layer}{name}": (hidden, width) for name in ("ffn_gate", "ffn_up")}
        shapes[f"{layer}ffn_down"] = (width, hidden)
    metadata = {
        "llama.block_count": 2,
        "llama.context_length": context,
        "llama.embedding_length": width,
        "llama.feed_forward_length": hidden,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": 16,
        "llama.vocab_size": vocab,
        "tokenizer.ggml.model": "none",
    }
    random = np.random.default_rng(0)
    tensors = {
        f"{name}.weight": (random.normal(0, 0.3, shape).astype(np.float32), None)
        for name, shape in shapes.items()
    }
    return write_gguf(path / "tiny.gguf", tensors, metadata, architecture="llama")


class LikeOurs(PilotfishSide):
    """Stands for llama.cpp where it is not installed."""

    name = "llama.cpp"
    about = "a stand-in"

    def __init__(self, path: str, *, dtype: str, num_threads: int) -> None:
        super().__init__(path, dtype=dtype)


@pytest.mark.usefixtures("ticks")
@pytest.mark.usefixtures("forked_peers")
def test_the_rows_beside_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With our own engine in its place: rows, processes, and what they say of tokens."""
    for name in ("LlamaCppSide", "LlamaCppLookup"):
        monkeypatch.setattr(suite_module, name, LikeOurs)
    monkeypatch.setattr(suite_module, "check_llama_cpp", lambda _: None)
    path = tiny_gguf(tmp_path, context=24)
    report = run_suite(str(path), against=["llama.cpp"], rounds=1, prefills=[16])
    assert report.dtype == "float32"
    assert report.machine()["llama.cpp"] == "a stand-in"
    beside = {row.name: row for row in report.rows if row.peer.startswith("llama.cpp")}
    assert set(beside) == {
        "decode, 1 request",
        "decode, 8 requests",
        "prefill of 16 tokens",
        "first token after 12 prompt tokens",
        "quoting with n-gram drafts, 4 requests one by one",
        "load GGUF",
        "load GGUF, to the first token",
        "peak memory",
    }
    assert all(row.tokens_equal in (True, None) for row in report.rows), report.to_markdown()
    ours = {row.name for row in report.rows if row.peer == "pilotfish greedy"}
    assert len(ours) == 2
    assert all(name.startswith("sampled against greedy: decode") for name in ours)


def test_llama_cpp_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ConfigError, match="none installed; run: pip install llama-cpp-python"):
        run_suite("demo", against=["llama.cpp"])
    spec: Any = type("Module", (), {"__spec__": "found"})
    monkeypatch.setitem(sys.modules, "llama_cpp", spec)
    with pytest.raises(ConfigError, match=r"reads \.gguf files; got /some/folder"):
        check_llama_cpp("/some/folder")


@pytest.mark.llama_cpp
def test_llama_cpp_gives_our_tokens(tmp_path: Path) -> None:
    """The real peer on float32 rows: alone, together, over several batches and with its drafts.

    Its keys and values are float16, which moves these logits by some ten-thousandths.
    """
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    path = str(tiny_gguf(tmp_path, context=128))
    ours = PilotfishSide(path, dtype="float32")
    judge = Judge(llm=ours.llm, widest_gap=0.002)
    work = Workload.of(ours.llm)
    prompts = [work.random(count, count) for count in (1, 9, 30, 100, 101, 102, 103, 104)]
    with PeerProcess(LlamaCppSide, path, dtype="float32") as theirs:
        assert "llama-cpp-python" in theirs.about
        for some in (prompts[:1], prompts, prompts[3:5], prompts[1:2]):
            assert compare_tokens(ours, theirs, some, 20, judge)
        assert compare_tokens(ours, theirs, prompts[:3], 20) is True
        assert theirs.load_again(prompts, 2) > 0
    copies = [work.random(12, place) * 3 for place in range(4)]
    with PeerProcess(LlamaCppLookup, path, dtype="float32") as lookup:
        assert compare_tokens(ours, lookup, [*copies, *prompts], 20, judge)
        assert compare_tokens(ours, lookup, prompts[:3], 20) is True


@pytest.mark.llama_cpp
def test_llama_cpp_on_the_demo_parts_at_near_ties_only() -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    ours = PilotfishSide("demo", dtype="float32")
    prompts = Workload.of(ours.llm).short()[:3]
    judge = Judge(llm=ours.llm, widest_gap=suite_module.WIDEST_GAP)
    with PeerProcess(LlamaCppSide, ours.llm.model_path, dtype="float32") as theirs:
        assert compare_tokens(ours, theirs, prompts, 8, judge)


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
