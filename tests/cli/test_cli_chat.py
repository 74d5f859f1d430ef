"""`pilotfish chat` at a terminal: keys, pastes, interrupts, history, and what it leaves behind."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from support.screens import Terminal
from support.talkers import ALPHABET, talkative_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talkative_checkpoint(tmp_path_factory.mktemp("chat"))


def chat(folder: Path, state: Path, *flags: str, **settings: str | None) -> Terminal:
    flags = ("--temperature", "0", "--stats", *flags)
    settings = {"XDG_STATE_HOME": str(state), "NO_COLOR": None, **settings}
    return Terminal("-m", "pilotfish.cli", "chat", str(folder), *flags, **settings)


def ask(terminal: Terminal, keys: str, says: str = " tokens") -> str:
    """Types, waits for what is said and for the next prompt; what the program wrote meanwhile."""
    start = len(terminal.raw)
    terminal.type(keys)
    terminal.wait(lambda t: says in t.raw[start:] and t.line == ">")
    return terminal.raw[start:]


def test_an_evening_at_the_terminal(folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    asked: list[str] = []
    with chat(folder, tmp_path / "state") as t:
        t.wait(lambda t: t.line == ">")
        assert not t.echoes
        assert t.codes("n") == []  # where the cursor is, whose answer could come among keys

        # The line is edited, and comes back with Up.
        ask(t, "b.\x1b[Da\x01x\x05\x7f.\r")
        ask(t, "\x1b[A\r")
        ask(t, "one\x1b\rtwo.\r")
        ask(t, '"""\rfirst\r\rlast."""\r')
        asked += ["xba.", "xba.", "one\ntwo.", "first\n\nlast."]

        # What is pasted stays whole, and Tab in it is a tab.
        lines = "\n".join(f"\tline {number}" for number in range(200)) + "."
        t.paste(lines)
        t.wait(lambda t: t.line.endswith("199."))
        ask(t, "\r")
        asked.append(lines)

        # Ctrl-C drops the line, and leaves only where nothing was typed since.
        t.type("abc")
        t.wait(lambda t: t.line == "> abc")
        ask(t, "\x03", "once more")
        t.type("def")
        t.wait(lambda t: t.line == "> def")
        ask(t, "\x03", "once more")

        # Half an answer leaves the talk as it was.
        t.type("half a li")
        t.wait(lambda t: t.line == "> half a li")
        ask(t, "\x03", "once more leaves")
        t.type("go!\r")
        t.wait(lambda t: ALPHABET in t.raw)
        t.type("next\x1b[A\x1b[3~ \x7f.\r\rand!\x7f.\r")
        t.resize(20, 60)
        after = len(t.raw)
        t.wait(lambda t: ALPHABET in t.raw[after:])
        t.type("\x03\x03\x03")
        t.wait(lambda t: t.line == "... and.")
        assert "> next." in t.lines
        assert set(t.raw[t.raw.rindex("ABC") :].split("\r\n")[0]) <= set(ALPHABET)
        ask(t, "\r")
        asked += ["go!", "next.\n\nand."]

        # A resize in the midst of a line.
        t.type("a line that is ")
        t.wait(lambda t: t.line == "> a line that is")
        t.resize(30, 12)
        ask(t, "long enough.\r")
        t.resize(24, 80)
        asked.append("a line that is long enough.")

        # Commands.
        ask(t, "/hel\t\r", "/regenerate")
        assert "did you mean /stats" in ask(t, "/stat\r", "before it sends it")
        ask(t, " /etc is a path.\r")
        ask(t, "/etc/passwd too.\r")
        ask(t, f"/save {saved}\r", "messages are in")
        messages = json.loads(saved.read_text())
        assert [one["content"] for one in messages[::2]] == [
            *asked,
            " /etc is a path.",
            "/etc/passwd too.",
        ]
        answers = [one["content"] for one in messages[1::2]]
        assert [answer for answer in answers if answer != "ok"] == [answers[5]]
        assert (ALPHABET * 999).startswith(answers[5])
        assert "[cut at" not in t.raw

        # A long text is read to its end, and Ctrl-C while it is read takes it back.
        ask(t, "/reset\r", "forgotten")
        text = "y" * 19999 + "."
        t.paste(text)
        t.wait(lambda t: t.line.endswith("y."))
        ask(t, "\r")
        ask(t, "/stats\r", f"{len('user:;..') + len(text) - 1 + 3} of 65536 tokens")
        t.paste("z" * 40000 + ".")
        t.wait(lambda t: t.line.endswith("z."))
        t.type("\r")
        t.wait(lambda t: "reading the prompt: " in t.line and " of 60" in t.line)
        ask(t, "\x03", "the message is taken back")
        assert not any("reading" in line for line in t.lines)
        assert ", 2 messages" in ask(t, "/stats\r", "messages")

        t.type("\x04")
        assert t.end() == 0
        assert (t.above, t.line) == (">", "")
        assert t.echoes

    history = tmp_path / "state" / "pilotfish" / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert stat.S_IMODE(history.parent.stat().st_mode) == 0o700

    flags = ("--speculative", "ngram", "--show-draft", "--max-tokens", "70")
    with chat(folder, tmp_path / "state", *flags, NO_COLOR="1") as t:
        t.wait(lambda t: t.line == ">")
        t.type("\x1b[A\x1b[A")  # over a command, to what was asked last
        t.wait(lambda t: t.line.endswith("z."))
        ask(t, "\x03", "once more")
        said = ask(t, "go!\r", "% of drafts accepted")
        assert "pilotfish: {+accepted+} and [-rejected-] drafts" in t.raw
        assert "{+" in said
        assert "[cut at 70 tokens; --max-tokens]" in said
        (answer,) = [line for line in said.split("\r\n") if ALPHABET in line]
        assert answer.replace("{+", "").replace("+}", "").endswith((ALPHABET * 3)[:70])
        assert set(t.codes("m")) <= {"0"}  # no color, nothing dim
        ask(t, "\x03", "once more")
        t.type("\x03")
        assert t.end() == 130
        assert "Traceback" not in t.raw

    kept = history.read_bytes()
    with chat(folder, tmp_path / "state", "--no-history") as t:
        t.wait(lambda t: t.line == ">")
        t.type("\x1b[Ahi")
        t.wait(lambda t: t.line == "> hi")
        ask(t, ".\r")
        t.type("\x04")
        assert t.end() == 0
    assert history.read_bytes() == kept


def test_a_dumb_terminal(folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    with chat(folder, tmp_path / "state", TERM="dumb") as t:
        t.wait(lambda t: t.line == ">")
        ask(t, "ab\x7f.\r")
        ask(t, "y" * 5000 + ".\r")
        ask(t, '"""\rone\rtwo."""\r')
        t.type("half")
        t.wait(lambda t: t.line == "> half")
        ask(t, "\x03", "once more")
        t.type("go!\r")
        t.wait(lambda t: ALPHABET in t.raw)
        t.type("typed.")
        t.wait(lambda t: t.raw.count(ALPHABET) > 3)
        t.type("\x03")
        t.wait(lambda t: t.line == "> typed.")
        ask(t, "\r")
        ask(t, f"/save {saved}\r", "messages are in")
        t.type("\x04")
        assert t.end() == 0
        assert (t.above, t.line) == (">", "")
        assert "\x1b" not in t.raw
    asked = [one["content"] for one in json.loads(saved.read_text())[::2]]
    assert asked == ["a.", "y" * 5000 + ".", "one\ntwo.", "go!", "typed."]
    assert not (tmp_path / "state").exists()
