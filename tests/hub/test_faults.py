"""Broken files, failing hubs, interrupts: told apart, and gone on with."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from hub.local_hub import LocalHub
from hub.repositories import WEIGHTS, sharded
from pilotfish.cli import main
from pilotfish.errors import CheckpointError
from pilotfish.weights import open_checkpoint

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4cac\nsize 281336\n"


BROKEN: dict[str, tuple[Any, str]] = {
    "pointer": (lambda _: POINTER, "a Git LFS pointer, not the file that it stands for"),
    "page": (lambda _: b"<!DOCTYPE html><html></html>", "a header that does not fit 28 bytes"),
    "empty": (lambda _: b"", "a header that does not fit 0 bytes"),
    "cut header": (lambda data: data[:300], "a header that does not fit 300 bytes"),
    "cut": (lambda data: data[:-100], "bytes where the header wants"),
    "longer": (lambda data: data + bytes(100), "bytes where the header wants"),
}


@pytest.mark.parametrize("does_ranges", [True, False])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_on_the_hub_is_told_from_a_broken_network(
    hub: LocalHub, tiny: Path, kind: str, does_ranges: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, said = BROKEN[kind]
    hub.does_ranges = does_ranges
    repo = hub.folder / "org/broken"
    shutil.copytree(tiny, repo)
    (repo / WEIGHTS).write_bytes(spoil((tiny / WEIGHTS).read_bytes()))
    assert main(["inspect", "org/broken"]) == 2
    error = capsys.readouterr().err
    assert f"org/broken/{WEIGHTS}: " in error
    assert said in error
    assert "it is so on the hub: take another repository" in error


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_of_a_damaged_file_in_the_cache_it_is_said_what_to_delete(
    hub: LocalHub, tiny: Path, name: str
) -> None:
    def read() -> None:
        source = open_checkpoint("org/tiny").weights()
        source.load(next(iter(source)))

    read()
    cached = open_checkpoint("org/tiny").path / name
    cached.resolve().write_bytes(cached.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"delete .*, and it is fetched anew") as caught:
        read()
    named = re.search("delete (.*), and it", str(caught.value))
    assert named is not None
    Path(named[1]).unlink()
    read()


@pytest.mark.parametrize("stuck", [f"{WEIGHTS}", "the first shard", "part of the first shard"])
@pytest.mark.usefixtures("patience")
def test_an_interrupt_ends_a_fetch_that_hangs(
    hub: LocalHub, tiny: Path, tmp_path: Path, stuck: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "org/tiny" if stuck == WEIGHTS else "org/sharded"
    hub.stuck = stuck.replace("the first shard", sharded(hub, tiny)[0])
    requests = tmp_path / "requests.jsonl"
    requests.write_text(json.dumps({"prompt_token_ids": [1, 2, 3]}))

    def interrupt() -> None:
        hub.asked.wait()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert main(["generate", model, "--input-file", str(requests)]) == 130
    assert not hub.waited
    assert "pilotfish: interrupted" in capsys.readouterr().err
    assert not list((tmp_path / "cache").rglob("*.incomplete"))
    hub.let_go.set()
    hub.stuck = ""
    assert main(["generate", model, "--input-file", str(requests), "--max-tokens", "3"]) == 0


def test_a_command_that_ends_looks_for_no_garbage() -> None:
    """So that one that was interrupted ends at once, with all of torch and transformers loaded."""
    program = (
        "import atexit, gc\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 1000))\n"
        "from pilotfish.cli import main\n"
        "main(['--version'])\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True"


@pytest.mark.parametrize("kind", ["a file", "below a file", "read only"])
def test_a_cache_that_cannot_be_written_is_named(
    hub: LocalHub,
    tmp_path: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from huggingface_hub import constants

    (tmp_path / "file").touch()
    folder = {"a file": tmp_path / "file", "below a file": tmp_path / "file/cache"}.get(kind)

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    if folder is None:
        folder = tmp_path / "cache"
        monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    assert main(["inspect", "org/tiny"]) == 2
    error = capsys.readouterr().err
    assert re.search(
        rf"cache folder {re.escape(str(folder))} cannot be written \(.+\); set HF_", error
    )
    assert "network" not in error


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (429, "the hub asks to wait (429, too many requests); try again later, or log in"),
        (500, "the hub's own fault (500); try again later"),
        (503, "the hub's own fault (503); try again later"),
    ],
)
@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
@pytest.mark.usefixtures("no_waits")
def test_what_the_hub_itself_fails_at(
    hub: LocalHub, code: int, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.failing[name] = code
    assert main(["inspect", "org/tiny"]) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert "network" not in line


def test_a_fault_of_the_network_is_said_once_without_addresses(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["inspect", "org/tiny"]) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert re.search(r"fetched from the hub \([^()]*Connection refused\); check the network", line)
    assert line.count("refused") == 1


@pytest.mark.parametrize("kind", ["pointer", "page", "cut", "flipped"])
def test_a_broken_torch_file_on_the_hub(
    hub: LocalHub, tiny: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from safetensors.torch import load_file

    repo = hub.folder / "org/broken"
    shutil.copytree(tiny, repo, ignore=shutil.ignore_patterns(WEIGHTS))
    file = repo / "pytorch_model.bin"
    torch.save(load_file(tiny / WEIGHTS), file)
    data = bytearray(file.read_bytes())
    for at in range(0, 4000, 7):
        data[at] ^= 255
    file.write_bytes(data if kind == "flipped" else BROKEN[kind][0](file.read_bytes()))
    assert main(["inspect", "org/broken"]) == 2
    error = capsys.readouterr().err
    assert "pytorch_model.bin: " in error
    assert "it is so on the hub: take another repository" in error


@pytest.mark.parametrize("kind", ["pointer", "page"])
@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_inspect_refuses_small_files_that_cannot_be_read(
    hub: LocalHub, tiny: Path, kind: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = hub.folder / "org/broken"
    shutil.copytree(tiny, repo)
    (repo / name).write_bytes(BROKEN[kind][0](b""))
    assert main(["inspect", "org/broken"]) == 2
    error = capsys.readouterr().err
    assert name in error
    assert "it is so on the hub: take another repository" in error
