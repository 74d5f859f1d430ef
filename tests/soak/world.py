"""The soak test's models and right answers: each target with each drafter, and every request alone.

Knows: checkpoints on disk, and what a request gives on a plain engine. Does not know: histories.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import attrs
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from pilotfish import LLM, CacheConfig, RequestOutput, SamplingParams, SpeculativeConfig
from pilotfish.config.sampling import seed_of_sample
from pilotfish.testing import drafters
from pilotfish.tokenization.byte_letters import BYTE_LETTERS
from speculation.pairs import DRAFTERS, DTYPES, METHODS, VOCAB, Shelf, targets

SHARED = ([3, 7, 7, 5] * 9, [60, 61, 3, 7] * 9)
"""Prompts begin alike, so that pages are shared."""


@attrs.frozen
class Job:
    """One request. Equal jobs have equal answers."""

    prompt: tuple[int, ...]
    params: SamplingParams

    @property
    def key(self) -> tuple[object, ...]:
        return self.prompt, repr(self.params)

    @property
    def num_tokens(self) -> int:
        """The longest that it can become."""
        return len(self.prompt) + self.params.max_tokens


@attrs.frozen(kw_only=True)
class Setup:
    """How the model of one history is loaded; drawn whole, so that a number says all of it."""

    target: tuple[str, str]
    drafter: str | None
    script: str
    dtype: str
    acceptance: str
    width: Any
    page_size: int
    spare_pages: int
    max_batch_size: int
    max_batch_tokens: int
    prefix_caching: bool


class World:
    """Checkpoints, each written once, and answers, each asked once. A context manager's content."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self._plain: dict[tuple[tuple[str, str], str], LLM] = {}
        self._answers: dict[object, Any] = {}

    def setup(self, draw: random.Random) -> Setup:
        """A target, a drafter and sizes in which requests get in each other's way."""
        drafter = draw.choice([None, None, "ngram", *DRAFTERS])
        return Setup(
            target=draw.choice(targets(self.shelf.registry)),
            drafter=drafter,
            script=draw.choice(["repeats", "random", "out of vocabulary", "silent"]),
            dtype=draw.choice(DTYPES),
            acceptance=draw.choice(["coupled"] * 5 + ["residual"]),
            width=draw.choice([1, 2, 3, 4, "adaptive", {1: 3, 2: 1}]),
            page_size=draw.choice([1, 2, 4, 8, 16]),
            spare_pages=draw.randint(0, 4),
            max_batch_size=draw.randint(1, 6),
            max_batch_tokens=draw.choice([6, 7, 9, 16, 32]),
            prefix_caching=draw.random() < 0.8,
        )

    def job(self, draw: random.Random, setup: Setup) -> Job:
        """A prompt, often with a shared beginning, and options of every kind."""
        beginning = draw.choice(SHARED)[: draw.choice([0, 0, 8, 16, 30])]
        tail = [draw.randrange(1, 40) for _ in range(draw.randint(1, 9))]
        max_tokens = draw.randint(1, 14)
        is_plain = setup.acceptance != "coupled"
        params = SamplingParams(
            temperature=0.0 if is_plain else draw.choice([0.0, 0.7, 1.3]),
            seed=draw.randint(0, 3),
            max_tokens=max_tokens,
            min_tokens=draw.choice([0, 0, max_tokens // 2]),
            ignore_eos=draw.random() < 0.8,
            top_k=draw.choice([-1, 20]),
            repetition_penalty=draw.choice([1.0, 1.3]),
            presence_penalty=draw.choice([0.0, 0.5]),
            stop_token_ids=draw.choice([(), (11, 12, 13, 14)]),
            stop=() if "Kimi" in setup.target[0] else draw.choice([(), ("ab", "q"), ("k", "lm")]),
            logprobs=draw.choice([None, None, 2]),
            prompt_logprobs=draw.choice([None, None, None, 1]),
        )
        return Job((*beginning, *tail), params)

    def llm(self, setup: Setup, jobs: Sequence[Job]) -> LLM:
        """The model of one history; its pages hold the longest of the jobs and little more."""
        longest = max(job.num_tokens for job in jobs)
        cache = CacheConfig(
            page_size_tokens=setup.page_size,
            num_pages=-(-longest // setup.page_size) + setup.spare_pages,
            prefix_caching=setup.prefix_caching,
        )
        draft, speculative = None, None
        if setup.drafter is not None:
            draft = self.shelf.draft(setup.drafter)
            if draft is not None:
                _add_tokenizer(str(draft), setup.drafter == "small model")
            speculative = SpeculativeConfig(
                method=METHODS.get(setup.drafter, drafters.METHOD),
                width=setup.width,
                acceptance=setup.acceptance,
            )
        llm = LLM(
            str(self._target(setup.target)),
            draft=None if draft is None else str(draft),
            speculative=speculative,
            dtype=setup.dtype,
            cache=cache,
            max_batch_size=setup.max_batch_size,
            max_batch_tokens=setup.max_batch_tokens,
            registry=self.shelf.registry,
        )
        if speculative is not None and speculative.method == drafters.METHOD:
            drafters.play(llm, self._script(setup))
        return llm

    def answer(self, setup: Setup, job: Job) -> RequestOutput:
        """What the request gives alone, on an engine that nothing ever disturbed."""
        key = (setup.target, setup.dtype, job.key)
        if key not in self._answers:
            output = self._llm_alone(setup).generate([list(job.prompt)], job.params)[0]
            self._answers[key] = output
        found: RequestOutput = self._answers[key]
        return found

    def sample(self, job: Job, sample: int) -> Job:
        """The request whose answer is one of several of another's."""
        assert job.params.seed is not None
        seed = seed_of_sample(job.params.seed, sample)
        return attrs.evolve(job, params=attrs.evolve(job.params, seed=seed))

    def scores(self, setup: Setup, prompt: tuple[int, ...]) -> torch.Tensor:
        """The logits of a text alone."""
        key = (setup.target, setup.dtype, prompt)
        if key not in self._answers:
            self._answers[key] = self._llm_alone(setup).score(list(prompt))
        found: torch.Tensor = self._answers[key]
        return found

    def close(self) -> None:
        """Lets go of the models that answer alone."""
        for llm in self._plain.values():
            llm.close()
        self._plain.clear()

    def _script(self, setup: Setup) -> drafters.Script:
        return {
            "repeats": drafters.repeats,
            "random": drafters.random_tokens(VOCAB),
            "out of vocabulary": drafters.out_of_vocabulary(VOCAB),
            "silent": drafters.silent,
        }[setup.script]

    def _llm_alone(self, setup: Setup) -> LLM:
        key = (setup.target, setup.dtype)
        if key not in self._plain:
            self._plain[key] = LLM(
                str(self._target(setup.target)),
                dtype=setup.dtype,
                cache=CacheConfig(page_size_tokens=4, num_pages=64, prefix_caching=False),
                registry=self.shelf.registry,
            )
        return self._plain[key]

    def _target(self, target: tuple[str, str]) -> str:
        path = str(self.shelf.target(*target))
        _add_tokenizer(path, "Kimi" not in target[0])
        return path


def _add_tokenizer(folder: str, is_wanted: bool) -> None:
    """One token a byte, with bytes that are letters only together."""
    from pathlib import Path

    path = Path(folder) / "tokenizer.json"
    if not is_wanted or path.exists():
        return
    letters = list(BYTE_LETTERS)
    chosen = [*letters[: VOCAB - 3], *letters[-2:]]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={letter: number for number, letter in enumerate(chosen)}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    backend.save(str(path))
