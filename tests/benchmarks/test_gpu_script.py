"""benchmarks/gpu.py from end to end with toy shapes on a CPU, and what it does when parts fail."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from support import forked

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["bandwidth", "kernels", "llama", "lfm2", "speculation"]


def run(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **forked.SETTINGS, **variables}
    return forked.run(ROOT / "benchmarks" / "gpu.py", *options, env=environment)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of all parts."""
    out = tmp_path_factory.mktemp("out")
    done = run("--tiny", "--out", str(out))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out


def rows(out: Path, part: str) -> list[dict[str, Any]]:
    found = json.loads((out / "tiny.json").read_text())["parts"][part]
    assert "error" not in found
    return list(found["rows"])


def test_every_part_gives_its_figures(whole: Path) -> None:
    assert [row["name"] for row in rows(whole, "bandwidth")] == ["copy", "product"]
    tests, *timed = rows(whole, "kernels")
    assert (tests["passed"], tests["failed"], tests["skipped"]) == (2, 0, 0)
    kernels = {row["name"].split(",")[0].split()[0] for row in timed}
    assert kernels == {"linear", "add_rms_norm", "rope", "swiglu", "kv_write", "paged_attention"}
    assert all(row["of_limit"] > 0 for row in timed)
    for part in ("llama", "lfm2"):
        compared = [row for row in rows(whole, part) if "theirs" in row]
        peers = [row["peer"] for row in compared]
        assert peers == ["transformers"] * 4 + ["pilotfish fastest"] * 3
        assert "DIFFERENT" not in {row["tokens"] for row in compared}
        assert all(row["value"] > 0 and row["theirs"] > 0 for row in compared)
        assert all(row.get("of_bandwidth") or row.get("of_product_rate") for row in compared)
    methods = {row["name"].split(",")[0] for row in rows(whole, "speculation")}
    assert methods == {"eagle", "dflash"}
    assert all(row["tokens_a_step"] >= 1 for row in rows(whole, "speculation"))


def test_a_trial_makes_no_page_of_a_gpu(whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == ["tiny.json", "tiny.md"]
    page = (whole / "tiny.md").read_text()
    assert page.startswith("# Toy shapes on a CPU: no benchmark")
    assert all(f"## {part}" in page for part in PARTS)
    assert "8B" not in page
    assert run("--tiny").returncode == 2


def test_a_part_that_runs_again_keeps_the_others(tmp_path: Path) -> None:
    """Whatever their figures are: here they have none."""
    file, options = tmp_path / "tiny.json", ("--tiny", "--out", str(tmp_path))
    assert run(*options, "--part", "bandwidth").returncode == 0
    said = json.loads(file.read_text())
    empty = {**said["parts"]["bandwidth"], "rows": []}
    said["parts"] = before = {**dict.fromkeys(PARTS, empty), **said["parts"]}
    file.write_text(json.dumps(said))
    assert run(*options, "--part", "bandwidth").returncode == 0
    after = json.loads(file.read_text())["parts"]
    assert list(after) == PARTS
    assert after.pop("bandwidth") != before.pop("bandwidth")
    assert after == before


def test_a_part_that_fails_is_told_and_the_figures_before_it_stay(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    (scratch / "lfm2").mkdir(parents=True)
    (scratch / "lfm2" / "config.json").write_text("{}")  # taken for a complete checkpoint
    options = ("--tiny", "--out", str(tmp_path), "--scratch", str(scratch))
    assert run(*options, "--part", "bandwidth").returncode == 0
    assert run(*options, "--part", "lfm2").returncode == 1
    parts = json.loads((tmp_path / "tiny.json").read_text())["parts"]
    assert "wanted a list with the architecture's name" in parts["lfm2"]["error"]
    assert len(parts["bandwidth"]["rows"]) == 2
    assert "This part ended early" in (tmp_path / "tiny.md").read_text()


def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if torch.cuda.is_available() else {}
    done = run("--out", str(tmp_path), **hidden)
    assert done.returncode == 2
    assert "no NVIDIA GPU" in done.stdout
    assert list(tmp_path.iterdir()) == []
