"""The conformance kit on drafters: every promise about drafts, for each drafter and a target."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pilotfish import SpeculativeConfig
from pilotfish.cli import main
from pilotfish.testing import PROMISES, Promise, Subject, check
from speculation.pairs import METHODS, Shelf, registry

ABOUT_DRAFTS = [promise for promise in PROMISES if promise.needs_drafter]
REGISTRY = registry()


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("promises"), REGISTRY)


TARGETS = {
    "llama": ("LlamaForCausalLM", "plain"),
    "hybrid": ("Lfm2ForCausalLM", "attention between"),
}


@pytest.mark.parametrize("promise", ABOUT_DRAFTS, ids=lambda promise: str(promise.name))
@pytest.mark.parametrize("drafter", ["eagle-1", "eagle-3", "dflash", "small model"])
@pytest.mark.parametrize("target", list(TARGETS))
def test_a_drafter_keeps_the_promise(
    shelf: Shelf, target: str, drafter: str, promise: Promise
) -> None:
    method = METHODS[drafter]
    with Subject(
        name=f"{drafter} on {target}",
        model=str(shelf.target(*TARGETS[target])),
        registry=REGISTRY,
        dtypes=("float32",),
        num_threads=1,
        draft=str(shelf.draft(drafter)),
        speculative=SpeculativeConfig(method=method),
    ) as subject:
        result = check(promise, subject)
    assert result.status == "ok", result.said


def test_verify_runs_them_where_a_drafter_is_given(
    shelf: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    model, draft = shelf.target("LlamaForCausalLM", "plain"), shelf.draft("eagle-3")
    flags = ["--draft", str(draft), "--speculative", "eagle", "--dtype", "float32", "--json"]
    only = [flag for p in ABOUT_DRAFTS[:2] for flag in ("--promise", p.name)]
    assert main(["verify", str(model), *flags, *only]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["promise"] for line in lines] == [p.name for p in ABOUT_DRAFTS[:2]]
    assert {line["status"] for line in lines} == {"ok"}


def test_verify_refuses_a_drafter_that_does_not_fit_before_anything_runs(
    shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shelf.target("LlamaForCausalLM", "plain")
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 7}))
    (tmp_path / "model.safetensors").symlink_to(model / "model.safetensors")
    flags = ["--draft", str(tmp_path), "--speculative", "small_model"]
    assert main(["verify", str(model), *flags]) == 2
    assert "wanted as many, or a tokenizer in both" in capsys.readouterr().err
