"""The suite behind `pilotfish bench`: every row that a CPU user would ask for.

Knows: which rows there are, and on which models. Does not know: how a row is measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence

import attrs

from pilotfish.bench.agreement import Judge
from pilotfish.bench.experts import busiest_over_mean
from pilotfish.bench.llama_cpp import LlamaCppLookup, LlamaCppSide, check_llama_cpp
from pilotfish.bench.measure import in_words
from pilotfish.bench.memory import NUM_TOKENS, peak_memory_rows
from pilotfish.bench.peer_process import PeerProcess
from pilotfish.bench.peers import PilotfishSide, TransformersSide, as_safetensors_directory
from pilotfish.bench.report import BenchReport, BenchRow
from pilotfish.bench.rows import Suite
from pilotfish.bench.workloads import Workload
from pilotfish.engine import LLM
from pilotfish.errors import ConfigError
from pilotfish.loading.prepare import prepare_from_options

PEERS = ("transformers", "llama.cpp")
PREFILLS = (512,)
WIDEST_GAP = 0.5
"""Of logits, between our token and one of llama.cpp, whose rows are int8 in its products."""


def run_suite(
    model: str,
    *,
    against: Sequence[str] = (),
    dtype: str = "auto",
    rounds: int = 5,
    prefills: Sequence[int] = PREFILLS,
    progress: Callable[[str], None] = lambda _: None,
    show: Callable[[BenchRow], None] = lambda _: None,
) -> BenchReport:
    """Runs every row; peers are measured in alternation with us, in processes of their own.

    model: as for `LLM`. against: names of peers, see PEERS. rounds: of which a row is the median.
    dtype: of our sides, as for `LLM`; transformers gets the one that it comes to. prefills: lengths
    of prompts whose prefill is timed. progress: told what is measured next, and at first how long
    all will take. show: given each row when it is measured.
    Raises ConfigError for a peer that is not known, not installed or cannot read the model, for no
    rounds, or for a prompt that does not fit.
    """
    for peer in against:
        if peer not in PEERS:
            raise ConfigError(f"peer {peer!r} is not known; wanted one of {', '.join(PEERS)}")
    if rounds < 1:
        raise ConfigError(f"rounds is {rounds}; wanted at least 1")
    prepared = prepare_from_options(model, dtype=dtype, device="cpu")  # refuses what can be
    longest = prepared.model.config.get_max_seq_len() - 1
    if not all(1 <= length <= longest for length in prefills):
        raise ConfigError(f"prefill lengths are {list(prefills)}; wanted 1 to {longest}")
    if LlamaCppSide.name in against:
        check_llama_cpp(prepared.pipeline_config.model.path)
    del prepared
    progress("loading")
    ours = PilotfishSide(model, dtype=dtype)
    suite = Suite(
        work=Workload.of(ours.llm), rounds=rounds, prefills=tuple(prefills), progress=progress
    )
    progress(f"all, in {_estimate(suite, ours, rounds, len(against))}")
    rows: list[BenchRow] = []
    peers: dict[str, str] = {}
    for row in _rows(suite, ours, model, dtype, against=against, peers=peers):
        show(row)
        rows.append(row)
    sample = suite.work.text(ours.generate(suite.work.short()[:1], suite.work.num_decoded)[0])
    experts = busiest_over_mean(ours, suite.work.short(), suite.work.num_decoded)
    return BenchReport.of(
        ours.llm, model=model, rows=tuple(rows), sample=sample, peers=peers, experts=experts
    )


def _estimate(suite: Suite, ours: PilotfishSide, rounds: int, num_peers: int) -> str:
    """How long it takes in words, from one round of ours.

    A pair of sides has a round of warming up, one in which tokens are compared, and the others.
    """
    num_pairs = 2 + num_peers  # against `fastest`, drawn against greedy, and the peers
    return in_words(2 * num_pairs * (rounds + 2) * suite.seconds_of_a_round(ours)) + (
        ", if peers are as fast" if num_peers else ""
    )


def _rows(
    suite: Suite,
    ours: PilotfishSide,
    model: str,
    dtype: str,
    *,
    against: Sequence[str],
    peers: dict[str, str],
) -> Iterator[BenchRow]:
    """Every row, when it is measured. peers: gets what a peer says of itself."""
    peaks: dict[str, int] = {}
    if TransformersSide.name in against:
        yield from _beside_transformers(suite, ours.llm.model_path, ours.llm.dtype)
    if LlamaCppSide.name in against:
        yield from _beside_llama_cpp(suite, ours, dtype, peers, peaks)
    fastest = PilotfishSide(model, dtype=dtype, arithmetic="fastest")
    short = attrs.evolve(suite, prefills=suite.prefills[:1])
    yield from short.speed_rows(ours, fastest, prefix="invariant against fastest: ")
    del fastest
    yield from suite.sampled_rows(ours)
    yield suite.prefix_row(model, dtype)
    suite.progress("peak memory")
    yield from peak_memory_rows(model, dtype, peaks)


def _beside_transformers(suite: Suite, path: str, dtype: str) -> Iterator[BenchRow]:
    """dtype: of both sides."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = as_safetensors_directory(path, dtype, scratch)
        twin = PilotfishSide(directory, dtype=dtype)
        with PeerProcess(TransformersSide, directory, dtype=dtype) as theirs:
            yield from suite.speed_rows(twin, theirs)
            del twin
            yield from suite.load_rows(directory, dtype, theirs)


def _beside_llama_cpp(
    suite: Suite, ours: PilotfishSide, dtype: str, peers: dict[str, str], peaks: dict[str, int]
) -> Iterator[BenchRow]:
    """Puts what the peer says of itself into peers and the most memory that it took into peaks."""
    path = ours.llm.model_path
    exact = ours.llm if ours.llm.dtype == "float32" else LLM(path, dtype="float32", device="cpu")
    judge = Judge(llm=exact, widest_gap=WIDEST_GAP)
    name = LlamaCppSide.name
    with PeerProcess(LlamaCppSide, path, dtype=dtype) as theirs:
        theirs.generate([suite.work.random(suite.work.num_shared, 0)], NUM_TOKENS)
        peers[name], peaks[name] = theirs.about, theirs.peak_bytes()
        yield from suite.speed_rows(ours, theirs, judge=judge)
        yield suite.first_token_row(ours, theirs, judge)
        drafted = PilotfishSide(path, dtype=dtype, speculative="ngram")
        yield suite.quoting_row(drafted, theirs, judge)
        with PeerProcess(LlamaCppLookup, path, dtype=dtype) as lookup:
            yield suite.quoting_row(drafted, lookup, judge)
        del drafted
        yield from suite.load_rows(path, dtype, theirs)
