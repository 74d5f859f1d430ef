"""Programs of Python, each in a process that is forked from one which has imported what is slow.

Knows: command lines, streams and settings. Does not know: what is run, nor what is tested with it.
Imports are most of what a short program costs. Not for tests of imports or of what a process holds.
Settings that libraries read once, as they are imported, get a process of their own. A program whose
standard input is a terminal that it leads is the leader of that terminal here too: what is typed is
its signal.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import io
import json
import os
import random
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from importlib import import_module, invalidate_caches
from pathlib import Path
from time import monotonic
from types import ModuleType, SimpleNamespace
from typing import IO, Any, NoReturn
from unittest import mock

IMPORTED = (
    "pilotfish.cli.main",
    "pilotfish.cli.verify",
    "pilotfish.engine.llm",
    "pilotfish.loading.prepare",
    "pilotfish.ranks.serve",
    "pilotfish.testing.suite",
    "pilotfish_llama3.model",
    "tokenizers",
    "transformers.generation.utils",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
)
READ_ONCE = (
    *("ATEN_", "CUDA", "DNNL_", "GLIBC_", "GOMP_", "HF_", "KMP_", "LANG", "LC_", "LD_", "MALLOC_"),
    *("MKL_", "OMP_", "ONEDNN_", "OPENBLAS_", "PILOTFISH_NATIVE", "PYTHON", "TORCH"),
    *("TRANSFORMERS_", "TRITON_"),
)
"""How the names of settings begin that are read as libraries are imported."""
SET_HERE = ("PYTHONPATH", "TORCHINDUCTOR_CACHE_DIR")
"""But these: the first is obeyed, and torch sets the other."""
SETTINGS = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
"""Of what is run here, beside those of the tests."""
TESTS = Path(__file__).parents[1]
RANKS = "FORKS_RANKS"
"""Set where ranks that a program starts are forked too: to where the server listens."""
PID_BYTES = 10
"""Of a process, told before its exit code; 0 for what wants a process of its own."""
LOST = "the process that is forked from has ended"


def run(
    *arguments: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """As `python ARGUMENTS` (-c PROGRAM, -m MODULE or a file first), with both outputs kept.

    env: all of it; None takes that of the tests, with SETTINGS.
    """
    words = [str(argument) for argument in arguments]
    env = {**os.environ, **SETTINGS} if env is None else dict(env)
    with (
        open(os.devnull) as nothing,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        streams = [nothing.fileno(), out.fileno(), err.fileno()]
        program = _start(_server(), words, str(cwd or Path.cwd()), env, streams)
        code = None if program is None else program.wait()
        if code is None:
            command = [sys.executable, *words]
            return subprocess.run(
                command, cwd=cwd, env=env, capture_output=True, text=True, check=False
            )
        out.seek(0)
        err.seek(0)
        said = err.read().decode(errors="backslashreplace")
        return subprocess.CompletedProcess(words, code, out.read().decode(), said)


def programs() -> Path:
    """A folder with `python` and `pilotfish`, to stand before others in PATH: each is forked."""
    return Path(_server()).parent


class Program:
    """A program that runs; as `subprocess.Popen`. Its process is the server's child's child."""

    def __init__(self, answers: socket.socket, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin: IO[bytes] | None = None
        self._answers, self._said = answers, b""

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else monotonic() + timeout
        while self.returncode is None:
            left = None if deadline is None else max(0.0, deadline - monotonic())
            if not select.select([self._answers], [], [], left)[0]:
                assert timeout is not None
                raise subprocess.TimeoutExpired("a forked program", timeout)
            if more := self._answers.recv(64):
                self._said += more
                continue
            self._answers.close()
            assert self._said, LOST
            self.returncode = int(self._said)
        return self.returncode

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def terminate(self) -> None:
        self._tell(signal.SIGTERM)

    def kill(self) -> None:
        self._tell(signal.SIGKILL)

    def _tell(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(self.pid, number)


def popen(command: Sequence[str], *, env: Mapping[str, str], **streams: Any) -> Any:
    """As `subprocess.Popen` of this Python, whose standard input is a pipe.

    streams: stdin, which is PIPE; stdout and stderr, files.
    """
    assert streams["stdin"] == subprocess.PIPE
    near, far = os.pipe()
    with os.fdopen(near, "rb") as read, suppress(OSError):
        numbers = [read.fileno(), streams["stdout"].fileno(), streams["stderr"].fileno()]
        made = _start(_server(), command[1:], str(Path.cwd()), {**SETTINGS, **env}, numbers)
    written = os.fdopen(far, "wb")
    if made is None:
        written.close()
        return subprocess.Popen(command, env=env, **streams)
    made.stdin = written
    return made


def ranks_too() -> dict[str, str]:
    """Settings of a program whose ranks are forked too, and of those that it starts."""
    return {RANKS: _server()}


@contextmanager
def ranks_are_forked() -> Iterator[None]:
    """Processes of ranks that are started inside are forked, not those that they start."""
    names = {"PIPE": subprocess.PIPE, "TimeoutExpired": subprocess.TimeoutExpired, "Popen": popen}
    with mock.patch("pilotfish.ranks.spawn.subprocess", SimpleNamespace(**names)):
        yield


def main(address: str, before: Sequence[str]) -> None:
    """A program of that folder: what it is asked for, with its streams."""
    words = [*before, *sys.argv[1:]]
    is_whole = all(stream is not None for stream in (sys.stdin, sys.stdout, sys.stderr))
    leads = is_whole and os.isatty(0) and os.getsid(0) == os.getpid()
    program = None
    if leads:
        before_hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        fcntl.ioctl(0, termios.TIOCNOTTY)  # the program takes it
    if is_whole:
        program = _start(address, words, str(Path.cwd()), os.environ, [0, 1, 2], leads=leads)
    if leads and program is None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, before_hangup)
    if program is None:
        os.execv(sys.executable, [sys.executable, *words])
    code = program.wait()
    os._exit(code if code >= 0 else 128 - code)


def _start(
    address: str,
    words: Sequence[str],
    cwd: str,
    env: Mapping[str, str],
    streams: Sequence[int],
    *,
    leads: bool = False,
) -> Program | None:
    """None where it wants a process of its own. Its exit code is negative for a signal.

    leads: the terminal that is its standard input.
    """
    asked = json.dumps([words, cwd, dict(env), leads]).encode()
    client = socket.socket(socket.AF_UNIX)
    client.connect(address)
    socket.send_fds(client, [b"%10d" % len(asked)], streams)
    client.sendall(asked)
    said = b""
    while len(said) < PID_BYTES and (more := client.recv(PID_BYTES - len(said))):
        said += more
    assert said, LOST
    if int(said):
        return Program(client, int(said))
    client.close()
    return None


@cache
def _server() -> str:
    """Starts it, once a session of tests; where it listens."""
    if RANKS in os.environ:
        return os.environ[RANKS]
    folder = Path(tempfile.mkdtemp(prefix="forks-"))
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    address = str(folder / "socket")
    for name, before in (("python", ()), ("pilotfish", ("-m", "pilotfish.cli"))):
        (folder / name).write_text(
            f"#!{sys.executable} -IS\nimport sys\nsys.path.insert(0, {str(TESTS)!r})\n"
            f"from support.forked import main\nmain({address!r}, {before!r})\n"
        )
        (folder / name).chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, "-c", f"from support.forked import serve; serve({address!r})"],
        env={**os.environ, **SETTINGS, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stdout.read(2) == b"up"

    def end() -> None:
        server.communicate()
        shutil.rmtree(folder)

    atexit.register(end)
    return address


def serve(address: str) -> None:
    """Forks until its standard input ends."""
    environ = dict(os.environ)
    given = ["", *environ["PYTHONPATH"].split(os.pathsep)]
    packages = [path for path in sys.path if path not in given]
    for name in IMPORTED:
        import_module(name)
    gc.freeze()  # children share its pages for as long as they do not write to them
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        os.write(1, b"up")
        while listener in select.select([listener, 0], [], [])[0]:
            client, _ = listener.accept()
            if not os.fork():
                listener.close()
                _answer(client, environ, packages)
            client.close()
            while _ended():
                pass


def _ended() -> bool:
    """Takes leave of a child that has ended; False where none has."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


