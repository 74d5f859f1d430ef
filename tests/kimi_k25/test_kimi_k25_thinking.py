"""Relaxed acceptance with the checkpoint's own thinking tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from kimi_k25.towers import TEMPLATE, save_with_tokenizer
from pilotfish import LLM, SamplingParams, SpeculativeConfig
from pilotfish.cli import main
from pilotfish.errors import ConfigError

RELAXED = SpeculativeConfig(method="small_model", acceptance="relaxed")
PARAMS = SamplingParams(temperature=1.0, seed=3, max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that names no thinking tokens."""
    return save_with_tokenizer(tmp_path_factory.mktemp("silent"))


@pytest.fixture(scope="module", params=["<think>", "◁think▷"])
def thinking(
    silent: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, tuple[int, int]]:
    """One whose chat template has them as tokens, and their ids."""
    start = str(request.param)
    end = f"{start[0]}/{start[1:]}"
    folder = tmp_path_factory.mktemp("thinking") / "it"
    shutil.copytree(silent, folder)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_tokens([start, end])
    backend.save(str(folder / "tokenizer.json"))
    write_template(folder, f"{TEMPLATE}{{# {start}{end} #}}")
    first, last = (backend.token_to_id(text) for text in (start, end))
    assert first is not None
    assert last is not None
    return folder, (first, last)


def write_template(folder: Path, template: str) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))


def test_the_templates_tokens_are_taken_and_the_text_is_labelled(
    thinking: tuple[Path, tuple[int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, ids = thinking
    path = str(folder)
    prompt = [7, ids[0], 8, 9]
    with LLM(path, draft=path, speculative=RELAXED, dtype="float32") as llm:
        options = llm.pipeline_config.speculative
        assert options is not None
        assert options.thinking_tokens == ids
        (output,) = llm.generate(prompt, PARAMS)
    assert output.speculative is not None
    assert output.speculative["lossy"] is True
    assert output.speculative["accepted"] > 0
    assert len(output.token_ids) == 24
    argv = ["inspect", path, "--draft", path, "--speculative", "small_model"]
    assert main([*argv, "--acceptance", "relaxed", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["thinking_tokens"] == list(ids)


def test_what_the_user_gives_goes_first(thinking: tuple[Path, tuple[int, int]]) -> None:
    given = SpeculativeConfig(method="ngram", acceptance="relaxed", thinking_tokens=(1, 2))
    with LLM(str(thinking[0]), speculative=given, dtype="float32") as llm:
        assert llm.pipeline_config.speculative == given


@pytest.mark.parametrize(
    ("file", "fields", "wanted"),
    [
        ("generation_config.json", ("think_start_token_id", "think_end_token_id"), (5, 6)),
        ("config.json", ("thinking_start_token_id", "thinking_end_token_id"), (6, 5)),
    ],
)
def test_configs_may_name_them(
    file: str, fields: tuple[str, str], wanted: tuple[int, int], silent: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "it"
    shutil.copytree(silent, folder)
    options: dict[str, Any] = {}
    if (folder / file).is_file():
        options = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(options | dict(zip(fields, wanted, strict=True))))
    relaxed = SpeculativeConfig(method="ngram", acceptance="relaxed")
    with LLM(str(folder), speculative=relaxed, dtype="float32") as llm:
        assert llm.pipeline_config.speculative is not None
        assert llm.pipeline_config.speculative.thinking_tokens == wanted


def test_a_checkpoint_that_names_none_is_refused(silent: Path, tmp_path: Path) -> None:
    relaxed = SpeculativeConfig(method="ngram", acceptance="relaxed")
    with pytest.raises(
        ConfigError,
        match=r"neither its configs \(think_start_token_id with think_end_token_id\) nor its chat "
        r"template \(<think> with </think>, a token each\)",
    ):
        LLM(str(silent), speculative=relaxed)
    # Texts of many tokens are no tokens.
    folder = tmp_path / "it"
    shutil.copytree(silent, folder)
    write_template(folder, f"{TEMPLATE}{{# <think></think> #}}")
    with pytest.raises(ConfigError, match="names none"):
        LLM(str(folder), speculative=relaxed)
