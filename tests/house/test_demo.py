"""The demo model end to end: transformers' tokens, and the same text whatever runs beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch

from pilotfish import LLM, CacheConfig, SamplingParams
from pilotfish.weights import open_checkpoint
from support import forked
from support.gguf_files import read_once
from support.prompts import PROMPTS

pytestmark = pytest.mark.usefixtures("kept_probes")

NUM_TOKENS = 12
END = 2
"""The token that ends an answer."""
DTYPES = ("float32", "bfloat16")


Reference = Callable[[str, Sequence[int]], list[int]]


@pytest.fixture(scope="module")
def reference() -> Reference:
    """transformers' greedy token at each place of an answer, in float32, its own reading of the
    same file; those of an answer that is greedy are its own.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(open_checkpoint("demo").path)
    where = {"gguf_file": path.name}
    with read_once():
        model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **where)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)

    @cache
    def greedy(prompt: str, answer: tuple[int, ...]) -> list[int]:
        ids = [*tokenizer(prompt)["input_ids"], *answer]
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0]
        return list(logits[-len(answer) - 1 : -1].argmax(-1).tolist())

    return lambda prompt, answer: greedy(prompt, tuple(answer))


def test_greedy_tokens_equal_transformers_batched_through_the_command_line(
    reference: Reference, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    flags = ["--temperature", "0", "--dtype", "float32", "--max-tokens", str(NUM_TOKENS), "--json"]
    done = forked.run("-m", "pilotfish.cli", "generate", "demo", "--input-file", file, *flags)
    assert done.returncode == 0, done.stderr
    outputs = [json.loads(line) for line in done.stdout.splitlines()]
    assert [out["index"] for out in outputs] == list(range(len(PROMPTS)))
    for prompt, out in zip(PROMPTS, outputs, strict=True):
        want_whole(out["token_ids"])
        assert out["token_ids"] == reference(prompt, out["token_ids"]), prompt


def test_greedy_tokens_equal_transformers_alone(reference: Reference) -> None:
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS)
    with LLM("demo", dtype="float32", max_length=512) as llm:
        for prompt in PROMPTS:
            (output,) = llm.generate([prompt], params)
            want_whole(output.token_ids)
            assert list(output.token_ids) == reference(prompt, output.token_ids), prompt


def want_whole(answer: Sequence[int]) -> None:
    """As long as was asked for, or ended by the end token, and by nothing else."""
    assert len(answer) == NUM_TOKENS or answer[-1] == END
    assert END not in answer[:-1]


@pytest.fixture(scope="module", params=DTYPES)
def mixtures(request: pytest.FixtureRequest, kept_probes: None) -> Iterator[dict[str, LLM]]:
    """One engine for each way to cut the same work."""
    shared = {"dtype": request.param, "max_length": 256}
    small = CacheConfig(page_size_tokens=4, num_pages=24, prefix_caching=False)
    plain = CacheConfig(prefix_caching=False)
    engines = {
        "alone": LLM("demo", max_batch_size=1, cache=plain, **shared),
        "all at once": LLM("demo", max_batch_size=20, max_batch_tokens=4096, cache=plain, **shared),
        "chunks of 7": LLM("demo", max_batch_size=3, max_batch_tokens=7, cache=plain, **shared),
        "four pages, preempted": LLM(
            "demo", max_batch_size=8, max_batch_tokens=16, cache=small, **shared
        ),
        "prefix cache": LLM("demo", max_batch_size=5, **shared),
    }
    yield engines
    for engine in engines.values():
        engine.close()


def test_the_same_seed_gives_the_same_tokens_for_every_mixture(mixtures: dict[str, LLM]) -> None:
    prompts = [PROMPTS[i] for i in (0, 1, 4, 10, 13, 16)]
    params = [
        SamplingParams(temperature=0.8, seed=100 + i, max_tokens=16, ignore_eos=True)
        for i in range(len(prompts))
    ]
    texts = {
        name: [out.token_ids for out in llm.generate(prompts, params)]
        for name, llm in mixtures.items()
    }
    texts["prefix cache, warm"] = [
        out.token_ids for out in mixtures["prefix cache"].generate(prompts, params)
    ]
    assert mixtures["four pages, preempted"].num_preemptions > 0
    for name, tokens in texts.items():
        assert tokens == texts["alone"], name


def test_scores_have_the_same_bits_for_every_mixture(mixtures: dict[str, LLM]) -> None:
    tokenizer = mixtures["alone"].tokenizer
    assert tokenizer is not None
    rows = [tokenizer.encode(PROMPTS[i])[:40] for i in (13, 2, 10, 3)]
    expected = [mixtures["alone"].score(row) for row in rows]
    for name, llm in mixtures.items():
        for want, got in zip(expected, llm.score_many(rows), strict=True):
            assert torch.equal(want, got), name
