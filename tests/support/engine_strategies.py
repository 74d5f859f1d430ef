"""What the engine's tests draw: prompts that begin alike, options, sizes of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from pilotfish.config import SamplingParams
from support.toy_model import EOS

MAX_SEQ_LEN = 40
Job = tuple[list[int], SamplingParams]


def prompts(max_size: int = 30) -> st.SearchStrategy[list[int]]:
    """Token ids; many prompts share a beginning, so that pages are shared."""
    beginning = st.sampled_from([[], [7] * 4, [7] * 8, [7] * 8 + [9] * 9])
    tail = st.lists(st.integers(97, 100), min_size=1, max_size=max_size - 17)
    return st.builds(lambda head, rest: head + rest, beginning, tail)


def params(max_tokens: int = 14) -> st.SearchStrategy[SamplingParams]:
    """Greedy and sampled, truncated and penalized, every stop rule."""

    def build(min_part: float, **fields: Any) -> SamplingParams:
        return SamplingParams(min_tokens=int(min_part * fields["max_tokens"]), **fields)

    return st.builds(
        build,
        st.sampled_from([0.0, 0.0, 0.4, 1.0]),
        max_tokens=st.integers(1, max_tokens),
        temperature=st.sampled_from([0.0, 0.7, 1.0, 3.0]),
        seed=st.integers(0, 5),
        top_k=st.sampled_from([-1, 5]),
        top_p=st.sampled_from([1.0, 0.8]),
        repetition_penalty=st.sampled_from([1.0, 1.3]),
        presence_penalty=st.sampled_from([0.0, 0.5]),
        logit_bias=st.sampled_from([{}, {EOS: 3.0}, {98: 6.0}]),
        stop=st.lists(st.text("abcxyz", min_size=1, max_size=2), max_size=2).map(tuple),
        stop_token_ids=st.sampled_from([(), (101,), (101, 120, 97)]),
        ignore_eos=st.booleans(),
        logprobs=st.sampled_from([None, 0, 2]),
        prompt_logprobs=st.sampled_from([None, None, 0, 2]),
    )


def jobs(max_size: int = 6) -> st.SearchStrategy[list[Job]]:
    """Requests that run together."""
    return st.lists(st.tuples(prompts(), params()), min_size=1, max_size=max_size)


@st.composite
def sizes(draw: st.DrawFn, longest: int = MAX_SEQ_LEN) -> dict[str, Any]:
    """Fields of ToyEngine in which every request fits alone, often barely."""
    page_size = draw(st.sampled_from([1, 2, 4]))
    needed = -(-longest // page_size)
    return {
        "page_size": page_size,
        "num_pages": needed + draw(st.sampled_from([0, 0, 1, 3, needed, 4 * needed])),
        "max_batch_size": draw(st.sampled_from([1, 2, 3, 8])),
        "max_batch_tokens": draw(st.sampled_from([1, 2, 3, 5, 16, 64])),
        "prefix_caching": draw(st.booleans()),
        "max_seq_len": longest,
    }


def token_lists(outputs: Sequence[Any]) -> list[list[int]]:
    """The answers' tokens."""
    return [list(output.token_ids) for output in outputs]
