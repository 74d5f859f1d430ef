"""Real distributions on disk, made for one test: a module, and metadata with entry points."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

GOOD = """
from pilotfish import ArchitectureSpec, SpeculatorSpec, hookimpl


@hookimpl
def pilotfish_architectures():
    return [ArchitectureSpec(names=("{name}ForCausalLM",), config="{module}_code:Config",
                             model="{module}_code:Model", verified_against="{name} papers")]
"""


@attrs.frozen
class Site:
    """A folder that a fresh process has on its path, with the distributions put into it."""

    path: Path

    def add(
        self,
        distribution: str,
        source: str | None = None,
        *,
        plugin: str | None = None,
        version: str = "1.0",
        folder: str | None = None,
    ) -> Site:
        """Writes a module and the metadata that a wheel would have left.

        distribution: its name; the module's too, with `_` for `-`.
        source: of the module; None is a plugin that serves `<Distribution>ForCausalLM`.
        plugin: name of the entry point; None takes the module's.
        """
        root = self.path / folder if folder else self.path
        module = distribution.replace("-", "_")
        info = root / f"{module}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        )
        (info / "entry_points.txt").write_text(f"[pilotfish]\n{plugin or module} = {module}\n")
        if source is None:
            source = GOOD.format(name=module.title().replace("_", ""), module=module)
        (root / f"{module}.py").write_text(source)
        return self

    def run(self, *command: str, env: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
        """Runs `python *command` in a new process that sees these distributions."""
        clean = {k: v for k, v in os.environ.items() if k != "PILOTFISH_PLUGINS"}
        path = [str(self.path), *filter(None, [os.environ.get("PYTHONPATH")])]
        return subprocess.run(
            [sys.executable, *command],
            env={**clean, "PYTHONPATH": os.pathsep.join(path), **env},
            capture_output=True,
            text=True,
            check=False,
        )

    def python(self, code: str, env: Mapping[str, str] = {}) -> str:
        """Runs a program that has to succeed; returns what it printed."""
        done = self.run("-c", code, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def cli(self, *words: str, env: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
        """Runs the command line."""
        return self.run("-m", "pilotfish", *words, env=env)

    def plugins(self, env: Mapping[str, str] = {}) -> dict[str, Any]:
        """What `pilotfish plugins --json` prints."""
        done = self.cli("plugins", "--json", env=env)
        assert done.returncode == 0, done.stderr
        listing: dict[str, Any] = json.loads(done.stdout)
        return listing
