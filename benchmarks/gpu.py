"""Proves and measures Pilotfish on one NVIDIA GPU: `make gpu`, or this file with --part.

    python benchmarks/gpu.py [--part kernels|bandwidth|llama|lfm2|speculation] [--out DIR]
                             [--scratch DIR] [--tiny]

Parts, each of some minutes, in the order that lets later ones use the measured limits:
    bandwidth     what a copy and a large product reach on this device
    kernels       tests/kernels, compiled; then a table of every kernel's time
    llama, lfm2   Llama-3.1-8B's and LFM2-1.2B's shape beside transformers
    speculation   drafts of real shapes beside plain decoding
Every figure is written at once to DIR/gpu.json, which a later part extends, and the page gpu.md is
made from all of it. --scratch keeps the checkpoints (16 GB) for the next part. --tiny runs
everything on a CPU with toy shapes and says so; its page is no benchmark.

Needs no installation of pilotfish and no network: the sources and plugins are found beside this
file (see gpu/environment.py). Python needs torch, triton, transformers, safetensors, tokenizers,
attrs, pluggy, numpy, psutil, tqdm and jinja2, and for the kernels part pytest and hypothesis
(and pytest-xdist, if it is there).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
import xml.etree.ElementTree
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from gpu.environment import ROOT, machine, make_discoverable
from gpu.results import Results

make_discoverable()
# What pilotfish itself brings is imported after it can be found.

PARTS = ("bandwidth", "kernels", "llama", "lfm2", "speculation")
TEST_LIMIT_S = 420


def main() -> int:
    """Runs the parts; returns how many failed."""
    options = _options()
    import torch

    device = "cpu" if options.tiny else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        print("no NVIDIA GPU is seen by torch; wanted one, or --tiny for a trial on a CPU")
        return 2
    name = "tiny" if options.tiny else "gpu"
    facts = machine()
    if options.tiny:
        facts["device"] = "CPU, toy shapes"
    results = Results.open(options.out / f"{name}.json", facts)
    scratch = options.scratch or Path(tempfile.mkdtemp(prefix="pilotfish-gpu-", dir=_roomy()))
    failed = 0
    try:
        for part in PARTS if options.part == "all" else (options.part,):
            failed += not _run(part, results, scratch, options.tiny)
            title = "Toy shapes on a CPU: no benchmark" if options.tiny else facts["device"]
            _write_page(results, options.out / f"{name}.md", title)
    finally:
        if options.scratch is None:
            shutil.rmtree(scratch, ignore_errors=True)
    return min(failed, 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all")
    parser.add_argument("--out", type=Path, help="where results go; docs/benchmarks by default")
    parser.add_argument("--scratch", type=Path, help="where checkpoints are made and kept")
    parser.add_argument("--tiny", action="store_true", help="toy shapes on a CPU; needs --out")
    options = parser.parse_args()
    if options.tiny and options.out is None:
        parser.error("--tiny needs --out: its figures are no benchmark and do not go to docs")
    options.out = options.out or ROOT / "docs" / "benchmarks"
    return options


def _run(part: str, results: Results, scratch: Path, tiny: bool) -> bool:
    """One part; what goes wrong in it is recorded, and the others run."""
    runners: dict[str, Callable[[Results, Path, bool], None]] = {
        "bandwidth": _bandwidth,
        "kernels": _kernels,
        "llama": _llama,
        "lfm2": _lfm2,
        "speculation": _speculation,
    }
    results.begin(part)
    try:
        runners[part](results, scratch, tiny)
    except Exception:
        results.fail(part, traceback.format_exc())
    return "error" not in results.parts[part]


def _bandwidth(results: Results, scratch: Path, tiny: bool) -> None:
    from gpu.clock import copy_bandwidth, product_rate

    device = "cpu" if tiny else "cuda"
    num_bytes, size = (1 << 20, 128) if tiny else (4 << 30, 8192)
    copied = copy_bandwidth(num_bytes, device)
    results.add("bandwidth", name="copy", value=copied, unit="bytes/s, read and written")
    rate = product_rate(size, device)
    results.add("bandwidth", name="product", value=rate, unit="operations/s in bfloat16")


def _kernels(results: Results, scratch: Path, tiny: bool) -> None:
    """Tests first: a table of kernels that are wrong is worth nothing."""
    from gpu.clock import median_s
    from gpu.kernel_table import LLAMA_8B, TOY, cases

    from pilotfish.kernels import KernelBackend

    tests = ["tests/kernels/test_swiglu.py", "-k", "no_rows"] if tiny else ["tests/kernels"]
    failed = _test(results, tests)
    device = "cpu" if tiny else "cuda"
    backend = KernelBackend("torch" if tiny else "triton")
    bandwidth = results.value("bandwidth", "copy")
    rate = results.value("bandwidth", "product")
    for case in cases(TOY if tiny else LLAMA_8B, backend, device):
        seconds = median_s(case.run, device)
        limit = None
        if bandwidth is not None and rate is not None:
            limit = max(case.num_bytes / bandwidth, case.flops / rate)
        results.add(
            "kernels",
            name=case.name,
            value=seconds,
            megabytes=case.num_bytes / 1e6,
            of_limit=limit and limit / seconds,
            library_s=None if case.library is None else median_s(case.library, device),
        )
    if failed:
        raise RuntimeError(f"{len(failed)} tests failed: {', '.join(failed)}")


def _test(results: Results, tests: list[str]) -> list[str]:
    """Runs tests in a process of their own; returns the names of those that failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", *tests, f"--junitxml={report}"]
        if find_spec("xdist") and len(tests) == 1:
            command += ["-n", str(min(8, os.cpu_count() or 1))]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TEST_LIMIT_S
        )
        print(done.stdout[-6000:], done.stderr[-2000:], sep="\n", flush=True)
        if not report.exists():
            raise RuntimeError(f"pytest ended with {done.returncode}: {done.stderr[-2000:]}")
        cases = list(xml.etree.ElementTree.parse(report).getroot().iter("testcase"))

    def having(*kinds: str) -> list[str]:
        found = (case for case in cases if any(case.find(kind) is not None for kind in kinds))
        return [f"{case.get('classname')}::{case.get('name')}" for case in found]

    failed, skipped = having("failure", "error"), having("skipped")
    passed = len(cases) - len(failed) - len(skipped)
    results.add(
        "kernels",
        name="tests",
        passed=passed,
        failed=len(failed),
        skipped=len(skipped),
        failures=failed,
    )
    if not passed:
        raise RuntimeError(f"no test passed; pytest ended with {done.returncode}")
    return failed


