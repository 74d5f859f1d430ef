"""Numbers of NumPy and torch where Python's are wanted, None for "none", and what overflows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pilotfish import LLM, SamplingParams, load_registry
from pilotfish.errors import RequestError
from pilotfish.testing import save_tiny

IDS = [5, 6, 7]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder = tmp_path_factory.mktemp("numbers")
    return LLM(str(save_tiny("LlamaForCausalLM", "plain", folder, load_registry())))


@pytest.mark.parametrize(
    "prompts",
    [
        list(np.array(IDS)),
        np.array(IDS, dtype=np.int32),
        torch.tensor(IDS),
        [np.array(IDS)],
        [torch.tensor(IDS)],
        np.array([IDS]),
        {"prompt": list(np.array(IDS))},
    ],
    ids=lambda prompts: type(prompts).__name__,
)
def test_ids_may_be_numbers_of_arrays(llm: LLM, prompts: Any) -> None:
    params = SamplingParams(temperature=0, max_tokens=4)
    [wanted] = llm.generate([IDS], params)
    [found] = llm.generate(prompts, params)
    assert found.error is None
    assert found.token_ids == wanted.token_ids
    assert all(type(token) is int for token in found.prompt_token_ids)


@pytest.mark.parametrize(
    "prompt",
    [
        [np.array([1.0, 2.0])],
        [np.float32(1)],
        np.array([True]),
        memoryview(b"ab"),
        SimpleNamespace(ndim=1),  # an array of a library that has no `tolist`
    ],
)
def test_what_is_no_id_is_refused_all_the_same(llm: LLM, prompt: Any) -> None:
    with pytest.raises(RequestError, match="wanted"):
        llm.generate(prompt, SamplingParams(max_tokens=1))


def test_options_may_be_numbers_of_arrays() -> None:
    plain = SamplingParams(
        max_tokens=3, temperature=0.5, top_k=5, seed=7, logit_bias={4: 1.5}, stop_token_ids=[1, 2]
    )
    others = SamplingParams(
        max_tokens=np.int64(3),  # type: ignore[arg-type]
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        top_k=torch.tensor(5),
        seed=np.uint8(7),  # type: ignore[arg-type]
        logit_bias={np.int64(4): np.float64(1.5)},  # type: ignore[dict-item]
        stop_token_ids=np.array([1, 2]),  # type: ignore[arg-type]
    )
    assert others == plain
    assert hash(others) == hash(plain)
    for name in ("max_tokens", "temperature", "top_k", "seed"):
        assert type(getattr(others, name)) is type(getattr(plain, name))


def test_none_is_what_is_not_given() -> None:
    names = ("stop", "stop_token_ids", "suppress_tokens", "logit_bias")
    none: dict[str, Any] = dict.fromkeys(names)
    assert SamplingParams(**none) == SamplingParams()
    assert SamplingParams(stop_token_ids={5}).stop_token_ids == (5,)  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [1e39, -3e38, float("nan"), float("inf")])
def test_a_bias_that_would_overflow_is_refused_by_name(bias: float) -> None:
    with pytest.raises(RequestError, match=r"logit_bias has 5: .*; wanted token ids >= 0 with num"):
        SamplingParams(logit_bias={5: bias})


def test_the_largest_bias_overflows_at_no_temperature(llm: LLM) -> None:
    for temperature in (0, 1e-5, 1e-4, 1.0):
        params = SamplingParams(temperature=temperature, logit_bias={9: 1e30}, max_tokens=2)
        [output] = llm.generate([IDS], params)
        assert output.error is None
        assert list(output.token_ids) == [9, 9]
