"""What tests run by `support.forked` behaves as a program of Python does that is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import forked
from support.screens import Terminal


def started(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command, env = [sys.executable, *arguments], {**os.environ, **forked.SETTINGS}
    return subprocess.run(
        command,
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


PROGRAMS = {
    "words": "import sys; print(sys.argv, sys.path[0], __name__)",
    "streams": "import sys; print(repr(sys.stdin.read())); print('é', file=sys.stderr)",
    "code": "import sys; sys.exit(3)",
    "a reason": "import sys; sys.exit('because')",
    "a signal": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "at the end": "import atexit; atexit.register(print, 'last'); print('first')",
    "folder": "import os; print(os.getcwd())",
    "path": "import sys; print(sys.path, sys.stdout.encoding, sys.stdout.line_buffering)",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_forked_program_says_what_a_started_one_says(program: str, tmp_path: Path) -> None:
    wanted = started("-c", program, "a", "b c", cwd=tmp_path)
    got = forked.run("-c", program, "a", "b c", cwd=tmp_path)
    for name in ("returncode", "stdout", "stderr"):
        assert getattr(got, name) == getattr(wanted, name)


@pytest.mark.parametrize("arguments", [["here.py", "a"], ["-m", "here", "a"]])
def test_files_and_modules_are_run(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "here.py").write_text("import sys; print(sys.argv, sys.path[0], __name__)")
    got, wanted = forked.run(*arguments, cwd=tmp_path), started(*arguments, cwd=tmp_path)
    assert (got.stdout, got.stderr) == (wanted.stdout, wanted.stderr)


def test_an_exception_is_told_and_is_1(tmp_path: Path) -> None:
    got = forked.run("-c", "raise ValueError(7)", cwd=tmp_path)
    assert (got.returncode, got.stderr.splitlines()[-1]) == (1, "ValueError: 7")


def test_no_program_sees_what_another_did() -> None:
    program = "import os, random, torch; print(random.random()); os.environ['A'] = 'b'"
    first, second = (forked.run("-c", f"{program}; torch.seen = 1").stdout for _ in range(2))
    assert first != second
    seen = forked.run("-c", "import os, torch; print(os.environ.get('A'), hasattr(torch, 'seen'))")
    assert seen.stdout == "None False\n"


@pytest.mark.parametrize(
    ("name", "is_forked"), [("ONE_TEST", True), ("OMP_NUM_THREADS", False), ("LC_ALL", False)]
)
def test_what_libraries_read_once_gets_a_process_of_its_own(name: str, is_forked: bool) -> None:
    env = {**os.environ, **forked.SETTINGS, name: "C"}
    program = "import os, sys; print(os.environ[sys.argv[1]], 'torch' in sys.modules)"
    assert forked.run("-c", program, name, env=env).stdout == f"C {is_forked}\n"


def test_programs_of_the_shell(tmp_path: Path) -> None:
    env = {**os.environ, **forked.SETTINGS, "PATH": f"{forked.programs()}:{os.environ['PATH']}"}
    line = (
        "pilotfish --version | head -n 1; A=b python -c 'import os; print(os.environ[\"A\"])';"
        "echo in | python -c 'print(input())'; python -c 'import sys; sys.exit(5)'; echo $?;"
        "python -c 'import sys; print(\"torch\" in sys.modules)'; python -c 'print(1)' >&-"
    )
    done = subprocess.run(
        ["sh", "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    version, *rest = done.stdout.splitlines()
    assert version.startswith("pilotfish ")
    assert rest == ["b", "in", "5", "True"]


def test_what_is_typed_at_a_terminal_is_its_signal() -> None:
    program = (
        "import os, signal, sys; signal.signal(signal.SIGWINCH, lambda *_: print('wider'))\n"
        "print('torch' in sys.modules, os.getsid(0) == os.getpid() == os.tcgetpgrp(0))\n"
        "try: print(*iter(input, 'end'), flush=True); signal.pause()\n"
        "except KeyboardInterrupt: sys.exit(7)\n"
    )
    with Terminal("-c", program) as t:
        t.wait(lambda t: "True True" in t.lines)
        t.resize(24, 90)
        t.wait(lambda t: "wider" in t.lines)
        t.type("a\rend\r")
        t.wait(lambda t: t.line == "" and t.above == "a")
        t.type("\x03")
        assert t.end() == 7
