"""What probes find is kept between processes: when it is read, and when it is found anew."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pilotfish import LLM
from pilotfish.invariance import padding
from pilotfish.invariance.padding import RowPadding
from pilotfish.invariance.probe_cache import ProbeCache
from pilotfish.kernels import KernelBackend
from pilotfish.loading.prepare import prepare_from_options
from pilotfish.models.claims import Claims
from pilotfish.platform import machine, user_cache
from support import forked
from support.probed_network import counted, probe_network

SIZES = (1, 8)
KEY = "products with [4, 8] float32 (packed)"


PROCESS = """
import sys
import torch
from support import forked
from support.probed_network import counted, probe_network
torch.set_num_threads(int(sys.argv[1]))
calls = counted()
print(probe_network())
print(len(calls))
"""


def start(folder: Path | str, threads: int = 1, **settings: str) -> subprocess.Popen[str]:
    paths = [Path(__file__).parents[1], Path(padding.__file__).parents[2]]
    environment = {
        **{name: value for name, value in os.environ.items() if name != "MKL_NUM_THREADS"},
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        **forked.SETTINGS,
        "PILOTFISH_CACHE_DIR": str(folder),
        **settings,
    }
    return subprocess.Popen(
        [forked.programs() / "python", "-c", PROCESS, str(threads)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def answer(process: subprocess.Popen[str]) -> tuple[str, int]:
    """The padding that a process found, and with how many probes."""
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    found, calls = out.splitlines()
    return found, int(calls)


def test_processes_share_what_they_found_where_their_settings_are_the_same(
    tmp_path: Path,
) -> None:
    at_once = [start(tmp_path), start(tmp_path)]
    answers = [answer(process) for process in at_once]
    wanted = answers[0][0]
    assert wanted.startswith("RowPadding(body=")
    assert answers[1][0] == wanted
    assert {calls for _, calls in answers} <= {0, 1, 2, 3}
    assert max(calls for _, calls in answers) == 3
    (file,) = (tmp_path / "probes").iterdir()
    assert len(json.loads(file.read_bytes())["found"]) == 3
    again, *others = [
        start(tmp_path),
        start(tmp_path, threads=2),
        start(tmp_path, MKL_CBWR="COMPATIBLE"),
    ]
    assert answer(again) == (wanted, 0)
    assert [answer(process)[1] for process in others] == [3, 3]
    assert len(list((tmp_path / "probes").iterdir())) == 3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PILOTFISH_CACHE_DIR", str(tmp_path))
    return tmp_path / "probes"


def found(number: int | None, known: ProbeCache | None = None, **options: bool) -> list[int | None]:
    """The answer of a probe that finds `number`, and that number if it was asked."""
    asked: list[int | None] = []

    def probe() -> int | None:
        asked.append(number)
        return number

    return [(known or ProbeCache()).find(KEY, SIZES, probe, **options), *asked]


@pytest.mark.parametrize("number", [8, None])
def test_an_answer_is_found_once(folder: Path, number: int | None) -> None:
    assert found(number) == [number, number]
    assert found(1) == [number]
    known = ProbeCache()
    assert found(8, known, is_kept=False) == [8, 8]  # other code's own
    assert found(1, known, is_kept=False) == [8]
    assert found(1) == [number]


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The one file there is, with other contents."""
    (path,) = folder.iterdir()
    contents = json.loads(path.read_bytes())
    change(contents)
    path.write_text(json.dumps(contents))


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file["facts"].update(sources="of another version"),
        lambda file: file["facts"]["environment"].update(MKL_CBWR="AVX2"),
        lambda file: file["facts"]["processor"].update({"model name": "another"}),
        lambda file: file.pop("facts"),
        lambda file: file.update(found=[KEY]),
        lambda file: file["found"].update({KEY: 7}),
        lambda file: file["found"].update({KEY: True}),
        lambda file: file["found"].update({KEY: 8.0}),
        lambda file: file["found"].update({KEY: "8"}),
        lambda file: file["found"].update({KEY: {}}),
    ],
)
def test_what_is_no_answer_to_the_question_is_not_taken_for_one(
    folder: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    assert found(1) == [1, 1]
    rewritten(folder, lambda file: file["found"].update({KEY: 8}))
    assert found(1) == [8]  # so the file is what is read
    rewritten(folder, change)
    assert found(1) == [1, 1]
    assert found(8) == [1]  # and it was written again


@pytest.mark.parametrize(
    "damaged",
    [b"", b'{"facts": ', b"\xff\xfe\x00", b"[" * 100_000, b"3", b" " * (1 << 21), None],
)
def test_a_damaged_file_is_no_file(folder: Path, damaged: bytes | None) -> None:
    assert found(8) == [8, 8]
    (path,) = folder.iterdir()
    if damaged is None:  # nobody writes to it, and who reads waits
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_bytes(damaged)
    assert found(1) == [1, 1]
    assert found(8) == [1]
    assert [one.name for one in folder.iterdir()] == [path.name]


def test_a_file_of_another_user_is_not_believed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(8) == [8, 8]
    (path,) = folder.iterdir()
    if os.geteuid() == 0:
        os.chown(path, 1, 1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert found(1) == [1, 1]


def test_a_folder_that_is_no_good_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    for unusable in (file, file / "below", "/dev/null", "/proc/nowhere", "x" * 5000, "none"):
        monkeypatch.setenv("PILOTFISH_CACHE_DIR", str(unusable))
        assert found(8) == [8, 8]
        assert found(1) == [1, 1]
    (tmp_path / "probes").mkdir()
    monkeypatch.setenv("PILOTFISH_CACHE_DIR", str(tmp_path))
    assert found(8) == [8, 8]
    (path,) = (tmp_path / "probes").iterdir()
    path.unlink()
    path.mkdir()  # neither read nor replaced
    assert found(1) == [1, 1]
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_full_disk_leaves_nothing_half_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(value: Any, file: Any, **options: Any) -> None:
        file.write("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(user_cache.json, "dump", full)
    assert found(8) == [8, 8]
    assert list(folder.iterdir()) == []


def test_an_unknown_processor_keeps_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_processor", dict)
    assert found(8) == [8, 8]
    assert not folder.exists()


def test_the_folder_is_the_users_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/who")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("PILOTFISH_CACHE_DIR")
    usual = Path("/home/who/.cache")
    assert user_cache.cache_folder() == usual / "pilotfish"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert user_cache.cache_folder() == usual / "pilotfish"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/mine")
    assert user_cache.cache_folder() == Path("/var/mine/pilotfish")
    monkeypatch.setenv("PILOTFISH_CACHE_DIR", "/elsewhere")
    assert user_cache.cache_folder() == Path("/elsewhere")
    monkeypatch.setenv("PILOTFISH_CACHE_DIR", "~/mine")
    assert user_cache.cache_folder() == Path("/home/who/mine")
    monkeypatch.setenv("PILOTFISH_CACHE_DIR", "none")
    assert user_cache.cache_folder() is None

    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.delenv("PILOTFISH_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache.cache_folder() is None


def test_switches_that_are_no_environment_variable_are_facts_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(8) == [8, 8]
    torch.set_deterministic_debug_mode("error")
    try:
        assert found(1) == [1, 1]
    finally:
        torch.set_deterministic_debug_mode("default")
    usual = machine.cpu_arithmetic()
    for switches in (torch.backends, torch.backends.mkldnn.matmul):
        before, switches.fp32_precision = switches.fp32_precision, "bf16"  # type: ignore[attr-defined]
        try:
            assert machine.cpu_arithmetic() != usual
        finally:
            switches.fp32_precision = before  # type: ignore[attr-defined]
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert found(1) == [1, 1]
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setenv("GOMP_SPINCOUNT", "1234")  # how threads wait is none
    assert found(1) == [8]


def test_a_model_is_loaded_with_the_same_padding_and_no_probe(
    folder: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load() -> RowPadding:
        prepared = prepare_from_options(str(tiny_checkpoint), backend="torch", dtype="float32")
        prepared.load()
        assert isinstance(prepared.model, Claims)
        return prepared.model.padding

    calls = counted(monkeypatch.setattr)
    monkeypatch.setenv("PILOTFISH_CACHE_DIR", "none")
    wanted, num_calls = load(), len(calls)
    assert num_calls == len(set(calls)) > 2
    monkeypatch.setenv("PILOTFISH_CACHE_DIR", str(folder.parent))
    assert load() == wanted
    assert len(calls) == 2 * num_calls
    assert load() == wanted
    with LLM(str(tiny_checkpoint), backend="torch", dtype="float32") as llm:
        llm.generate([[1, 2, 3]])
    assert len(calls) == 2 * num_calls


@pytest.mark.parametrize("backend", ["native", "triton", "fastest"])
def test_other_kernels_read_and_write_nothing(folder: Path, backend: str) -> None:
    is_torch = backend == "fastest"
    kernels = KernelBackend("torch", False) if is_torch else KernelBackend(backend)  # type: ignore[arg-type]
    assert probe_network(kernels) == RowPadding()
    assert not folder.exists()
