"""Every Triton kernel of the repository compiles for a Hopper GPU; no GPU is needed.

The interpreter takes more than the compiler does, and does not know what a multiprocessor holds.
"""

from __future__ import annotations

import ast
import json
import os
import pathlib
import subprocess
import sys

import pytest

from kernels.hopper import SHARED_BYTES, Compiled
from kernels.hopper_cases import CASES
from slow import SLOW

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
FITS = "kernels/test_compiles_for_hopper.py::test_it_fits_a_multiprocessor"
FEW_SPILLED_BYTES = 256
"""Of a float32 tile, which is there for accuracy; 16-bit kernels keep everything in registers."""


@pytest.fixture(scope="module")
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[Compiled]:
    """What cases became, compiled in a process without the interpreter.

    All of them, but for those that wait for `make test-all` where they are not run.
    """
    run = {item.name.partition("[")[2].removesuffix("]") for item in request.session.items}
    cases = [case for case in CASES if case in run or case not in SLOW[FITS]]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, str(HERE / "hopper.py"), *cases]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "UserWarning" not in done.stderr, done.stderr[-5000:]
    return [Compiled(**row) for row in json.loads(done.stdout)]


@pytest.mark.parametrize("case", CASES)
def test_it_fits_a_multiprocessor(compiled: list[Compiled], case: str) -> None:
    rows = [row for row in compiled if row.case == case]
    assert rows
    for row in rows:
        assert row.shared_bytes <= SHARED_BYTES, row
        assert row.spill_bytes <= (FEW_SPILLED_BYTES if "float32" in case else 0), row


def test_products_in_16_bits_use_tensor_cores_and_float32_is_not_rounded(
    compiled: list[Compiled],
) -> None:
    """TF32 would lose 13 bits of a float32."""
    assert not any(row.has_tf32 for row in compiled)
    products = [
        row.has_wgmma
        for row in compiled
        if row.kernel in ("_linear_kernel", "_grouped_kernel", "_attend_kernel")
        and "bfloat16" in row.case
        and "head 576" not in row.case
    ]
    assert len(products) >= 8
    assert all(products)


def test_no_kernel_is_left_out(compiled: list[Compiled]) -> None:
    """A new kernel needs a case in hopper_cases.py."""
    kernels, calls = _kernels()
    reached = {(row.module, row.kernel) for row in compiled}
    while found := {callee for name in reached for callee in calls.get(name, ())} - reached:
        reached |= found
    assert len(kernels) >= 14
    assert kernels - reached == set()


Name = tuple[str, str]


def _kernels() -> tuple[set[Name], dict[Name, set[Name]]]:
    """All functions under @triton.jit, as (module, function), and which of them each one calls."""
    kernels: set[Name] = set()
    calls: dict[Name, set[Name]] = {}
    for base in (ROOT / "framework", *(ROOT / "plugins").iterdir()):
        for path in base.rglob("*.py"):
            text = path.read_text()
            if "triton.jit" not in text:
                continue
            module, tree = ".".join(path.relative_to(base).with_suffix("").parts), ast.parse(text)
            functions = [
                node
                for node in ast.walk(tree)
                if isinstance(node, ast.FunctionDef)
                and any("triton.jit" in ast.unparse(item) for item in node.decorator_list)
            ]
            homes = {function.name: module for function in functions} | {
                name.name: node.module or ""
                for node in tree.body
                if isinstance(node, ast.ImportFrom)
                for name in node.names
            }
            for function in functions:
                called = {
                    node.func.id
                    for node in ast.walk(function)
                    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
                }
                kernels.add((module, function.name))
                calls[module, function.name] = {
                    (homes[name], name) for name in called & homes.keys()
                }
    return kernels, calls
