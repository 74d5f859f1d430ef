"""What is typed while `chat` is busy, the file that keeps it, and how drafts are marked."""

from __future__ import annotations

import os
import stat
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Semaphore

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input

from pilotfish.cli.chat_history import history_path, open_history
from pilotfish.cli.chat_keys import Meanwhile, TypedKeys, edited
from pilotfish.cli.chat_prompt import Dropped, Editor, is_open
from pilotfish.cli.deltas import DraftColors, visible
from pilotfish.engine.outputs import Delta
from pilotfish.tokenization.tokenizer import Tokenizer, need_tokenizer
from support.talkers import talkative_checkpoint


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends: the keyboard's, and the program's."""
    ends = os.openpty()
    yield ends
    for end in ends:
        os.close(end)


def echoes(fd: int) -> bool:
    return bool(termios.tcgetattr(fd)[3] & termios.ECHO)


def test_what_is_typed_is_kept_without_an_echo(terminal: tuple[int, int]) -> None:
    keyboard, program = terminal
    looks = Semaphore(0)
    with TypedKeys(program) as keys:
        assert not echoes(program)
        with Meanwhile(keys, looks.release):
            for part in (b"one\r", b"t\xc3", b"\xa4o", b"y" * 3000, b"z" * 3000):
                os.write(keyboard, part)  # the terminal itself holds 4095 bytes
                while looks.acquire(blocking=False):
                    pass
                for _ in range(2):  # of two looks, the second follows a reading of what was written
                    assert looks.acquire(timeout=60)
        assert keys.take() == "one\nt\xe4o" + "y" * 3000 + "z" * 3000
        assert keys.take() == ""
        with keys.echoed():
            assert echoes(program)
        assert not echoes(program)
    assert echoes(program)


def test_an_interrupt_drops_nothing_that_was_typed_before(terminal: tuple[int, int]) -> None:
    keyboard, program = terminal
    with TypedKeys(program) as keys:
        os.write(keyboard, b"next\x03, and on")  # no terminal of this process: no signal comes
        keys.keep()
        assert keys.take() == "next, and on"


def test_an_interrupt_right_behind_enter_drops_what_was_sent() -> None:
    """Both are read at once; what else was typed behind Enter waits for the next prompt."""
    with create_pipe_input() as keyboard, create_app_session(input=keyboard):
        editor = Editor(keeps_history=False, commands=[])
        keyboard.send_text("go!\r\x03")
        with pytest.raises(Dropped):
            editor.read()
        keyboard.send_text("one\rtwo\r")
        assert [editor.read(), editor.read()] == ["one", "two"]


def test_an_interrupt_that_came_too_early_for_a_signal(terminal: tuple[int, int]) -> None:
    """Typed while an editor had the terminal, whose Ctrl-C is a key."""
    keyboard, program = terminal
    raw = termios.tcgetattr(program)
    raw[3] &= ~termios.ISIG
    termios.tcsetattr(program, termios.TCSANOW, raw)
    with TypedKeys(program) as keys:
        os.write(keyboard, b"abc\x03d")
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012  # a signal, which may come later
            keys.keep()
            time.sleep(1)
        assert keys.take() == "d"


def test_the_terminal_is_given_back_after_an_error(terminal: tuple[int, int]) -> None:
    with pytest.raises(KeyboardInterrupt), TypedKeys(terminal[1]):
        raise KeyboardInterrupt
    assert echoes(terminal[1])


def test_without_a_terminal_nothing_is_done() -> None:
    with TypedKeys(None) as keys, Meanwhile(keys, lambda: None), keys.echoed():
        keys.keep()
    assert keys.take() == ""


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("abc", "abc"),
        ("\x1b[A\x1bOB\x1b[1;5Ck\x1b[3~", "k"),
        ("\x1b[200~two\rlines\r\x1b[201~", "two\nlines"),
        ("ab\x7f\x7f\x7fc\b", ""),
        ("gone\x15kept", "kept"),
        ("a\x04\x1a\x1b", "a"),
        ("\r\r\ta b\r", "\ta b"),
        ("日本\x7f", "日"),
    ],
)
def test_what_keys_make(typed: str, text: str) -> None:
    assert edited(typed) == text


@pytest.mark.parametrize(
    ("text", "opened"),
    [
        ('"""', True),
        ('"""a\n', True),
        (' """a\nb', True),
        ('/system """a', True),
        ('"""a"""', False),
        ('"""doc"""\ncode', False),
        ('a """', False),
        ("", False),
    ],
)
def test_blocks_that_are_open(text: str, opened: bool) -> None:
    assert is_open(text) == opened


def test_where_the_history_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert history_path() == tmp_path / "pilotfish" / "chat_history"
    monkeypatch.setenv("XDG_STATE_HOME", "not/absolute")
    for platform, folder in (("linux", ".local/state"), ("darwin", "Library/Application Support")):
        monkeypatch.setattr("sys.platform", platform)
        assert history_path() == tmp_path / "home" / folder / "pilotfish" / "chat_history"


def test_the_history_is_its_owners_alone_and_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "pilotfish" / "history"
    before = os.umask(0)
    try:
        history = open_history(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for number in range(300):
        history.store_string(f"{number}" + "\ny" * 2000)
    path.chmod(0o644)
    kept = list(open_history(path).load_history_strings())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert 50 < len(kept) < 150
    assert kept == [f"{number}" + "\ny" * 2000 for number in range(299, 299 - len(kept), -1)]
    path.unlink()
    path.mkdir()
    history.append_string("not to be written")  # as on a full disk: kept up to the run's end
    assert history.get_strings() == ["not to be written"]
    with pytest.raises(OSError, match="Is a directory"):
        open_history(path)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = talkative_checkpoint(tmp_path_factory.mktemp("marks"))
    return need_tokenizer(Tokenizer.from_directory(folder))


@pytest.mark.parametrize("has_color", [False, True])
def test_marked_drafts_do_not_tear_the_text(tokenizer: Tokenizer, has_color: bool) -> None:
    ids = {letter: next(iter(tokenizer.encode(letter))) for letter in "abcdX\n"}
    shown = DraftColors(tokenizer, has_color=has_color).render(
        Delta(
            index=0,
            token_ids=[ids[letter] for letter in "ab\nc"],
            drafted=[ids[letter] for letter in "ab\n\nX"],
            num_accepted=3,
        )
    )
    green, red, plain = ("\x1b[32m", "\x1b[31;9m", "\x1b[0m")
    if has_color:
        assert shown == f"{green}ab{plain}\nc{red}⏎X{plain}"
    else:
        assert shown == "{+ab+}\nc[-⏎X-]"


def test_letters_that_would_move_the_cursor_are_shown() -> None:
    assert visible("a\n\r\t\x1b[2J\x7f\x85\u2028\u200eé日") == (
        "a⏎␍⇥␛[2J␡<U+0085><U+2028><U+200E>é日"
    )
