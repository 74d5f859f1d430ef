"""Programs of Python, each in a process that is forked from one which has imported what is slow.

Knows: command lines, streams and settings. Does not know: what is run, nor what is tested with it.
Imports are most of what a short program costs. Not for tests of imports, of signals or of what a
process holds. Settings that libraries read once, as they are imported, get a process of their own.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import random
import runpy
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module, invalidate_caches
from pathlib import Path
from types import ModuleType
from typing import NoReturn

IMPORTED = (
    "pilotfish.cli.main",
    "pilotfish.cli.verify",
    "pilotfish.engine.llm",
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
"""How the names of settings begin that are read as libraries are imported; not PYTHONPATH."""
SETTINGS = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
"""Of what is run here, beside those of the tests."""
TESTS = Path(__file__).parents[1]
OWN = "a process of its own"


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
        code = _ask(_server(), words, str(cwd or Path.cwd()), env, streams)
        if code is None:
            command = [sys.executable, *words]
            return subprocess.run(
                command, cwd=cwd, env=env, capture_output=True, text=True, check=False
            )
        out.seek(0)
        err.seek(0)
        said = err.read().decode(errors="backslashreplace")
        return subprocess.CompletedProcess(words, code, out.read().decode(), said)


@cache
def programs() -> Path:
    """A folder with `python` and `pilotfish`, to stand before others in PATH: each is forked."""
    folder = Path(_server()).parent
    for name, before in (("python", ()), ("pilotfish", ("-m", "pilotfish.cli"))):
        (folder / name).write_text(
            f"#!{sys.executable} -IS\nimport sys\nsys.path.insert(0, {str(TESTS)!r})\n"
            f"from support.forked import main\nmain({str(folder / 'socket')!r}, {before!r})\n"
        )
        (folder / name).chmod(0o755)
    return folder


def main(address: str, before: Sequence[str]) -> None:
    """A program of that folder: what it is asked for, with its streams."""
    words = [*before, *sys.argv[1:]]
    is_whole = all(stream is not None for stream in (sys.stdin, sys.stdout, sys.stderr))
    code = _ask(address, words, str(Path.cwd()), os.environ, [0, 1, 2]) if is_whole else None
    if code is None:
        os.execv(sys.executable, [sys.executable, *words])
    os._exit(code if code >= 0 else 128 - code)


def _ask(
    address: str, words: Sequence[str], cwd: str, env: Mapping[str, str], streams: Sequence[int]
) -> int | None:
    """The exit code, negative for a signal; None where it wants a process of its own."""
    asked = json.dumps([words, cwd, dict(env)]).encode()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)
        socket.send_fds(client, [b"%10d" % len(asked)], streams)
        client.sendall(asked)
        said = b"".join(iter(lambda: client.recv(64), b"")).decode()
    assert said, "the process that is forked from has ended"
    return None if said == OWN else int(said)


@cache
def _server() -> str:
    """Starts it, once a session of tests; where it listens."""
    folder = Path(tempfile.mkdtemp(prefix="forks-"))
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    address = str(folder / "socket")
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
    words, cwd, env = json.loads(asked)
    if _read_once(env) != _read_once(environ):
        client.sendall(OWN.encode())
        os._exit(0)
    program = os.fork()
    if not program:
        client.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os._exit(_become(words, cwd, env, packages))
    client.sendall(str(os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])).encode())
    os._exit(0)


def _read_once(env: Mapping[str, str]) -> dict[str, str]:
    kept = {name: env[name] for name in env if name.startswith(READ_ONCE)}
    return {name: value for name, value in kept.items() if name != "PYTHONPATH"}


def _become(words: list[str], cwd: str, env: Mapping[str, str], packages: list[str]) -> int:
    """What Python does with its command line. Returns the exit code."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    random.seed()
    text = {"encoding": sys.stdout.encoding}
    sys.stdin, sys.stdout = os.fdopen(0, **text), os.fdopen(1, "w", **text)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", **text)
    how, *rest = words
    first = {"-c": "", "-m": cwd}.get(how, str(Path(how).resolve().parent))
    sys.argv[:] = rest if how == "-m" else words
    sys.path[:] = [first, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *packages]
    invalidate_caches()
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
