"""A clone where there is no C++ compiler: its tests pass, and say what they leave out and why."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from native.compiled import TESTS
from native.test_installation import clean_copy

WITHOUT_ZIG = "import sys; sys.modules['ziglang'] = None"
REASONS = ("no native library: ", "no C++ compiler", "not on this machine: ", "not installed: ")


@pytest.mark.slow
def test_the_tests_of_native_code_pass_where_there_is_none(tmp_path: Path) -> None:
    clone = clean_copy(tmp_path / "clone")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("tests", "docs", ".github"):
        shutil.copytree(TESTS.parents[1] / name, clone / name, ignore=ignored)
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_ZIG)
    (tmp_path / "bin").mkdir()
    places = [tmp_path, clone / "framework", *sorted(clone.glob("plugins/*")), clone / "tests"]
    hidden = ("CXX", "PILOTFISH_INSTRUCTIONS", "PILOTFISH_NATIVE", "PILOTFISH_NATIVE_LIBRARY")
    environment = {name: text for name, text in os.environ.items() if name not in hidden}
    environment |= {"PATH": str(tmp_path / "bin"), "PYTHONPATH": os.pathsep.join(map(str, places))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "-k", "native"]
    done = subprocess.run(
        [*command, "tests/native", "tests/kernels", "tests/weights/test_weights_stored.py"],
        env=environment,
        cwd=clone,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reasons = re.findall(r"^SKIPPED \[\d+\] \S+: (.*)$", done.stdout, re.M)
    assert reasons
    assert [reason for reason in reasons if not any(known in reason for known in REASONS)] == []
