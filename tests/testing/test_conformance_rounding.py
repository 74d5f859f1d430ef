"""Options that only choose where the oracle rounds: they change its logits in bfloat16 alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pilotfish import load_registry
from pilotfish.testing import Subject, TransformersOracle, check, promise_named, tiny_subjects
from pilotfish.testing.promises import options

PROMISE = promise_named("options are read or refused")
OPTION = "use_cache"


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch) -> Iterator[Subject]:
    """An oracle that rounds but once where an option is off, and a kit that tries that option."""
    real, others = TransformersOracle.eager, options.other_options

    def eager(self: Any, tokens: Any, dtype: str) -> torch.Tensor:
        is_on = json.loads((self.folder / "config.json").read_text()).get(OPTION, True)
        if dtype == "bfloat16" and not is_on:
            return TransformersOracle.exact(self, tokens, dtype).bfloat16().float()
        found: torch.Tensor = real(self, tokens, dtype)
        return found

    monkeypatch.setattr(TransformersOracle, "eager", eager)
    monkeypatch.setattr(
        options,
        "other_options",
        lambda subject: ((path, value) for path, value in others(subject) if path == OPTION),
    )
    with tiny_subjects("LlamaForCausalLM", load_registry(), only=["plain"]) as (subject,):
        yield subject


def test_one_that_is_ignored_is_noticed(llama: Subject) -> None:
    found = check(PROMISE, llama)
    assert found.status == "FAILED"
    assert found.said.startswith(
        f"got {{'{OPTION}': False}} was accepted and changes no logits in bfloat16; it changes 27"
    )


def test_one_that_is_read_is_none_that_is_ignored(
    llama: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Subject.alone

    def alone(self: Subject, tokens: Any, dtype: Any = None, **given: Any) -> torch.Tensor:
        if dtype == "bfloat16" and self.model != llama.model:
            return self.oracle.eager(tokens, dtype)
        return real(self, tokens, dtype, **given)

    monkeypatch.setattr(Subject, "alone", alone)
    found = check(PROMISE, llama)
    assert (found.status, found.said) == ("ok", "")


def test_nothing_is_rounded_where_bfloat16_is_not_tried(llama: Subject) -> None:
    llama.dtypes = ("float32",)
    found = check(PROMISE, llama)
    assert (found.status, found.said) == ("ok", "")
