"""The suite behind `pilotfish bench`: every row that a CPU user would ask for.

Knows: which rows there are, and on which models. Does not know: how a row is measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence

import attrs

from pilotfish.bench.agreement import Judge
from pilotfish.bench.llama_cpp import LlamaCppLookup, LlamaCppSide, check_llama_cpp
from pilotfish.bench.memory import NUM_TOKENS, peak_memory_rows
from pilotfish.bench.peer_process import PeerProcess
from pilotfish.bench.peers import PilotfishSide, TransformersSide, as_safetensors_directory
from pilotfish.bench.report import BenchReport, BenchRow
from pilotfish.bench.rows import Suite
from pilotfish.bench.workloads import Workload
from pilotfish.engine import LLM
from pilotfish.engine.loading import prepare_from_options
from pilotfish.errors import ConfigError

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
) -> BenchReport:
    """Runs every row; peers are measured in alternation with us, in processes of their own.

    model: as for `LLM`. against: names of peers, see PEERS. rounds: of which a row is the median.
    dtype: of our sides, as for `LLM`; transformers gets the one that it comes to. prefills: lengths
    of prompts whose prefill is timed. progress: told what is measured next.
    Raises ConfigError for a peer that is not known, not installed or cannot read the model, for no
    rounds, or for a prompt that does not fit.
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
    if LlamaCppSide.name in against:
        check_llama_cpp(prepared.pipeline_config.model.path)
    del prepared
    progress("loading")
    ours = PilotfishSide(model, dtype=dtype)
    suite = Suite(
        work=Workload.of(ours.llm), rounds=rounds, prefills=tuple(prefills), progress=progress
    )
    rows: list[BenchRow] = []
    peers: dict[str, str] = {}
    peaks: dict[str, int] = {}
    if TransformersSide.name in against:
        rows += _beside_transformers(suite, ours.llm.model_path, ours.llm.dtype)
    if LlamaCppSide.name in against:
        rows += _beside_llama_cpp(suite, ours, dtype, peers, peaks)
    fastest = PilotfishSide(model, dtype=dtype, arithmetic="fastest")
    short = attrs.evolve(suite, prefills=suite.prefills[:1])
    rows += short.speed_rows(ours, fastest, prefix="invariant against fastest: ")
    del fastest
    rows += suite.sampled_rows(ours)
    rows.append(suite.prefix_row(model, dtype))
    progress("peak memory")
    rows += peak_memory_rows(model, dtype, peaks)
    sample = suite.work.text(ours.generate(suite.work.short()[:1], suite.work.num_decoded)[0])
    return BenchReport(
        model=model,
        dtype=ours.llm.dtype,
        threads=torch.get_num_threads(),
        rows=tuple(rows),
        sample=sample,
        backend=ours.llm.pipeline_config.runtime.backend,
        peers=peers,
    )


def _beside_transformers(suite: Suite, path: str, dtype: str) -> list[BenchRow]:
    """dtype: of both sides."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = as_safetensors_directory(path, dtype, scratch)
        twin = PilotfishSide(directory, dtype=dtype)
        with PeerProcess(TransformersSide, directory, dtype=dtype) as theirs:
            rows = suite.speed_rows(twin, theirs)
            del twin
            return rows + suite.load_rows(directory, dtype, theirs)


def _beside_llama_cpp(
    suite: Suite, ours: PilotfishSide, dtype: str, peers: dict[str, str], peaks: dict[str, int]
) -> list[BenchRow]:
    """Puts what the peer says of itself into peers and the most memory that it took into peaks."""
    path = ours.llm.model_path
    exact = ours.llm if ours.llm.dtype == "float32" else LLM(path, dtype="float32", device="cpu")
    judge = Judge(llm=exact, widest_gap=WIDEST_GAP)
    name = LlamaCppSide.name
    with PeerProcess(LlamaCppSide, path, dtype=dtype) as theirs:
        theirs.generate([suite.work.random(suite.work.num_shared, 0)], NUM_TOKENS)
        peers[name], peaks[name] = theirs.about, theirs.peak_bytes()
        rows = suite.speed_rows(ours, theirs, judge=judge)
        rows.append(suite.first_token_row(ours, theirs, judge))
        drafted = PilotfishSide(path, dtype=dtype, speculative="ngram")
        rows.append(suite.quoting_row(drafted, theirs, judge))
        with PeerProcess(LlamaCppLookup, path, dtype=dtype) as lookup:
            rows.append(suite.quoting_row(drafted, lookup, judge))
        del drafted
        return rows + suite.load_rows(path, dtype, theirs)
