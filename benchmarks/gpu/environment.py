"""Where it runs: plugins that are found without an installation, and the machine's name.

Knows: paths, entry points, versions. Does not know: what is measured.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def make_discoverable() -> None:
    """Puts the sources and their entry points on the path where pilotfish is not installed.

    Plugins are found by entry points, which importlib.metadata reads from a `*.dist-info` folder
    on the path; so one is made in a folder for temporary files. Child processes get it too.
    """
    try:
        distribution("pilotfish")
        return
    except PackageNotFoundError:
        pass
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    lines: list[str] = []
    for group, entries in groups.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items()), ""]
    folder = Path(tempfile.mkdtemp(prefix="pilotfish-entry-points-"))
    info = folder / f"pilotfish-{project['version']}.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text("\n".join(lines))
    identity = f"Metadata-Version: 2.1\nName: pilotfish\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(identity)
    plugins = sorted(path for path in (ROOT / "plugins").iterdir() if path.is_dir())
    paths = [str(path) for path in (folder, ROOT / "framework", *plugins)]
    sys.path[:0] = paths
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *([known] if known else [])])


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    found: dict[str, Any] = {"device": "CPU", "python": platform.python_version()}
    if torch.cuda.is_available():
        facts = torch.cuda.get_device_properties(0)
        found["device"] = facts.name
        found["memory_gb"] = round(facts.total_memory / 1e9, 1)
        found["multiprocessors"] = facts.multi_processor_count
        found["cuda"] = torch.version.cuda
    for name in ("torch", "triton", "transformers", "pilotfish"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found
