"""Hatchling's hook: compiles the native CPU kernels into wheels and editable installations.

Knows: where libraries go and how a wheel with them is called. Does not know: how they are
compiled (framework/pilotfish/kernels/native/building.py).
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def load_building(root: Path) -> Any:
    """The module, by its path: the package and what it imports are not installed yet."""
    path = root / "framework/pilotfish/kernels/native/building.py"
    spec = importlib.util.spec_from_file_location("pilotfish_building", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Without a compiler the wheel is a pure one, and a notice says so; see native/README.md."""

    def dependencies(self) -> list[str]:
        """The package ziglang, where it was asked for as the compiler."""
        building = load_building(Path(self.root))
        mode, target = building.wanted()
        return [building.ZIG_REQUIREMENT] if mode == "zig" or target is not None else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile: beside the sources for an editable installation, else into the wheel."""
        building = load_building(Path(self.root))
        plugins = sorted(Path(self.root, "plugins").resolve().glob("*/*/**/native/kernels.h"))
        libraries = [building.CORE, *(building.of_plugin(table.parent) for table in plugins)]
        if version == "editable":
            stale = [one for one in libraries if building.is_stale(one.path(), one)]
            notices = (building.install(one.path(), one) for one in stale)
            self.say(next(filter(None, notices), ""))  # what one lacks, the next lacks too
            return
        self.scratch = tempfile.TemporaryDirectory()
        for number, library in enumerate(libraries):
            folder = Path(self.scratch.name, str(number))
            file, notice = self.compiled(building, library, folder)
            self.say(notice)
            if notice:
                break
            inside = f"{self.place(library.folder)}/{file.name}"
            build_data["force_include"][str(file)] = inside
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_tag(building)}"

    def compiled(self, building: Any, library: Any, folder: Path) -> tuple[Path, str]:
        """The file for a wheel, and a notice where there is none."""
        mode, target = building.wanted()
        beside: Path = library.path()
        is_as_usual = not mode and target is None and "CXX" not in os.environ
        if is_as_usual and not building.is_stale(beside, library):
            return beside, ""  # compiled from these very sources for this machine
        file = folder / library.file_name(target.system if target else None)
        return file, building.install(file, library)

    def place(self, folder: Path) -> str:
        """Of a source folder, in a wheel."""
        for root in self.build_config.dev_mode_dirs:
            if folder.is_relative_to(Path(self.root, root).resolve()):
                return folder.relative_to(Path(self.root, root).resolve()).as_posix()
        raise ValueError(f"{folder} is in none of pyproject.toml's dev-mode-dirs; add its plugin")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The libraries are in the wheel; where they were compiled is not needed any more."""
        if hasattr(self, "scratch"):
            self.scratch.cleanup()

    def say(self, notice: str) -> None:
        """Shown by `python -m build` and `pip install -v`."""
        if notice:
            self.app.display_warning(notice)


def platform_tag(building: Any) -> str:
    """Of what is compiled for, as wheels name it."""
    _, target = building.wanted()
    if target is not None:
        return str(target.tag)
    if sys.platform == "darwin":  # Python's own may say less than the compiler needed
        return f"macosx_{platform.mac_ver()[0].split('.')[0]}_0_{platform.machine()}"
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
