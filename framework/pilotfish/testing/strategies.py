"""Hypothesis strategies for whole valid objects: batches, page tables, histories, options.

Knows: shapes and limits. Does not know: models. Needs hypothesis, which Pilotfish does not install.
Axis letters: B requests, W pages of the longest request.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import attrs
from hypothesis import strategies as st

from pilotfish.config import SamplingParams
from pilotfish.plugins import load_registry
from pilotfish.registry import Registry
from pilotfish.testing.checkpoints import examples_of


def token_ids(vocab_size: int) -> st.SearchStrategy[int]:
    """One id of a vocabulary."""
    return st.integers(0, vocab_size - 1)


def lengths(page_size: int, longest: int) -> st.SearchStrategy[int]:
    """Numbers of tokens from 1 to `longest`, often around a multiple of the page."""
    around = st.builds(
        lambda pages, by: min(max(pages * page_size + by, 1), longest),
        st.integers(0, longest // page_size),
        st.integers(-1, 1),
    )
    return around | st.integers(1, longest)


@st.composite
def ragged_batches(
    draw: st.DrawFn,
    *,
    vocab_size: int = 96,
    page_size: int = 4,
    longest: int = 24,
    max_requests: int = 5,
) -> list[list[int]]:
    """Texts to run side by side; some begin alike, so that pages can be shared."""
    trunk = draw(st.lists(token_ids(vocab_size), min_size=longest, max_size=longest))
    texts = []
    for _ in range(draw(st.integers(1, max_requests))):
        length = draw(lengths(page_size, longest))
        shared = draw(st.integers(0, length))
        count = length - shared
        rest = draw(st.lists(token_ids(vocab_size), min_size=count, max_size=count))
        texts.append(trunk[:shared] + rest)
    return texts


@attrs.frozen(kw_only=True)
class PageTable:
    """pages: [B] lists of page ids, no page twice. lengths: committed tokens. All of one pool."""

    page_size: int
    num_pages: int
    pages: list[list[int]]
    lengths: list[int]

    @property
    def padded(self) -> list[list[int]]:
        """[B, W] the ids with zeros behind them, as a pass gets them."""
        width = max(1, *(len(pages) for pages in self.pages))
        return [pages + [0] * (width - len(pages)) for pages in self.pages]


@st.composite
def page_tables(draw: st.DrawFn, *, max_requests: int = 5, longest: int = 24) -> PageTable:
    """Requests' pages in any order, with unused pages between them."""
    page_size = draw(st.sampled_from((1, 2, 4, 8)))
    count = draw(st.integers(1, max_requests))
    sizes = draw(st.lists(lengths(page_size, longest), min_size=count, max_size=count))
    needed = [-(-size // page_size) for size in sizes]
    num_pages = sum(needed) + draw(st.integers(0, 3))
    ids = iter(draw(st.permutations(range(num_pages))))
    pages = [list(islice(ids, number)) for number in needed]
    return PageTable(page_size=page_size, num_pages=num_pages, pages=pages, lengths=sizes)


@attrs.frozen(kw_only=True)
class Step:
    """One pass of a request: right rows that are kept, and wrong ones after them that are not."""

    num_kept: int
    num_rejected: int


@st.composite
def request_histories(draw: st.DrawFn, *, num_tokens: int, width: int = 8) -> list[Step]:
    """Steps that commit `num_tokens` in all: chunks, decode and verify, some keeping nothing."""
    steps, left = list[Step](), num_tokens
    while left:
        kept = min(left, draw(st.sampled_from((0, 1, 1, 1, 2, 3, width))))
        rejected = draw(st.sampled_from((0, 0, 0, 1, 2, width)))
        if kept == 0 and (rejected == 0 or (steps and steps[-1].num_kept == 0)):
            kept = 1
        steps.append(Step(num_kept=kept, num_rejected=rejected))
        left -= kept
    return steps


def sampling_params(
    *, vocab_size: int = 96, max_tokens: int = 14, stop: Sequence[str] = ()
) -> st.SearchStrategy[SamplingParams]:
    """Greedy and sampled, truncated and penalized, every stop rule.

    stop: texts to draw stop strings from; none for a checkpoint without a tokenizer.
    """

    def build(min_part: float, **fields: Any) -> SamplingParams:
        return SamplingParams(min_tokens=int(min_part * fields["max_tokens"]), **fields)

    token = token_ids(vocab_size)
    strings = st.lists(st.sampled_from(list(stop)), max_size=2) if stop else st.just([])
    return st.builds(
        build,
        st.sampled_from([0.0, 0.0, 0.4, 1.0]),
        max_tokens=st.integers(1, max_tokens),
        temperature=st.sampled_from([0.0, 0.7, 1.0, 3.0]),
        seed=st.integers(0, 5),
        top_k=st.sampled_from([-1, 1, 5]),
        top_p=st.sampled_from([1.0, 0.8, 0.3]),
        min_p=st.sampled_from([0.0, 0.05]),
        repetition_penalty=st.sampled_from([1.0, 1.3]),
        presence_penalty=st.sampled_from([0.0, 0.5]),
        frequency_penalty=st.sampled_from([0.0, 0.5]),
        logit_bias=st.dictionaries(token, st.sampled_from([-5.0, 3.0, 6.0]), max_size=2),
        stop=strings,
        stop_token_ids=st.lists(token, max_size=3),
        ignore_eos=st.booleans(),
        logprobs=st.sampled_from([None, 0, 2]),
        prompt_logprobs=st.sampled_from([None, None, 0, 2]),
    )


def tiny_examples(registry: Registry | None = None) -> st.SearchStrategy[tuple[str, str]]:
    """(architecture, name of an example) of everything registered; `save_tiny` writes one."""
    found = registry if registry is not None else load_registry()
    pairs = [
        (architecture, name)
        for architecture in found.architectures
        for name in examples_of(architecture, found).configs
    ]
    return st.sampled_from(pairs)
