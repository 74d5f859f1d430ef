"""Passes of whole models, replayed without Python: the same memory after, and no access beyond it.

On every instruction set here, on an emulated ARM, and under the sanitizers.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kernels.native_cases import needs_library
from native.compiled import (
    compiled_library,
    compiled_program,
    library_file,
    needs_compiler,
    needs_programs,
    on_linux,
)
from native.golden_checkpoints import checkpoints
from native.replays import Replay, recorded, write
from native.test_digests import SANITIZERS
from pilotfish import CacheConfig, load_registry
from pilotfish.loading.prepare import prepare_from_options
from pilotfish.testing.session import Session

pytestmark = [on_linux, needs_compiler, needs_library]

FEW = (("LlamaForCausalLM-biased, tied, llama3 rope", "bfloat16"), ("Q4_K.gguf", "float32"))
MANY = (
    *(("LlamaForCausalLM-plain", dtype) for dtype in ("float32", "float16")),
    ("MistralForCausalLM-odd heads", "bfloat16"),
    ("GraniteForCausalLM-multipliers", "float32"),
    ("OlmoForCausalLM-clipped", "bfloat16"),
    ("Phi3ForCausalLM-window", "float32"),
    ("Qwen3ForCausalLM-yarn", "bfloat16"),
    ("Lfm2ForCausalLM-attention between", "bfloat16"),
    ("SmolLM3ForCausalLM-layers without rope", "float32"),
    *((f"{kind}.gguf", "bfloat16") for kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")),
    *((f"{kind}.gguf", "bfloat16") for kind in ("Q5_K", "Q6_K")),
)


def passes(name: str, dtype: str) -> list[Replay]:
    """A prefill of two requests, a step of both, and one of one."""
    prepared = prepare_from_options(
        str(checkpoints() / name),
        registry=load_registry(),
        dtype=dtype,
        backend="native",
        arithmetic="portable",
        cache=CacheConfig(page_size_tokens=4, num_pages=16, prefix_caching=False),
    )
    prepared.model.load_model(prepared.weights)
    session = Session(prepared.model, prepared.allocate())
    session.add("a", [(7 * i + 5) % 90 for i in range(41)])
    session.add("b", [3, 1, 4, 1])
    with recorded() as found:
        session.run({"a": 39, "b": 3})
        session.run({"a": 1, "b": 1})
        session.run({"a": 1})
    assert len(found) >= 3
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """Of some models' passes: file -> the digest that this process has."""
    folder = tmp_path_factory.mktemp("replays")
    known: dict[tuple[str, str], dict[str, str]] = {}

    def make(models: Sequence[tuple[str, str]]) -> dict[str, str]:
        for number, (name, dtype) in enumerate(models):
            if (name, dtype) not in known:
                found = passes(name, dtype)
                paths = [folder / f"{len(known)}-{number}-{i}" for i in range(len(found))]
                known[name, dtype] = {
                    str(write(one, path)): one.after for one, path in zip(found, paths, strict=True)
                }
        return {path: after for model in models for path, after in known[model].items()}

    return make


def check(
    program: Path, library: Path, num_threads: int, wanted: dict[str, str], *under: str
) -> set[str]:
    """Every file on every instruction set; returns which they were."""
    done = subprocess.run(
        [*under, program, library, str(num_threads), *wanted],
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, f"replay failed with {done.returncode}:\n{done.stderr}"
    found: dict[str, dict[str, str]] = {}
    for line in done.stdout.splitlines():
        name, path, digest = line.split()
        found.setdefault(name, {})[path] = digest
    assert found, "no instruction set of this library is here"
    assert found == dict.fromkeys(found, wanted)
    return set(found)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_pass_without_python_gives_the_same_memory(
    num_threads: int, files: Callable[..., dict[str, str]]
) -> None:
    check(compiled_program("replay", ["replay.cpp"]), library_file(), num_threads, files(FEW))


@needs_programs("aarch64-linux-gnu-g++", "qemu-aarch64")
def test_neon_gives_it_too(files: Callable[..., dict[str, str]]) -> None:
    check_neon(files(FEW))


def check_neon(wanted: dict[str, str]) -> None:
    """Under the emulator."""
    compiler, arm = ["aarch64-linux-gnu-g++"], "aarch64"
    library = compiled_library("neon", compiler, target_machine=arm)
    program = compiled_program("replay-neon", ["replay.cpp"], compiler, target_machine=arm)
    emulator = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
    assert check(program, library, 2, wanted, *emulator) == {"neon"}


@pytest.mark.slow
@needs_programs("aarch64-linux-gnu-g++", "qemu-aarch64")
def test_neon_gives_those_of_every_model(files: Callable[..., dict[str, str]]) -> None:
    check_neon(files(MANY))


@pytest.mark.slow
@pytest.mark.parametrize("num_threads", [1, 2, 8])
def test_every_models_passes(num_threads: int, files: Callable[..., dict[str, str]]) -> None:
    check(compiled_program("replay", ["replay.cpp"]), library_file(), num_threads, files(MANY))


@pytest.mark.slow
@needs_programs("g++")
def test_they_read_and_write_nothing_that_is_not_theirs(
    files: Callable[..., dict[str, str]],
) -> None:
    library = compiled_library("sanitized", ["g++"], options=["-O1", *SANITIZERS])
    program = compiled_program("replay-sanitized", ["replay.cpp"], ["g++"], options=SANITIZERS)
    check(program, library, 2, files(FEW + MANY))