def _answer(client: socket.socket, environ: Mapping[str, str], packages: list[str]) -> NoReturn:
    """Runs what is asked for in a child; its exit code is the answer."""
    size, streams, _, _ = socket.recv_fds(client, 10, 3)
    asked = b""
    while len(asked) < int(size):
        asked += client.recv(1 << 16)
    words, cwd, env, leads = json.loads(asked)
    if _read_once(env) != _read_once(environ):
        client.sendall(b"0" * PID_BYTES)
        os._exit(0)
    program = os.fork()
    if not program:
        client.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        if leads:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os._exit(_become(words, cwd, env, packages))
    client.sendall(b"%0*d" % (PID_BYTES, program))
    client.sendall(str(os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])).encode())
    os._exit(0)


def _read_once(env: Mapping[str, str]) -> dict[str, str]:
    kept = {name: env[name] for name in env if name.startswith(READ_ONCE)}
    return {name: value for name, value in kept.items() if name not in SET_HERE}


def _become(words: list[str], cwd: str, env: Mapping[str, str], packages: list[str]) -> int:
    """What Python does with its command line. Returns the exit code."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    random.seed()
    text = {"encoding": sys.stdout.encoding}
    is_unbuffered = words[0] == "-u"
    sys.stdin = os.fdopen(0, **text)
    if is_unbuffered:
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", buffering=0), write_through=True, **text)
    else:
        sys.stdout = os.fdopen(1, "w", **text)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", **text)
    words = words[is_unbuffered:]
    how, *rest = words
    first = {"-c": "", "-m": cwd}.get(how, str(Path(how).resolve().parent))
    sys.argv[:] = rest if how == "-m" else words
    sys.path[:] = [first, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *packages]
    invalidate_caches()
    with ranks_are_forked() if RANKS in env else nullcontext():
        return _run(how, rest)


def _run(how: str, rest: list[str]) -> int:
    code = 0
    try:
        if how == "-c":
            sys.argv[1:2] = []
            main = sys.modules["__main__"] = ModuleType("__main__")
            exec(rest[0], vars(main))
        elif how == "-m":
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(how, run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    return code