def _llama(results: Results, scratch: Path, tiny: bool) -> None:
    from gpu import shapes

    _model("llama", shapes.TINY_LLAMA if tiny else shapes.LLAMA, results, scratch, tiny)


def _lfm2(results: Results, scratch: Path, tiny: bool) -> None:
    from gpu import shapes

    _model("lfm2", shapes.TINY_LFM2 if tiny else shapes.LFM2, results, scratch, tiny)


def _model(part: str, shape: object, results: Results, scratch: Path, tiny: bool) -> None:
    from gpu.models import GPU, TOY, measure_model
    from gpu.shapes import Shape, write_checkpoint

    assert isinstance(shape, Shape)
    plan = TOY if tiny else GPU
    path = write_checkpoint(shape, scratch / part, plan.device)
    measure_model(part, shape, path, plan, results)


def _speculation(results: Results, scratch: Path, tiny: bool) -> None:
    from gpu import shapes
    from gpu.drafts import WIDTHS, measure_drafts
    from gpu.models import GPU, TOY

    from pilotfish import load_registry

    known = {name for plugin in load_registry().plugins for name in [plugin.name]}
    methods = tuple(method for method in WIDTHS if method in known)
    plan = TOY if tiny else GPU
    shape = shapes.TINY_LLAMA if tiny else shapes.LLAMA
    path = shapes.write_checkpoint(shape, scratch / "llama", plan.device)
    measure_drafts("speculation", path, scratch, plan=plan, methods=methods, results=results)


def _write_page(results: Results, path: Path, title: str) -> None:
    from gpu.page import page

    path.write_text(page(json.loads(results.path.read_text()), title))


def _roomy() -> str | None:
    """Memory as a disk where it has room for the largest checkpoint and its draft."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > 40 << 30:
        return str(memory)
    return None


if __name__ == "__main__":
    sys.exit(main())
