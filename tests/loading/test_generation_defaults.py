"""What generation_config.json says of sampling holds where nobody says otherwise; only there."""

from __future__ import annotations

import ast
import io
import json
from pathlib import Path
from typing import Any

import pytest

import pilotfish
from pilotfish import LLM, SamplingParams
from pilotfish.cli import main
from pilotfish.config.generation import sampling_of
from pilotfish.errors import CheckpointError, ConfigError
from pilotfish.tokenization.tokenizer import need_tokenizer
from support.chains import chain_checkpoint
from tokenization.test_tokenizer_published import prepend, save

ALL = {
    "do_sample": True,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.05,
    "repetition_penalty": 1.05,
    "suppress_tokens": [3, 5],
}


def test_every_field_that_is_read() -> None:
    want = {key: value for key, value in ALL.items() if key != "do_sample"}
    assert sampling_of({**ALL, "max_new_tokens": 7, "eos_token_id": 2}, 10) == SamplingParams(
        **want
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ({}, {}),
        (dict.fromkeys(ALL), {}),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0, "top_p": 0.9}),
        ({"temperature": 0.0}, {"temperature": 0.0}),
        ({"top_k": 0}, {}),
        ({"top_k": -1}, {}),
        ({"top_p": 2}, {}),
        ({"suppress_tokens": [1, 10, -1, 9]}, {"suppress_tokens": [1, 9]}),
    ],
)
def test_how_the_file_spells_it(values: dict[str, Any], want: dict[str, Any]) -> None:
    assert sampling_of(values, 10) == SamplingParams(**want)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, bad) for name in ALL if name != "do_sample" for bad in ("x", {}, True, [1.5])),
        *((name, -1.0) for name in ("temperature", "top_p", "min_p", "repetition_penalty")),
        *(("temperature", value) for value in (float("nan"), float("inf"))),
        *(("min_p", 2), ("top_k", 1.5), ("top_p", 0), ("repetition_penalty", 0)),
        ("suppress_tokens", 3),
    ],
)
def test_a_value_that_cannot_be_meant(name: str, value: Any) -> None:
    with pytest.raises(
        CheckpointError, match=rf"has {name} .*; wanted a .*generation_config 'none'"
    ):
        sampling_of({name: value}, 10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says "b" after "a" and "a" after "b"; at temperature 1 almost anything."""
    path = tmp_path_factory.mktemp("defaults")
    made = prepend()
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    save(path, made, chat_template=template)
    ids = made.get_vocab()
    a, b = ids["a"], ids["b"]
    chain_checkpoint(path, len(ids), {a: b, b: a, ids["\u2581a"]: b}, default=a, strength=0.1)
    write(path, temperature=1e-4, suppress_tokens=[b])
    return path


def write(path: Path, **values: Any) -> None:
    """Without an end token, so that answers drawn at random have their full length."""
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 10**6, **values}))


def test_params_that_are_none_are_the_models(folder: Path) -> None:
    llm = LLM(str(folder))
    backend = need_tokenizer(llm.tokenizer).backend
    assert backend is not None
    b = backend.token_to_id("b")
    assert llm.default_sampling_params() == SamplingParams(temperature=1e-4, suppress_tokens=[b])
    [output] = llm.generate("a")
    assert b not in output.token_ids
    (*_, last) = llm.stream("a")
    assert last.output is not None
    assert b not in last.output.token_ids
    # Params that are given are taken as they are written.
    [given] = llm.generate("a", SamplingParams(temperature=0, max_tokens=4))
    assert given.text == "baba"
    wild = llm.generate("a", SamplingParams(seed=1, max_tokens=100))[0]
    assert len(set(wild.token_ids)) > 40
    write(folder, temperature=1e-4)
    assert LLM(str(folder)).generate("a")[0].text == "ba" * 64


def test_without_the_files_defaults(folder: Path) -> None:
    llm = LLM(str(folder), generation_config="none")
    assert llm.default_sampling_params() == SamplingParams()
    assert len(set(llm.generate("a")[0].token_ids)) > 40
    with pytest.raises(ConfigError, match="generation_config is 'mine'; wanted 'auto'"):
        LLM(str(folder), generation_config="mine")  # type: ignore[arg-type]


def test_a_file_that_cannot_be_meant_hinders_nobody_who_says_what_he_wants(folder: Path) -> None:
    write(folder, temperature="hot")
    llm = LLM(str(folder))
    assert llm.generate("a", SamplingParams(temperature=0, max_tokens=2))[0].text == "ba"
    with pytest.raises(CheckpointError, match="has temperature 'hot'"):
        llm.generate("a")


def answered(
    capsys: pytest.CaptureFixture[str], folder: Path, *flags: str
) -> tuple[dict[str, Any], str]:
    assert main(["generate", str(folder), "--json", "--max-tokens", "4", *flags]) == 0
    said = capsys.readouterr()
    found: dict[str, Any] = json.loads(said.out.splitlines()[0])
    return found, said.err


def test_flags_win_over_the_model_and_it_is_said_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = LLM(str(folder))
    backend = need_tokenizer(llm.tokenizer).backend
    assert backend is not None
    write(folder, temperature=1e-4, top_k=2, suppress_tokens=[backend.token_to_id("b")])
    output, said = answered(capsys, folder, "--prompt", "a")
    assert output["text"] != "baba"
    assert (
        said.count("generation_config.json says temperature 0.0001, top_k 2, suppress_tokens") == 1
    )
    assert "--generation-config none does without" in said
    _, said = answered(capsys, folder, "--prompt", "a", "--temperature", "0")
    assert "says top_k 2, suppress_tokens" in said
    output, said = answered(
        capsys, folder, "--prompt", "a", "--temperature", "0", "--generation-config", "none"
    )
    assert (output["text"], "generation_config" in said) == ("baba", False)


def test_a_line_of_a_file_wins_over_flags_and_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, temperature=9.0)
    file = tmp_path / "requests.jsonl"
    lines = [
        {"prompt": "a"},
        {"prompt": "a", "temperature": 0},
        {"prompt": "a", "temperature": 9.0},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    flags = ["generate", str(folder), "--input-file", str(file), "--max-tokens", "4", "--json"]
    for more, are_greedy in (
        ([], [False, True, False]),
        (["--temperature", "0"], [True, True, False]),
    ):
        assert main([*flags, *more]) == 0
        texts = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
        assert [text == "baba" for text in texts] == are_greedy


def test_a_conversation_has_the_defaults_too(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, temperature=0.0)
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nab\n"))
    assert main(["chat", str(folder), "--max-tokens", "4"]) == 0
    said = capsys.readouterr()
    assert said.out.split() == ["baba", "abab"]
    assert said.err.count("generation_config.json says temperature 0.0") == 1


def test_flags_are_checked_before_a_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["generate", "nowhere", "--prompt", "a"], ["chat", "nowhere"]):
        assert main([*verb, "--repetition-penalty", "0"]) == 2
        assert "repetition_penalty is 0.0; wanted a number > 0" in capsys.readouterr().err


@pytest.mark.parametrize("room", ["testing", "bench"])
def test_the_kit_and_the_benchmarks_say_how_everything_is_sampled(room: str) -> None:
    """So a checkpoint's own defaults change no promise and no figure."""
    folder = Path(pilotfish.__file__).parent / room
    bare = [
        f"{path.name}:{node.lineno}"
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("generate", "stream")
        and len(node.args) < 2
        and not any(isinstance(one, ast.Starred) for one in node.args)
        and not {one.arg for one in node.keywords} & {"params", "max_new_tokens", None}
    ]
    assert bare == []
