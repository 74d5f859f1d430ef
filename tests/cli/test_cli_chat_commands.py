"""`pilotfish chat` in a pipe: a line is a message or a command, and each is answered by itself."""

from __future__ import annotations

import io
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from pilotfish import LLM, SamplingParams
from pilotfish.cli import main
from pilotfish.cli.chat_commands import NAMES, is_command, run_command
from pilotfish.cli.chat_keys import TypedKeys
from pilotfish.cli.chat_talk import Talk
from pilotfish.errors import RequestError
from support.talkers import ALPHABET, TEMPLATE, talkative_checkpoint

Chat = Callable[..., tuple[list[str], list[str]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talkative_checkpoint(tmp_path_factory.mktemp("chat"), max_length=100)


@pytest.fixture
def chat(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Chat:
    """Types lines into a pipe; the lines of stdout, and those of stderr after the first."""

    def run(*lines: str, flags: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
        assert main(["chat", str(folder), "--temperature", "0", *flags]) == 0
        said = capsys.readouterr()
        return said.out.splitlines(), said.err.splitlines()[1:]

    return run


@pytest.fixture
def talk(folder: Path) -> Talk:
    return Talk(llm=LLM(str(folder)), keys=TypedKeys(None), params=SamplingParams(temperature=0))


def test_lines_are_messages_and_the_talk_goes_on(chat: Chat, tmp_path: Path) -> None:
    saved = tmp_path / "a talk.json"
    out, err = chat("hi.", "", "/no/command.", f"/save {saved}", "/exit", "never.")
    assert (out, err) == (["ok", "ok"], [f"4 messages are in {saved}"])
    messages = json.loads(saved.read_text())
    assert [one["role"] for one in messages] == ["user", "assistant"] * 2
    assert [one["content"] for one in messages] == ["hi.", "ok", "/no/command.", "ok"]


def test_an_answer_goes_on_to_the_end_of_the_context_and_says_so(chat: Chat) -> None:
    out, err = chat("go!")
    assert out == [(ALPHABET * 4)[: 100 - len("user:go!;!")]]
    assert err == ["[the context of 100 tokens is full]"]
    out, err = chat("go!", "/set max_tokens none", "/regenerate", flags=("--max-tokens", "5"))
    assert [len(answer) for answer in out] == [5, 90]
    assert err[0] == "[cut at 5 tokens; --max-tokens]"
    assert err[-1] == "[the context of 100 tokens is full]"


def test_a_cache_below_the_context_is_filled_and_named(chat: Chat) -> None:
    out, err = chat("go!", flags=("--num-pages", "2", "--page-size", "16"))
    assert [len(answer) for answer in out] == [33 - len("user:go!;!")]
    assert err == ["[the cache of 32 tokens is full; --num-pages]"]


def test_a_message_without_room_is_taken_back(chat: Chat) -> None:
    out, err = chat("y" * 200 + ".", "hi.", "/stats")
    assert out == ["ok"]
    assert re.match(r"pilotfish: the prompt has 208 tokens; .* --max-length .*; /reset", err[0])
    assert "13 of 100 tokens, 2 messages" in err[-1]


def test_every_command_is_in_the_help_and_the_nearest_is_named(chat: Chat) -> None:
    out, err = chat("/help", "/regen", "/sistem x", "/QUIT", "never.")
    assert out == []
    shown = "\n".join(err)
    assert all(name in shown for name in NAMES if name != "/?")
    assert "Esc-Enter" in shown
    assert "unknown command /regen (did you mean /regenerate?); /help" in err[-2]
    assert "unknown command /sistem (did you mean /system?)" in err[-1]


def test_words_of_other_programs(chat: Chat) -> None:
    lines = ("/set parameter temperature 0.5", "/set system Be brief.", "/system", "/show info")
    out, err = chat(*lines, "/set verbose", "/bye", "never.")
    assert out == []
    assert err[0].split() == ["temperature", "0.5"]
    assert err[1] == "Be brief."
    assert "unknown command /show: /set shows" in err[2]
    assert "--stats of each" in err[3]


def test_what_is_a_command() -> None:
    assert all(map(is_command, ("/help", "/set a 1", "/x", "/system a\nb")))
    assert not any(map(is_command, ("/etc/passwd", " /help", "/", "// no", "/* no */", "a /help")))


def test_the_system_message(chat: Chat, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    lines = ("/system", "a.", "/system Be brief.", "/reset", "b.", f"/save {saved}", "/system")
    out, err = chat(*lines, '/system ""', "/system", flags=("--system", "Be long."))
    assert out == ["ok", "ok"]
    kept = "the conversation is forgotten; the system message stays"
    said = f"3 messages are in {saved}"
    assert err == ["Be long.", kept, said, "Be brief.", "there is no system message"]
    assert [m["content"] for m in json.loads(saved.read_text())] == ["Be brief.", "b.", "ok"]


def test_a_system_message_that_the_template_refuses_changes_nothing(
    tmp_path: Path, talk: Talk
) -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    folder = talkative_checkpoint(tmp_path / "strict", 100, refuses + TEMPLATE)
    talk.llm, talk.messages = LLM(str(folder)), [{"role": "user", "content": "hi."}]
    with pytest.raises(RequestError):
        run_command(talk, "/system Be brief.")
    assert talk.messages == [{"role": "user", "content": "hi."}]


def test_every_field_can_be_set_and_is_shown(
    talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, tuple[str, Any]] = {
        "max_tokens": ("7", 7),
        "min_tokens": ("3", 3),
        "temperature": ("0.5", 0.5),
        "top_k": ("4", 4),
        "top_p": (".5", None),  # no JSON, and so a text
        "min_p": ("0.25", 0.25),
        "seed": ("9", 9),
        "n": ("1", 1),
        "presence_penalty": ("1", 1),
        "frequency_penalty": ("-1.5", -1.5),
        "repetition_penalty": ("1.1", 1.1),
        "logit_bias": ('{"5": 2.5}', {5: 2.5}),
        "suppress_tokens": ("[1, 2]", (1, 2)),
        "stop": ("the end", ("the end",)),
        "stop_token_ids": ("[3]", (3,)),
        "ignore_eos": ("true", True),
        "logprobs": ("2", 2),
        "prompt_logprobs": ("none", None),
    }
    assert list(given) == [field.name for field in attrs.fields(SamplingParams)]
    for name, (text, want) in given.items():
        if name == "top_p":
            with pytest.raises(RequestError, match=r"top_p is '.5'; wanted"):
                run_command(talk, f"/set {name} {text}")
            continue
        run_command(talk, f"/set {name.replace('_', '-')} {text}")
        assert getattr(talk.params, name) == want
    capsys.readouterr()
    run_command(talk, "/set")
    shown = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert [line[0] for line in shown] == list(given)
    assert [line[1] for line in shown][:4] == ["7", "3", "0.5", "4"]
    for text, want in (
        ('["a", "b"]', ("a", "b")),
        ("5", ("5",)),
        ('"x y"', ("x y",)),
        ("none", ()),
    ):
        run_command(talk, f"/set stop {text}")
        assert talk.params.stop == want


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/set temprature 1", "did you mean temperature"),
        ("/set temperature hot", "temperature is 'hot'; wanted"),
        ("/set top_k -5", "top_k is -5"),
        ("/set min_tokens 500", "above max_tokens"),
        ("/set logit_bias {", "logit_bias is '{'"),
        ("/set logit_bias [" + "[" * 100_000, "logit_bias is"),
        ("/set n 2", "wanted 1: a conversation has one answer"),
        ("/save", "no file is named; wanted /save FILE"),
        ("/save /nowhere/x", "cannot write /nowhere/x: No such file"),
        ("/save -f /", "cannot write /: Is a directory"),
        ("/load", "no file is named"),
        ("/load /nowhere/x", "cannot read /nowhere/x: No such file"),
        ("/load {tmp}/bad", "bad is no JSON that can be read"),
        ("/load {tmp}/bytes", "bytes is no JSON that can be read"),
        ("/load {tmp}/deep", "deep is no JSON that can be read"),
        ("/load {tmp}/half", "half is no JSON that can be read"),
        *(
            (f"/load {{tmp}}/{name}", "has no list of")
            for name in ("dict", "none", "parts", "text")
        ),
        ("/regenerate", "there is nothing to answer"),
    ],
)
def test_a_command_that_is_refused_changes_nothing(
    talk: Talk, tmp_path: Path, line: str, said: str
) -> None:
    files: dict[str, bytes] = {
        "bad": b"[",
        "bytes": b"\xff\xfe",
        "deep": b"[" * 100_000,
        "half": b'[{"role": "user", "content": "\\ud800"}]',
        "dict": b'{"role": "user", "content": "x"}',
        "none": b"[]",
        "parts": b'[{"role": "user", "content": [{"type": "image"}]}]',
        "text": b'["x"]',
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    talk.system = "Be brief."
    params, messages = talk.params, list(talk.messages)
    with pytest.raises(RequestError) as refused:
        run_command(talk, line.replace("{tmp}", str(tmp_path)))
    assert said in str(refused.value)
    assert (talk.params, talk.messages) == (params, messages)


def test_a_file_is_written_over_only_when_that_is_asked(chat: Chat, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    _, err = chat("a.", f"/save {saved}", "b.", f"/save {saved}", "c.", "/quit")
    assert err == [
        f"2 messages are in {saved}",
        f"pilotfish: {saved} exists; /save -f {saved} writes over it",
    ]
    assert len(json.loads(saved.read_text())) == 2
    out, err = chat(f"/load {saved}", "b.", f"/save -f {saved}", "/stats")
    assert out == ["ok"]
    assert "2 messages" in err[0]
    assert len(json.loads(saved.read_text())) == 4
    assert f"{len('user:a.;assistant:ok;user:b.;.') + 3} of 100 tokens" in err[-1]


def test_regenerate_answers_the_last_message_anew(chat: Chat, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    out, err = chat("a.", "/regenerate", f"/save {saved}")
    assert out == ["ok", "ok"]
    assert err[0].startswith("[with a seed, or temperature 0, it is the same")
    assert [m["role"] for m in json.loads(saved.read_text())] == ["user", "assistant"]
    _, err = chat("a.", "/set temperature 1", "/regenerate")
    assert not any("the same" in line for line in err)


def test_a_message_that_is_no_text_is_refused(talk: Talk) -> None:
    with pytest.raises(RequestError, match="not UTF-8 text"):
        talk.ask("a\udcff.")
    assert talk.messages == []


def test_statistics(chat: Chat) -> None:
    _, err = chat("/stats", "a.", "/stats", flags=("--stats",))
    assert err[0] == "no answer yet"
    measured = r"3 tokens, \d+\.\d tokens/s, the first after \d+\.\d\d s"
    assert re.fullmatch(rf"\[{measured}\]", err[1])
    assert re.fullmatch(rf"  last answer: {measured}", err[2])
    _, err = chat("a.")
    assert err == []


@pytest.mark.parametrize("num_interrupts", [1, 3])
def test_ctrl_c_cuts_an_answer_and_is_kept_out_of_what_follows(
    talk: Talk,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    num_interrupts: int,
) -> None:
    own = LLM.stream

    def stream(self: LLM, *args: Any) -> Any:
        deltas = own(self, *args)
        try:
            for number, delta in enumerate(deltas):
                yield delta
                if number == 4:
                    for _ in range(num_interrupts):
                        signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)  # while it is let go of

    talk.ask("hi.")
    hits = talk.llm.engine.scheduler.num_preemptions
    with monkeypatch.context() as patched:
        patched.setattr(LLM, "stream", stream)
        talk.ask("go!")
    said = capsys.readouterr()
    assert said.out.splitlines()[1] == ALPHABET[: 6 if num_interrupts == 1 else 5]
    assert "[interrupted]" in said.err
    assert talk.messages[-1]["content"] == said.out.splitlines()[1]
    assert not talk.llm.engine.scheduler.requests
    assert hits == talk.llm.engine.scheduler.num_preemptions
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_before_the_first_word_takes_the_message_back(
    talk: Talk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: LLM, *args: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        yield

    monkeypatch.setattr(LLM, "stream", interrupted)
    talk.ask("hi.")
    assert talk.messages == []
    assert "the message is taken back" in capsys.readouterr().err
    talk.messages = [{"role": "user", "content": "hi."}, {"role": "assistant", "content": "ok"}]
    before = list(talk.messages)
    talk.regenerate()
    assert talk.messages == before
