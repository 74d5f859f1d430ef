"""Flags and their help, the variables that hold their defaults, completion, and the version."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import attrs
import pytest

from kernels.native_cases import needs_library
from pilotfish import LLM, CacheConfig, SamplingParams
from pilotfish.cli import main
from pilotfish.cli.main import VERBS, make_parser
from pilotfish.cli.options import engine_options
from pilotfish.cli.parser import Parser, UsageError
from pilotfish.cli.requests import Reading, with_system
from pilotfish.cli.sampling_flags import sampling_params
from pilotfish.cli.version import native_kernels, versions
from pilotfish.errors import RequestError
from pilotfish.kernels.native import library

ROOT = Path(__file__).resolve().parents[2]
VALUES = {
    "n": "2",
    "stop": "x",
    "stop_token_ids": "5,6",
    "suppress_tokens": "7",
    "logit_bias": "3=-1.5,4=2",
    "logprobs": "2",
    "prompt_logprobs": "0",
    "seed": "9",
    "ignore_eos": None,
}


def parsers() -> dict[str, Parser]:
    parser = make_parser()
    (verbs,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(verbs.choices)


def values(parser: Parser) -> Iterator[argparse.Action]:
    """Flags that take a value."""
    yield from (a for a in parser._actions if a.option_strings and a.nargs != 0)


def default_shown(action: argparse.Action) -> str:
    found = re.search(r"\(default: ([^()]+)\)$", action.help or "")
    return "" if found is None else found[1]


@pytest.mark.parametrize("field", attrs.fields(SamplingParams), ids=lambda field: field.name)
def test_every_field_of_sampling_params_has_a_flag_and_a_field_of_a_line(field: Any) -> None:
    text = VALUES.get(field.name, "0.5" if isinstance(field.default, float) else "1")
    flag = "--" + field.name.replace("_", "-")
    args = make_parser().parse_args(
        ["generate", "m", "--max-tokens", "5", flag, *([] if text is None else [text])]
    )
    given = getattr(sampling_params(args, SamplingParams()), field.name)
    assert given != field.default
    line = {"prompt": "a", "max_tokens": 5, field.name: given}
    reading = Reading(name="file")
    request = reading.request(1, json.dumps(line).encode())
    assert getattr(request.params(SamplingParams()), field.name) == given


def test_the_defaults_that_help_shows_are_those_that_there_are() -> None:
    shown = {action.dest: default_shown(action) for action in values(parsers()["generate"])}
    for field in attrs.fields(SamplingParams):
        if field.name in shown and field.default is not None and field.default != ():
            assert shown[field.name] == str(field.default), field.name
    for name, parameter in signature(LLM).parameters.items():
        if name in shown and isinstance(parameter.default, int | str):
            assert shown[name] == str(parameter.default), name
    assert shown["page_size"] == str(CacheConfig().page_size_tokens)
    assert shown["max_batch_size"].startswith("16")


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_every_default_and_examples_that_can_be_typed(verb: str) -> None:
    parser = parsers()[verb]
    for action in values(parser):
        assert default_shown(action) or action.dest in ("prompt", "chat", "input_file")
        metavar = action.metavar or action.dest
        assert metavar in ("N", "K", "P", "T") or len(str(metavar)) > 2
    assert parser.epilog is not None
    heading, *examples = parser.epilog.splitlines()
    assert heading == "examples:"
    assert 2 <= len(examples) <= 5
    for example in examples:
        words = shlex.split(example.partition(">")[0])
        make_parser().parse_args(words[words.index("pilotfish") + 1 :])
    assert "%" not in parser.format_help()


def test_usual_flags_come_first() -> None:
    shown = parsers()["generate"].format_help()
    order = ["--prompt", "--json", "--max-tokens", "--tools", "--speculative", "--dtype"]
    order += ["--max-batch-size", "--page-size"]
    places = [shown.index(f"\n  {flag} ") for flag in order]
    assert places == sorted(places)


def test_variables_hold_defaults_of_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_MAX_BATCH_SIZE", "4")
    monkeypatch.setenv("PILOTFISH_TOP_P", "0.5")
    monkeypatch.setenv("PILOTFISH_DTYPE", "")
    for verb in ("generate", "chat"):
        args = make_parser().parse_args([verb, "m", "--top-p", "0.9"])
        assert engine_options(args)["max_batch_size"] == 4
        assert engine_options(args)["dtype"] == "auto"
        assert sampling_params(args, SamplingParams()).top_p == 0.9
        args = make_parser().parse_args([verb, "m"])
        assert sampling_params(args, SamplingParams()).top_p == 0.5


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("pilotfish: error: ")


def test_a_bad_value_of_a_variable_names_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    argv = ["generate", str(tiny_checkpoint), "hello"]
    monkeypatch.setenv("PILOTFISH_TOP_K", "many")
    assert said(capsys, *argv) == "PILOTFISH_TOP_K=many: invalid int value: 'many'"
    monkeypatch.setenv("PILOTFISH_TOP_K", "-5")
    assert said(capsys, *argv).endswith("(PILOTFISH_TOP_K=-5 in the environment)")
    assert "PILOTFISH" not in said(capsys, *argv, "--top-k", "-7")
    monkeypatch.delenv("PILOTFISH_TOP_K")
    monkeypatch.setenv("PILOTFISH_PAGE_SIZE", "3")
    line = said(capsys, *argv)
    assert "--page-size is 3" in line
    assert line.endswith("(PILOTFISH_PAGE_SIZE=3 in the environment)")


def test_the_page_lists_every_variable_that_there_is() -> None:
    """Of flags, and those that a source file names."""
    of_flags = {name for parser in parsers().values() for name in parser.variables()}
    sources = [*(ROOT / "framework").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    sources.append(ROOT / "hatch_build.py")
    named = {
        name
        for source in sources
        for name in re.findall(r"\bPILOTFISH_[A-Z_]*[A-Z]\b", source.read_text())
    }
    page = (ROOT / "docs" / "environment.md").read_text()
    listed = re.findall(r"^\| `(PILOTFISH_\w+)`", page, re.MULTILINE)
    assert sorted(listed) == sorted(of_flags | named)
    for verb in ("verify", "bench", "plugins"):
        assert parsers()[verb].variables() == []


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["run", "demo"], "`chat MODEL` talks, `generate MODEL TEXT` answers once"),
        (["serve", "demo"], "there is no server yet"),
        (["list"], "`plugins` lists what is served"),
        (["pull", "a/b"], "a hub id is fetched when it is first used"),
        (["generat"], "did you mean generate"),
        (["generate", "demo", "a", "b"], "unexpected argument 'b'; a prompt of several words"),
        (["generate", "demo", "a", "--prompt", "b"], "got the prompt 'a' and --prompt"),
        (["generate", "demo", "--seed", "1", "a", "--chat", "b"], "got the prompt 'a' and --chat"),
        (["generate", "demo", "a", "--system", "b"], "--system is for a chat template"),
        (["generate", "demo", "a", "--logprobs", "1"], "--logprobs is printed with --json only"),
        (["generate", "demo", "a", "--order", "done"], "--order is of the answers to --input-file"),
        (["generate", "demo", "a", "--stop-token-ids", "1,b"], "wanted token ids: ID,ID"),
        (["generate", "demo", "a", "--logit-bias", "1"], "wanted token ids and numbers: ID=X"),
        (["generate", "demo", "--max-new-tokens", "3"], "wanted --max-tokens"),
        (["chat", "demo", "--max-model-len=3"], "wanted --max-length"),
        (["generate", "demo", "--num-beams", "3"], "beam search is not served"),
        (["chat", "demo", "--chat", "hi"], "chat asks for messages itself; wanted generate"),
    ],
)
def test_a_slip_is_answered_by_what_there_is(
    capsys: pytest.CaptureFixture[str], argv: list[str], wanted: str
) -> None:
    assert wanted in said(capsys, *argv)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"message": []}, "got no prompt, but message (did you mean messages?)"),
        ({"text": "a"}, "got no prompt; wanted exactly one of prompt, chat, messages"),
        ({"messages": "a"}, 'messages is \'a\'; wanted a list of {"role", "content"} objects'),
        ({"messages": [], "chat": ""}, "got chat and messages; wanted exactly one"),
        ({"prompt": "a", "max_tokns": 3}, "unknown field 'max_tokns' (did you mean max_tokens?)"),
        ({"prompt": "a", "bad_words": ["b"]}, "got bad_words: ['b']; use suppress_tokens"),
        (
            {"prompt": "a", "max_new_tokens": 3, "max_tokens": 3},
            "got max_new_tokens and max_tokens",
        ),
        ({"prompt": "a", "tools": []}, "unknown field 'tools'; it is read beside chat and messa"),
    ],
)
def test_a_line_that_is_none_says_what_was_meant(fields: dict[str, Any], wanted: str) -> None:
    with pytest.raises(RequestError) as caught:
        Reading(name="f").request(3, json.dumps(fields).encode())
    assert str(caught.value).startswith("f, line 3: ")
    assert wanted in str(caught.value)


def test_a_line_may_have_other_programs_names() -> None:
    line = json.dumps(
        {"messages": [], "max_new_tokens": 3, "do_sample": False, "stop_strings": "a"}
    )
    request = Reading(name="f").request(1, line.encode())
    assert request.sampling == {"max_tokens": 3, "temperature": 0, "stop": "a"}


def test_a_system_message_stands_before_a_chat_that_has_none() -> None:
    system = {"role": "system", "content": "s"}
    asked = [{"role": "user", "content": "hi"}]
    assert with_system(None, "hi", 0) == "hi"
    assert with_system("s", "hi", 0) == [system, *asked]
    assert with_system("s", asked, 0) == [system, *asked]
    own = [{"role": "system", "content": "own"}, *asked]
    assert with_system("s", own, 0) == own
    parts = [{"type": "image"}, {"type": "text", "text": "hi"}]
    assert with_system("s", "hi", 1) == [system, {"role": "user", "content": parts}]


def test_a_text_without_a_flag_may_stand_anywhere() -> None:
    for argv in (["m", "-", "--seed", "1"], ["m", "--seed", "1", "-"], ["--seed", "1", "m", "-"]):
        args = make_parser().parse_args(["generate", *argv])
        assert (args.model, args.text, args.seed) == ("m", "-", 1)
    with pytest.raises(UsageError, match=r"unknown flag '--sed' \(did you mean --seed\?\)"):
        make_parser().parse_args(["generate", "m", "a", "--sed", "1"])


def test_the_version_names_all_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines() == list(versions())
    for part in ("pilotfish 0", "Python 3", "torch 2", "transformers 5", "plugins: dflash, eagle"):
        assert f"\n{part}" in f"\n{shown}"
    native = library()
    assert native_kernels().startswith("none: " if native is None else native.instruction_set)


@needs_library
def test_the_version_says_what_every_command_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PILOTFISH_NATIVE_LIBRARY", "/nothing/here.so")
    assert native_kernels() == "refused: there is no /nothing/here.so"
    monkeypatch.delenv("PILOTFISH_NATIVE_LIBRARY")
    monkeypatch.setenv("PILOTFISH_INSTRUCTIONS", "avx3")
    assert native_kernels().startswith(
        "refused: PILOTFISH_INSTRUCTIONS is 'avx3'; this library has "
    )


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("pilotfish gen", {"generate"}),
        ("pilotfish generate demo --acc", {"--acceptance"}),
        ("pilotfish generate demo --acceptance re", {"residual", "relaxed"}),
        ("pilotfish chat demo --speculative n", {"ngram"}),
    ],
)
def test_the_shell_is_told_what_could_be_typed(line: str, wanted: set[str]) -> None:
    program = "import sys; from pilotfish.cli import main; main(['plugins'])"
    done = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" 8>&1 9>/dev/null', sys.executable, program],
        env={
            **os.environ,
            "_ARGCOMPLETE": "1",
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "IFS": "\v",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert {word.strip() for word in done.stdout.split("\v")} == wanted
