"""The next message: from a terminal with an editor, from a dumb one, or from a pipe.

Knows: keys, lines and the history. Does not know: what a message means.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, Protocol

from pilotfish.cli.chat_history import history_path, open_history
from pilotfish.cli.chat_keys import TypedKeys
from pilotfish.cli.standard_streams import check_input, no_text
from pilotfish.cli.terminal import is_dumb

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

_OPEN = re.compile(r'\s*(?:/system\s+)?"""')
PROMPT, MORE = "> ", "... "


def is_open(text: str) -> bool:
    """Whether a block that began with three quotes has not ended yet."""
    return _OPEN.match(text) is not None and text.count('"""') % 2 == 1


class Dropped(KeyboardInterrupt):
    """Ctrl-C that dropped what was typed; on an empty line it is a KeyboardInterrupt alone."""


class Reader(Protocol):
    """Where messages come from."""

    def read(self, typed: str = "") -> str | None:
        """The next one; None at the end. typed: what is in its place already.

        Raises KeyboardInterrupt for Ctrl-C, and Dropped where something was typed.
        """
        ...


def has_keyboard() -> bool:
    """Whether somebody types: at a terminal that shows what is typed."""
    check_input()
    return sys.stdin.isatty() and (sys.stdout.isatty() or sys.stderr.isatty())


def open_reader(keys: TypedKeys, *, keeps_history: bool, commands: Iterable[str]) -> Reader:
    """The reader for standard input. Raises RequestError where that is closed."""
    if not has_keyboard():
        return PipedLines()
    return DumbLines(keys) if is_dumb() else Editor(keeps_history, list(commands))


class PipedLines:
    """Each line is a message; empty ones are none."""

    def read(self, typed: str = "") -> str | None:
        """As `Reader`. Raises RequestError for bytes that are no text."""
        while True:
            try:
                line = input()
                line.encode()
            except EOFError:
                return None
            except UnicodeError as error:
                raise no_text(error) from error
            if line.strip():
                return line


class DumbLines:
    """A terminal that can only print. Readline, where Python has it, takes lines of any length."""

    def __init__(self, keys: TypedKeys) -> None:
        self._keys = keys
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # refused as a message, and no end
        self._readline: Any = None
        with suppress(ImportError):
            self._readline = import_module("readline")

    def read(self, typed: str = "") -> str | None:
        """As `Reader`."""
        if self._readline is not None:
            self._readline.set_startup_hook(lambda: self._readline.insert_text(typed))
        text = ""
        try:
            while not text.strip() or is_open(text):
                with self._keys.echoed():
                    text += "\n" * bool(text) + input(MORE if text else PROMPT)
                if self._readline is not None:
                    self._readline.set_startup_hook(None)
        except (EOFError, KeyboardInterrupt) as end:
            print(file=sys.stderr)
            if isinstance(end, KeyboardInterrupt):
                raise
            return None
        return text


class Editor:
    """prompt_toolkit's line editor."""

    def __init__(self, keeps_history: bool, commands: list[str]) -> None:
        self._session = _session(_history(keeps_history), commands)

    def read(self, typed: str = "") -> str | None:
        """As `Reader`."""
        while True:
            try:
                text = self._session.prompt(default=typed)
            except EOFError:
                return None
            if self._has_interrupt():
                raise Dropped
            if text.strip():
                return text.strip("\n")
            typed = ""

    def _has_interrupt(self) -> bool:
        """Whether Ctrl-C came with Enter, among keys that were read for the next prompt."""
        from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
        from prompt_toolkit.keys import Keys

        keys = get_typeahead(self._session.input)
        if any(key.key == Keys.ControlC for key in keys):
            return True
        store_typeahead(self._session.input, keys)
        return False


def _session(history: History, commands: list[str]) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output
    from prompt_toolkit.output.vt100 import Vt100_Output
    from prompt_toolkit.shortcuts import CompleteStyle

    output = create_output(always_prefer_tty=True)
    if isinstance(output, Vt100_Output):
        output.enable_cpr = False  # where the cursor is: an answer that may come too late
    return PromptSession(
        PROMPT,
        output=output,
        history=history,
        multiline=True,
        prompt_continuation=MORE,
        key_bindings=_keys(),
        completer=_completer(commands),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        reserve_space_for_menu=0,
        enable_suspend=True,
    )


def _history(is_kept: bool) -> History:
    from prompt_toolkit.history import InMemoryHistory

    if is_kept:
        try:
            return open_history(history_path())
        except (OSError, RuntimeError) as error:  # RuntimeError: nobody knows a home folder
            say = f"pilotfish: no history is kept: {error}; --no-history asks for none"
            print(say, file=sys.stderr)
    return InMemoryHistory()


def _completer(commands: list[str]) -> Completer:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document

    class Commands(Completer):
        """Names of commands, at the beginning of a message."""

        def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
            begun = document.text_before_cursor
            for name in commands if begun.startswith("/") else ():
                if name.startswith(begun):
                    yield Completion(name, start_position=-len(begun))

    return Commands()


def _keys() -> KeyBindings:
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys, edits = KeyBindings(), has_focus(DEFAULT_BUFFER)

    @keys.add("enter", filter=edits)
    @keys.add("c-j", filter=edits)
    def send(event: KeyPressEvent) -> None:
        if is_open(event.current_buffer.text):
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    @keys.add("c-c", filter=edits)
    def drop(event: KeyPressEvent) -> None:
        kind = Dropped if event.current_buffer.text else KeyboardInterrupt
        event.app.exit(exception=kind, style="class:aborting")

    @keys.add("escape", "enter", filter=edits)
    @keys.add("escape", "c-j", filter=edits)
    def begin_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
