"""Answers that grow past the original length, through the public LLM, as transformers has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llama3.families import CASES, generate, prompt, reference
from pilotfish import LLM, CacheConfig, SamplingParams
from pilotfish.engine.length_rules import LengthRules

Checkpoint = Callable[[str], Path]

ORIGINAL = 16
NUM_TOKENS = 14
DEPENDENT = [case for case in CASES if "dynamic" in case or "long" in case]
PROMPTS = [prompt(length, seed=length) for length in (10, 3, ORIGINAL, ORIGINAL + 1, 15)]
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)


@pytest.mark.parametrize("case", DEPENDENT)
def test_texts_across_the_original_length_are_transformers_own(
    checkpoint: Checkpoint, case: str
) -> None:
    """Alone, together, in chunks and with so few pages that requests are preempted.

    A fresh reference each: transformers' dynamic angles remember the longest text so far.
    """
    path = checkpoint(case)
    wanted = [generate(reference(path), ids, NUM_TOKENS) for ids in PROMPTS]
    llm = LLM(str(path), dtype="float32")
    assert [llm.generate(ids, GREEDY)[0].token_ids for ids in PROMPTS] == wanted
    assert [out.token_ids for out in llm.generate(PROMPTS, GREEDY)] == wanted
    tight = LLM(
        str(path),
        dtype="float32",
        max_batch_tokens=7,
        cache=CacheConfig(num_pages=11, page_size_tokens=4),
    )
    assert [out.token_ids for out in tight.generate(PROMPTS, GREEDY)] == wanted
    assert tight.num_preemptions > 0


def test_a_request_is_computed_anew_once_where_its_config_says_so(checkpoint: Checkpoint) -> None:
    llm = LLM(str(checkpoint("phi3-longrope")), dtype="float32")
    llm.generate(prompt(10), GREEDY)
    assert llm.num_preemptions == 1
    llm.generate(prompt(ORIGINAL + 1), GREEDY)
    assert llm.num_preemptions == 1
    plain = LLM(str(checkpoint("llama-longrope")), dtype="float32")
    plain.generate(prompt(10), GREEDY)
    assert plain.num_preemptions == 0


def test_the_rule_holds_once_and_only_above_its_length() -> None:
    rules = LengthRules(recompute_length=16)
    assert [rules.restart_above(length) for length in (10, 16, 17)] == [16, 16, None]
    assert LengthRules().restart_above(10) is None
    assert LengthRules().salt(5) == b""
