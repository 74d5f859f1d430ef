"""The suite behind `pilotfish bench`: every row that a CPU user would ask for.

Knows: workloads. Does not know: how sides run or how rows are shown.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pilotfish.bench.measure import alternate, timed
from pilotfish.bench.memory import peak_memory_row
from pilotfish.bench.peers import (
    PilotfishSide,
    Side,
    TokenIds,
    TransformersSide,
    as_safetensors_directory,
    load_transformers,
)
from pilotfish.bench.report import BenchReport, BenchRow
from pilotfish.engine.tokenizer import need_tokenizer
from pilotfish.errors import ConfigError

PEERS = ("transformers",)
NUM_DECODED = 64

PROMPTS = (
    "The history of the Roman empire begins with",
    "def fibonacci(n):\n    ",
    "To bake a loaf of bread, first",
    "The three laws of thermodynamics say that",
    "Once upon a time there was a small fish who",
    "In the year 1969, two astronauts",
    "The capital of France is Paris. The capital of Italy is",
    "A good way to learn a new language is",
)


def run_suite(
    model: str,
    *,
    against: Sequence[str] = (),
    dtype: str = "bfloat16",
    rounds: int = 5,
    progress: Callable[[str], None] = lambda _: None,
) -> BenchReport:
    """Runs every row; peers are measured in alternation with us, in this process.

    model: as for `LLM`. against: names of peers, see PEERS. progress: told what is measured next.
    Raises ConfigError for a peer that is not known.
    """
    for peer in against:
        if peer not in PEERS:
            raise ConfigError(f"peer {peer!r} is not known; wanted one of {', '.join(PEERS)}")
    import torch

    progress("loading")
    ours = PilotfishSide(model, dtype=dtype)
    tokenizer = need_tokenizer(ours.llm.tokenizer)
    prompts = [list(tokenizer.encode(text)) for text in PROMPTS]
    rows: list[BenchRow] = []
    with tempfile.TemporaryDirectory() as scratch:
        if "transformers" in against:
            directory = as_safetensors_directory(ours.llm.model_path, dtype, scratch)
            twin = PilotfishSide(directory, dtype=dtype)
            theirs = TransformersSide(directory, dtype=dtype)
            rows += _against(twin, theirs, prompts, rounds, progress)
            progress("load")
            rows.append(_load_row(directory, dtype, rounds))
            del twin, theirs
    progress("invariant arithmetic")
    rows += _invariance_rows(ours, model, dtype, prompts, rounds)
    progress("cached prefix")
    rows.append(_prefix_row(model, dtype, rounds))
    progress("peak memory")
    rows.append(peak_memory_row(model, dtype))
    sample = tokenizer.decode(ours.generate(prompts[:1], NUM_DECODED)[0])
    return BenchReport(
        model=model, dtype=dtype, threads=torch.get_num_threads(), rows=tuple(rows), sample=sample
    )


def _against(
    ours: PilotfishSide,
    theirs: Side,
    prompts: list[TokenIds],
    rounds: int,
    progress: Callable[[str], None],
) -> list[BenchRow]:
    rows = []
    for batch in (prompts[:1], prompts):
        name = f"decode, {len(batch)} request{'s' if len(batch) > 1 else ''}"
        progress(name)
        rates = alternate([_decode_rate(ours, batch), _decode_rate(theirs, batch)], rounds=rounds)
        equal = compare_tokens(ours, theirs, batch)
        rows.append(
            BenchRow.rate(name, rates[0], rates[1], peer=theirs.name, unit="tokens/s", equal=equal)
        )
    progress("prefill of 512 tokens")
    rates = alternate([_prefill_rate(ours, 512), _prefill_rate(theirs, 512)], rounds=rounds)
    equal = compare_tokens(ours, theirs, [_long_prompt(512, 0)], num_tokens=1)
    rows.append(
        BenchRow.rate(
            "prefill of 512 tokens",
            rates[0],
            rates[1],
            peer=theirs.name,
            unit="tokens/s",
            equal=equal,
        )
    )
    return rows


def _decode_rate(side: Side, prompts: list[TokenIds]) -> Callable[[int], float]:
    """Tokens a second after the first one: a run of N+1 tokens less a run of one."""

    def run(_: int) -> float:
        first = timed(lambda: side.generate(prompts, 1))[0]
        whole = timed(lambda: side.generate(prompts, NUM_DECODED + 1))[0]
        return len(prompts) * NUM_DECODED / (whole - first)

    return run


def _prefill_rate(side: Side, num_tokens: int) -> Callable[[int], float]:
    def run(round_number: int) -> float:
        prompt = _long_prompt(num_tokens, round_number)
        seconds, _ = timed(lambda: side.generate([prompt], 1))
        return num_tokens / seconds

    return run


def _long_prompt(num_tokens: int, seed: int) -> TokenIds:
    import torch

    generator = torch.Generator().manual_seed(seed % 2**31)
    ids: TokenIds = torch.randint(1000, 20000, (num_tokens,), generator=generator).tolist()
    return ids


def compare_tokens(
    ours: PilotfishSide, theirs: Side, prompts: list[TokenIds], num_tokens: int = NUM_DECODED
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


def _load_row(directory: str, dtype: str, rounds: int) -> BenchRow:
    def ours(_: int) -> float:
        seconds, side = timed(lambda: PilotfishSide(directory, dtype=dtype))
        side.llm.close()
        return seconds

    def theirs(_: int) -> float:
        def load() -> Any:
            model = load_transformers(directory, dtype)
            if not (Path(directory) / "tokenizer.json").exists():
                return model
            from transformers import AutoTokenizer

            return model, AutoTokenizer.from_pretrained(directory)

        return timed(load)[0]

    seconds = alternate([ours, theirs], rounds=rounds)
    return BenchRow.cost(
        "load safetensors", seconds[0], seconds[1], peer="transformers", unit="s", equal=None
    )


def _invariance_rows(
    ours: PilotfishSide, model: str, dtype: str, prompts: list[TokenIds], rounds: int
) -> list[BenchRow]:
    fastest = PilotfishSide(model, dtype=dtype, arithmetic="fastest")
    rows = []
    for batch in (prompts[:1], prompts):
        rates = alternate([_decode_rate(ours, batch), _decode_rate(fastest, batch)], rounds=rounds)
        name = f"invariant against fastest, decode, {len(batch)}"
        equal = compare_tokens(ours, fastest, batch)
        rows.append(
            BenchRow.rate(name, rates[0], rates[1], peer=fastest.name, unit="tokens/s", equal=equal)
        )
    rates = alternate([_prefill_rate(ours, 512), _prefill_rate(fastest, 512)], rounds=rounds)
    equal = compare_tokens(ours, fastest, [_long_prompt(512, 0)], num_tokens=1)
    rows.append(
        BenchRow.rate(
            "invariant against fastest, prefill",
            rates[0],
            rates[1],
            peer=fastest.name,
            unit="tokens/s",
            equal=equal,
        )
    )
    return rows


def _prefix_row(model: str, dtype: str, rounds: int) -> BenchRow:
    """A 200-token prompt, first cold and then again: seconds to the first token."""
    side = PilotfishSide(model, dtype=dtype, prefix_caching=True)
    cold_texts: dict[int, list[TokenIds]] = {}
    warm_texts: dict[int, list[TokenIds]] = {}

    def cold(round_number: int) -> float:
        side.llm.forget_cached_prefixes()
        prompt = _long_prompt(200, round_number)
        seconds, cold_texts[round_number] = timed(lambda: side.generate([prompt], 1))
        return seconds

    def warm(round_number: int) -> float:
        prompt = _long_prompt(200, round_number)
        side.generate([prompt], 1)
        seconds, warm_texts[round_number] = timed(lambda: side.generate([prompt], 1))
        return seconds

    seconds = alternate([warm, cold], rounds=rounds)
    return BenchRow.cost(
        "first token, 200 tokens with a cached prefix",
        seconds[0],
        seconds[1],
        peer="pilotfish cold",
        unit="s",
        equal=cold_texts == warm_texts,
    )
