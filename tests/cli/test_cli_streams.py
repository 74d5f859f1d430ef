"""The command line where standard streams are closed, full or no text, and where imports fail."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pilotfish.cli import main
from pilotfish.cli.interrupts import interrupts_held
from pilotfish.cli.standard_streams import print_json
from support import forked


def command(line: str, **settings: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a line of the shell in which $PILOTFISH is the program, and $FORKED the same, forked."""
    env = {**os.environ, **forked.SETTINGS, **settings}
    for name, python in (("PILOTFISH", sys.executable), ("FORKED", forked.programs() / "python")):
        env[name] = f"{python} -m pilotfish.cli"
    return subprocess.run(["sh", "-c", line], capture_output=True, check=False, env=env)


def lines_of(text: bytes) -> list[str]:
    return text.decode().strip().splitlines()


@pytest.mark.parametrize(
    "verb", ["generate {} --prompt -", "generate {} --input-file -", "chat demo"]
)
def test_a_closed_standard_input_is_one_line(verb: str, tiny_checkpoint: Path) -> None:
    done = command(f"$PILOTFISH {verb.format(tiny_checkpoint)} <&-")
    (line,) = [text for text in lines_of(done.stderr) if text.startswith("pilotfish: error")]
    assert "standard input is closed" in line
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("settings", [{}, {"PYTHONUTF8": "0", "LC_ALL": "C"}])
def test_bytes_that_are_no_text_on_standard_input_are_one_line(
    settings: dict[str, str], tiny_checkpoint: Path
) -> None:
    done = command(
        f"printf '\\377\\376a' | $FORKED generate {tiny_checkpoint} --prompt -", **settings
    )
    (line,) = lines_of(done.stderr)
    assert "not UTF-8 text" in line
    assert done.returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(("verb", "code"), [("generate x --prompt ''", 2), ("generat", 2)])
def test_an_error_that_cannot_be_said_keeps_its_exit_code(verb: str, code: int) -> None:
    assert command(f"$PILOTFISH {verb} 2>/dev/full").returncode == code


@pytest.mark.parametrize("level", ["1", "2"])
def test_python_without_asserts_and_docstrings(level: str) -> None:
    done = command("$PILOTFISH plugins", PYTHONOPTIMIZE=level)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"llama3" in done.stdout


@pytest.mark.parametrize(
    ("encoding", "is_kept"), [("utf-8", True), ("ascii", False), ("latin-1", False)]
)
def test_json_loses_no_letter(
    encoding: str, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    stdout = io.TextIOWrapper(raw, encoding=encoding, errors="replace")
    monkeypatch.setattr(sys, "stdout", stdout)
    print_json({"text": "é日b"})
    stdout.flush()
    text = raw.getvalue().decode(encoding)
    assert json.loads(text) == {"text": "é日b"}
    assert ("é日b" in text) == is_kept


def test_ctrl_c_within_an_import_that_torch_would_swallow(tiny_checkpoint: Path) -> None:
    """numpy is imported first, and by itself; a process of its own, since this one has it."""
    program = f"""
import importlib.abc, sys
class CtrlC(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "numpy._core.getlimits":
            sys.meta_path.remove(self)
            raise KeyboardInterrupt
sys.meta_path.insert(0, CtrlC())
from pilotfish.cli.main import main
sys.exit(main(["inspect", {str(tiny_checkpoint)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, lines_of(done.stderr)) == (130, ["pilotfish: interrupted"])


def test_an_interrupt_that_is_held_comes_at_the_end() -> None:
    done = []

    def imports() -> None:
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
            done.append("all")

    with pytest.raises(KeyboardInterrupt):
        imports()
    assert done == ["all"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_handler_of_the_users_own_is_left_alone() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
            assert seen
    finally:
        signal.signal(signal.SIGINT, before)


def test_no_folder_for_temporary_files_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the import of transformers' config classes asks for one, and hides what it was told."""

    def fails(args: Any) -> int:
        try:
            raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")
        except FileNotFoundError as error:
            raise ModuleNotFoundError("Could not import module 'LlamaConfig'") from error

    monkeypatch.setattr("pilotfish.cli.inspect.run", fails)
    assert main(["inspect", "x"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "TMPDIR" in line


def test_a_warning_is_a_line_of_the_program() -> None:
    chat = "generate demo --chat hi --max-tokens 1 --temperature 0"
    done = command(f"$FORKED {chat} --chat-template-kwargs '{{\"enable_thinking\": true}}'")
    (line,) = [text for text in lines_of(done.stderr) if "enable_thinking" in text]
    assert line.startswith("pilotfish: warning: the chat template does not read enable_thinking")
    assert done.returncode == 0
