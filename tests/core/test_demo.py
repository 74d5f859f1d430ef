"""The demo model end to end: transformers' tokens, and the same text whatever runs beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pilotfish import LLM, CacheConfig, SamplingParams
from pilotfish.weights import open_checkpoint

from .prompts import PROMPTS

NUM_TOKENS = 20
DTYPES = ("float32", "bfloat16")


@pytest.fixture(scope="module")
def reference() -> dict[str, list[int]]:
    """transformers' greedy tokens in float32, its own reading of the same file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(open_checkpoint("demo").path)
    model = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    expected = {}
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        width = ids["input_ids"].shape[1]
        with torch.inference_mode():
            out = model.generate(**ids, max_new_tokens=NUM_TOKENS, do_sample=False, pad_token_id=0)
        expected[prompt] = out[0, width:].tolist()
    return expected


def test_greedy_tokens_equal_transformers_batched_through_the_command_line(
    reference: dict[str, list[int]], tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    flags = ["--temperature", "0", "--dtype", "float32", "--max-tokens", str(NUM_TOKENS), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "pilotfish.cli", "generate", "demo", "--input-file", file, *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outputs = [json.loads(line) for line in done.stdout.splitlines()]
    assert [out["index"] for out in outputs] == list(range(len(PROMPTS)))
    got = {
        prompt: _without_eos(out["token_ids"]) for prompt, out in zip(PROMPTS, outputs, strict=True)
    }
    assert got == {prompt: _without_eos(ids) for prompt, ids in reference.items()}


def test_greedy_tokens_equal_transformers_alone(reference: dict[str, list[int]]) -> None:
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS)
    with LLM("demo", dtype="float32", max_length=512) as llm:
        for prompt in PROMPTS:
            assert _without_eos(llm.generate([prompt], params)[0].token_ids) == _without_eos(
                reference[prompt]
            ), prompt


def _without_eos(ids: list[int]) -> list[int]:
    return [token for token in ids if token != 2]


@pytest.fixture(scope="module", params=DTYPES)
def mixtures(request: pytest.FixtureRequest) -> Iterator[dict[str, LLM]]:
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
