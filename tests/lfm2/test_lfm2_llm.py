"""The whole engine: same seed, same text; tiny pools, prefix hits, chunks; memory as planned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lfm2.checkpoints import generate, prompt, reference
from pilotfish import LLM, SamplingParams, SpeculativeConfig
from pilotfish.cli.inspect import describe
from pilotfish.config import CacheConfig
from pilotfish.loading.prepare import prepare_from_options
from pilotfish_lfm2.cache import ConvStateCache

Checkpoint = Callable[[str], Path]

PROMPTS = [prompt(length, seed=length) for length in (19, 1, 8, 9, 33, 2)]
PROMPTS += [PROMPTS[4][:17], [*PROMPTS[0], 5]]
"""The last two begin as others do."""
NUM_TOKENS = 14


def params(seed: int | None = None) -> list[SamplingParams]:
    """Greedy, or sampled with a seed of its own for each request."""
    return [
        SamplingParams(
            max_tokens=NUM_TOKENS,
            temperature=0.0 if seed is None else 0.9,
            seed=None if seed is None else seed + index,
            ignore_eos=True,
        )
        for index in range(len(PROMPTS))
    ]


def texts(llm: LLM, seed: int | None) -> list[list[int]]:
    return [list(out.token_ids) for out in llm.generate(PROMPTS, params(seed))]


def make(path: Path, dtype: str, **options: int) -> LLM:
    cache = CacheConfig(
        page_size_tokens=options.pop("page_size_tokens", 4),
        num_pages=options.pop("num_pages", None),
        prefix_caching=bool(options.pop("prefix_caching", 1)),
    )
    return LLM(str(path), dtype=dtype, device="cpu", cache=cache, max_length=64, **options)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def alone(
    request: pytest.FixtureRequest, checkpoint: Checkpoint
) -> tuple[str, list[list[int]], list[list[int]]]:
    """(dtype, greedy texts, sampled texts), each request by itself in one prefill."""
    llm = make(checkpoint("plain"), request.param, prefix_caching=0)
    found = []
    for seed in (None, 7):
        outs = [
            llm.generate([tokens], [one])[0]
            for tokens, one in zip(PROMPTS, params(seed), strict=True)
        ]
        found.append([list(out.token_ids) for out in outs])
    return request.param, found[0], found[1]


def test_greedy_texts_are_transformers_own(
    alone: tuple[str, list[list[int]], list[list[int]]], checkpoint: Checkpoint
) -> None:
    dtype, greedy, sampled = alone
    assert sampled != greedy
    if dtype == "float32":
        theirs = reference(checkpoint("plain"))
        assert greedy == [generate(theirs, tokens, NUM_TOKENS) for tokens in PROMPTS]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_batch_tokens": 5, "max_batch_size": 3},
        {"max_batch_tokens": 1},
        {"num_pages": 13, "max_batch_tokens": 7},
        {"num_pages": 13, "max_batch_size": 2, "prefix_caching": 0},
        {"num_pages": 60, "page_size_tokens": 1, "max_batch_tokens": 40},
    ],
    ids=str,
)
def test_same_seed_same_text(
    alone: tuple[str, list[list[int]], list[list[int]]],
    checkpoint: Checkpoint,
    options: dict[str, int],
) -> None:
    """Together, in chunks, with few slots, preempted, and started from shared prefixes."""
    dtype, greedy, sampled = alone
    llm = make(checkpoint("plain"), dtype, **options)
    for _ in range(2):  # the second time prefixes are there
        assert texts(llm, None) == greedy
        assert texts(llm, 7) == sampled


def test_tiny_pools_do_preempt_and_prefixes_do_hit(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above would prove little if they did not."""
    llm = make(checkpoint("plain"), "float32", num_pages=13, max_batch_tokens=7)
    restored: list[int] = []
    restore = ConvStateCache.restore

    def counted(self: ConvStateCache, request_id: str, page: int, num_tokens: int) -> None:
        restored.append(num_tokens)
        restore(self, request_id, page, num_tokens)

    monkeypatch.setattr(ConvStateCache, "restore", counted)
    texts(llm, None)
    assert llm.engine.scheduler.num_preemptions > 0
    assert max(restored) >= 4
    assert llm._state is not None
    assert llm._state.num_available_pages == 13
    cache = llm._state._slot_caches._caches[0]
    assert isinstance(cache, ConvStateCache)
    assert cache.slots.num_free == cache.slots.num_slots


def test_inspect_plans_both_states(checkpoint: Checkpoint) -> None:
    prepared = prepare_from_options(
        str(checkpoint("plain")),
        dtype="float32",
        device="cpu",
        max_batch_size=5,
        cache=CacheConfig(num_pages=7, page_size_tokens=8),
    )
    state = describe(prepared)["memory"]["state_bytes"]
    states = prepared.allocate()
    cache = states._slot_caches._caches[0]
    assert isinstance(cache, ConvStateCache)
    assert state == {
        "kv": 7 * 8 * 2 * 2 * 2 * 12 * 4,
        "conv at page ends": cache.kept.nbytes,
        "conv": cache.memory.nbytes,
    }
    assert cache.slots.num_slots == 5
    without = prepare_from_options(
        str(checkpoint("plain")), dtype="float32", cache=CacheConfig(prefix_caching=False)
    )
    assert set(without.memory_plan.state) == {"kv", "conv"}
    lone = without.allocate()._slot_caches._caches[0]
    assert isinstance(lone, ConvStateCache)
    assert lone.kept.numel() == 0


def test_rows_that_wait_for_their_commit_are_in_the_plan(checkpoint: Checkpoint) -> None:
    """A pass keeps a column of every row in every convolution until it is committed."""
    plans = [
        prepare_from_options(
            str(checkpoint(case)), dtype="float32", max_batch_tokens=100
        ).memory_plan
        for case in ("all-conv", "all-attention")
    ]
    assert plans[0].activations - plans[1].activations == 4 * 48 * 4 * 100


def test_score_is_the_same_in_any_chunks(checkpoint: Checkpoint) -> None:
    scores = [
        make(checkpoint("plain"), "bfloat16", max_batch_tokens=rows).score(PROMPTS[4])
        for rows in (64, 5)
    ]
    assert torch.equal(scores[0], scores[1])


@pytest.mark.parametrize("width", [1, 4])
def test_a_draft_that_never_met_it_changes_no_text(
    alone: tuple[str, list[list[int]], list[list[int]]], checkpoint: Checkpoint, width: int
) -> None:
    """Drafted rows are verified and mostly rejected; pages and columns roll back together."""
    dtype, greedy, sampled = alone
    llm = LLM(
        str(checkpoint("plain")),
        dtype=dtype,
        device="cpu",
        max_length=64,
        speculative=SpeculativeConfig(method="ngram", width=width),
        cache=CacheConfig(page_size_tokens=4, num_pages=16),
        max_batch_tokens=9,
    )
    assert texts(llm, None) == greedy
    assert texts(llm, 7) == sampled
    loops = [[5, 6] * 8, [7, 8, 9] * 6]
    params = SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)
    outputs = llm.generate(loops, params)
    drafted = [out.speculative["drafted"] for out in outputs if out.speculative is not None]
    assert sum(drafted) > 0
    plain = make(checkpoint("plain"), dtype).generate(loops, params)
    assert [out.token_ids for out in outputs] == [out.token_ids for out in plain]
