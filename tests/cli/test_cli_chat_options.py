"""Tools, documents and variables reach the chat template from flags and from JSONL lines."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from pilotfish import LLM
from pilotfish.cli import main
from pilotfish.tokenization.tokenizer import Tokenizer, need_tokenizer
from support.chains import chain_checkpoint
from tokenization.test_tokenizer_published import byte_level, save

TEMPLATE = (
    "{% for t in tools or [] %}[{{ t.name }}]{% endfor %}{% for d in documents or [] %}"
    "({{ d.text }}){% endfor %}{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<{{ c.name }}>{% endfor %};{% endfor %}"
    "{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}{{ style }}"
    "{% if add_generation_prompt %}>{% endif %}"
)
TOOLS = [{"name": "f"}]
ASKED = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat")
    made = byte_level()
    save(path, made, adds_bos=False, chat_template=TEMPLATE)
    chain_checkpoint(path, made.get_vocab_size(), {})
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return need_tokenizer(Tokenizer.from_directory(folder))


def run(
    capsys: pytest.CaptureFixture[str], folder: Path, *flags: str
) -> tuple[int, list[Any], str]:
    """The exit code, the outputs and what was said."""
    code = main(["generate", str(folder), "--json", "--max-tokens", "1", *flags])
    said = capsys.readouterr()
    return code, [json.loads(line) for line in said.out.splitlines()], said.err


def test_flags(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tools, documents = tmp_path / "tools.json", tmp_path / "documents.json"
    tools.write_text(json.dumps(TOOLS))
    documents.write_text('[{"title": "t", "text": "x"}]')
    template = tmp_path / "own.jinja"
    template.write_text("{{ messages[0].content }}!{{ style }}")
    both = ["--tools", str(tools), "--documents", str(documents)]
    kwargs = ["--chat-template-kwargs", '{"enable_thinking": false, "style": "s"}']
    for flags, want in (
        ([], "user:hi;>"),
        (both, "[f](x)user:hi;>"),
        (kwargs, "user:hi;Falses>"),
        ([*both, *kwargs], "[f](x)user:hi;Falses>"),
        (["--chat-template", str(template), "--chat-template-kwargs", '{"style": 1}'], "hi!1"),
        (["--chat-template", "{{ messages[0].role }}" + "{# #}" * 200], "user"),
    ):
        code, (output,), _ = run(capsys, folder, "--chat", "hi", *flags)
        assert code == 0
        assert tokenizer.decode(output["prompt_token_ids"]) == want


def test_lines(
    folder: Path,
    tokenizer: Tokenizer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    lines: list[tuple[dict[str, Any], str]] = [
        ({"chat": "hi"}, "user:hi;Trues>"),  # as the flag says
        ({"chat": "hi", "tools": TOOLS}, "[f]user:hi;Trues>"),
        ({"chat": "hi", "enable_thinking": False}, "user:hi;Falses>"),
        ({"chat": "hi", "chat_template_kwargs": {"style": "t"}}, "user:hi;Truet>"),
        ({"chat": "hi", "documents": [{"text": "x"}], "tools": []}, "(x)user:hi;Trues>"),
        ({"chat": [ASKED, call]}, "user:hi;assistant:<f>;Trues>"),
        ({"chat": [ASKED, {"role": "assistant", "tool_calls": []}]}, "user:hi;assistant:;Trues>"),
        (
            {
                "chat": [ASKED, {"role": "assistant", "content": "so"}],
                "continue_final_message": True,
            },
            "user:hi;assistant:so",
        ),
        (
            {"chat": "hi", "chat_template": "{{ messages[0].role }}{# enable_thinking style #}"},
            "user",
        ),
        ({"prompt": "hi"}, "hi"),
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(json.dumps(line) for line, _ in lines)))
    kwargs = ["--chat-template-kwargs", '{"enable_thinking": true, "style": "s"}']
    code, outputs, _ = run(capsys, folder, "--input-file", "-", *kwargs)
    assert code == 0
    got = [tokenizer.decode(output["prompt_token_ids"]) for output in outputs]
    assert got == [want for _, want in lines]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"chat": "hi", "tools": {"name": "f"}}, "tools is {'name': 'f'}; wanted a list of JSON"),
        ({"chat": "hi", "documents": ["x"]}, "documents is ['x']; wanted a list of JSON objects"),
        ({"chat": "hi", "chat_template": 3}, "chat_template is 3; wanted a template"),
        ({"chat": "hi", "continue_final_message": 1}, "continue_final_message is 1; wanted true"),
        ({"chat": "hi", "chat_template_kwargs": []}, "chat_template_kwargs is []; wanted a JSON"),
        *(
            ({"chat": "hi", "chat_template_kwargs": {name: []}}, f"has {name!r}; wanted what the")
            for name in ("messages", "images", "self")
        ),
        ({"chat": "hi", "tols": []}, "unknown field 'tols' (did you mean tools"),
        ({"prompt": "hi", "tools": []}, "unknown field 'tools'; it is read beside chat"),
        ({"prompt": "hi", "enable_thinking": True}, "'enable_thinking'; it is read beside chat"),
        ({"chat": [{"role": "user"}]}, "wanted a string or a list of"),
        ({"chat": [{"role": "user", "content": 3, "tool_calls": []}]}, "wanted a string or a list"),
        ({"chat": [{"role": "assistant", "content": None}]}, "wanted a string or a list of"),
    ],
)
def test_lines_that_refuse_the_file_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: dict[str, Any], said: str
) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(json.dumps(line))
    code, outputs, err = run(capsys, Path("nowhere"), "--input-file", str(file))
    assert (code, outputs) == (2, [])
    assert said in err


def test_a_variable_that_the_template_does_not_read_is_one_requests_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "requests.jsonl"
    odd = {"chat": "hi", "chat_template_kwargs": {"stile": 1}}
    file.write_text("\n".join(map(json.dumps, [odd, {"chat": "hi"}])))
    code, outputs, err = run(capsys, folder, "--input-file", str(file))
    assert code == 2
    assert [output["finish_reason"] for output in outputs] == ["error", "length"]
    assert "does not read 'stile' (did you mean style?)" in err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--chat", "hi", "--tools", "nowhere.json"], "cannot read --tools nowhere.json: No such"),
        (["--chat", "hi", "--chat-template-kwargs", "{"], "--chat-template-kwargs: not JSON"),
        (["--chat", "hi", "--chat-template-kwargs", "[1]"], "chat_template_kwargs is [1]; wanted"),
        (
            ["--prompt", "hi", "--chat-template-kwargs", '{"a": 1}'],
            "error: --chat-template-kwargs is for a chat template; wanted",
        ),
        (["--chat", "hi", "--chat-template", "no.jinja"], "cannot read --chat-template no.jinja"),
        (["--prompt", "hi", "--chat-template", "x"], "--chat-template is for a chat template"),
    ],
)
def test_flags_that_are_refused(
    capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    code, outputs, err = run(capsys, Path("nowhere"), *flags)
    assert (code, outputs) == (2, [])
    assert said in err
    assert "Traceback" not in err


def test_a_conversation_in_the_terminal_has_them(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    own = LLM.chat_prompt

    def watch(self: LLM, messages: Any, **variables: Any) -> list[int]:
        seen.append(variables)
        return own(self, messages, **variables)

    monkeypatch.setattr(LLM, "chat_prompt", watch)
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    flags = ["--max-tokens", "1", "--chat-template-kwargs", '{"enable_thinking": false}']
    assert main(["chat", str(folder), *flags]) == 0
    assert seen == [{"enable_thinking": False}] * 2
    capsys.readouterr()
    assert main(["chat", str(folder), "--chat-template-kwargs", '{"enable_thinkin": false}']) == 2
    assert "(did you mean enable_thinking?)" in capsys.readouterr().err
