"""A pass of torch's attention is laid out before its first layer: no layer does it for the rest."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pilotfish.kernels.paged_attention import layout, paged_attention
from pilotfish.layers.attention import PagedAttentionLayer
from pilotfish.speculation.draft_model import DraftNetwork
from speculation.pairs import PARAMS, PROMPTS, Shelf, registry, targets

pytestmark = pytest.mark.usefixtures("kept_probes")

REGISTRY = registry()
FEW = [params.replace(max_tokens=4, min_tokens=0) for params in PARAMS]
"""Passes of prompts, of both and of answers, each watched call by call."""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("laid"), REGISTRY)


@contextmanager
def layouts_counted() -> Iterator[Counter[str]]:
    """How many were made "in a layer", and how many "before the first"."""
    made: Counter[str] = Counter()

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or frame.f_code is not layout.make_layout.__code__:
            return
        above: FrameType | None = frame
        while above is not None and above.f_code is not paged_attention.__code__:
            above = above.f_back
        made["before the first" if above is None else "in a layer"] += 1

    sys.setprofile(watch)
    try:
        yield made
    finally:
        sys.setprofile(None)


def counted(shelf: Shelf, target: tuple[str, str], drafter: str | None, arithmetic: str) -> Any:
    options: dict[str, Any] = {"backend": "torch", "arithmetic": arithmetic}
    with shelf.llm(shelf.target(*target), drafter, "float32", **options) as llm:
        with layouts_counted() as made:
            llm.generate(PROMPTS, FEW)
        return made


@pytest.mark.parametrize("arithmetic", ["invariant", "fastest"])
@pytest.mark.parametrize("target", targets(REGISTRY), ids="-".join)
def test_no_layer_lays_a_pass_out(shelf: Shelf, target: tuple[str, str], arithmetic: str) -> None:
    made = counted(shelf, target, None, arithmetic)
    assert made["before the first"] > 0
    assert made["in a layer"] == 0


@pytest.mark.parametrize("drafter", ["eagle-1", "eagle-3", "dflash"])
def test_nor_does_a_drafts(shelf: Shelf, drafter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = ("LlamaForCausalLM", "plain")
    assert counted(shelf, target, drafter, "invariant")["in a layer"] == 0
    monkeypatch.setattr(DraftNetwork, "lay_outs", ())
    assert counted(shelf, target, drafter, "invariant")["in a layer"] > 0


def test_a_layer_that_says_less_is_laid_out_by_its_first_call(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another package's layers leave out costs no answer, and the count above sees it."""
    target = ("LlamaForCausalLM", "plain")
    path = str(shelf.target(*target))

    def texts() -> Any:
        with shelf.llm(Path(path), None, "float32", backend="torch") as llm:
            return [list(out.token_ids) for out in llm.generate(PROMPTS, PARAMS)]

    expected = texts()
    silent: Callable[..., None] = lambda self, run: None  # noqa: E731
    monkeypatch.setattr(PagedAttentionLayer, "lay_out", silent)
    assert counted(shelf, target, None, "invariant")["in a layer"] > 0
    assert texts() == expected
