"""Compiles kernels for a Hopper GPU without one: `python hopper.py CASE ...` prints results.

Knows: how Triton is told of a GPU that is not there, and what ptxas says of the result. Does not
know: what is asserted. Runs in a process of its own, without Triton's interpreter.

The launchers themselves are called, with tensors of real shapes on the CPU, so that a kernel gets
the types, constants and alignments that it gets on a GPU; a launch compiles and does not run.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend, get_ptxas
from triton.runtime.jit import JITFunction

HOPPER = GPUTarget("cuda", 90, 32)
SHARED_BYTES = 227 * 1024
"""Shared memory that one block of threads may have."""


class NoGPU:
    """What Triton asks its driver for before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return HOPPER

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@attrs.frozen(kw_only=True)
class Compiled:
    """One kernel of one case. module: of its Python function. spill_bytes: stores and loads."""

    case: str
    module: str
    kernel: str
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int
    has_wgmma: bool
    has_tf32: bool


def compile_case(case: str, launch: Callable[[], object]) -> list[Compiled]:
    """Runs `launch`, whose kernels are compiled and not run."""
    found: list[tuple[JITFunction[Any], Any]] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = run(self, *args, **{**kwargs, "warmup": True})
        found.append((self, made))
        return made

    JITFunction.run = compile_only
    try:
        launch()
    finally:
        JITFunction.run = run
    return [_describe(case, function, made) for function, made in found]


def _describe(case: str, function: Any, made: Any) -> Compiled:
    ptx = made.asm["ptx"]
    told = assembled(ptx)[1]
    return Compiled(
        case=case,
        module=function.fn.__module__,
        kernel=function.fn.__name__,
        registers=_number(r"Used (\d+) registers", told),
        spill_bytes=_number(r"(\d+) bytes spill stores", told)
        + _number(r"(\d+) bytes spill loads", told),
        stack_bytes=_number(r"(\d+) bytes stack frame", told),
        shared_bytes=int(made.metadata.shared),
        has_wgmma="wgmma" in ptx,
        has_tf32="tf32" in ptx,
    )


@cache
def assembled(ptx: str) -> tuple[bytes, str]:
    """The program, and what the assembler that Triton brings says of its resources."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "kernel.ptx"
        source.write_text(ptx)
        command = [
            get_ptxas(HOPPER.arch).path,
            "-v",
            "--gpu-name=sm_90a",
            "-o",
            str(source) + ".cubin",
            str(source),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        told = done.stdout + done.stderr
        if done.returncode:
            raise RuntimeError(f"ptxas ended with {done.returncode}: {told}")
        return Path(str(source) + ".cubin").read_bytes(), told


def _number(pattern: str, text: str) -> int:
    return max(int(number) for number in re.findall(pattern, text))


def main() -> None:
    """Prints one JSON list, of the cases that are named."""
    from hopper_cases import CASES

    triton.runtime.driver.set_active(NoGPU())
    # Triton would run the assembler too, and throw away what it says.
    CUDABackend.make_cubin = lambda _, ptx, *__: assembled(ptx)[0]
    rows = [row for name in sys.argv[1:] for row in compile_case(name, CASES[name])]
    json.dump([attrs.asdict(row) for row in rows], sys.stdout)


if __name__ == "__main__":
    main()
