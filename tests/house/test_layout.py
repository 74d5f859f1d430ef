"""The shape of the house: floors, what the core may not name, lists that must be kept up."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs
import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "framework" / "pilotfish"
PLUGINS = sorted(folder for folder in (ROOT / "plugins").iterdir() if folder.is_dir())
PACKAGES = [next(folder.glob("pilotfish_*")) for folder in PLUGINS]

FLOORS = (
    {"errors", "lazy", "nearest", "contracts", "platform", "records", "batch", "warn"},
    {"config"},
    {"kernels", "state", "sampling", "weights", "parallel"},
    {"protocols"},
    {"layers"},
    {"invariance"},
    {"models"},
    {"plugin_specs", "registry", "plugins", "hookspecs"},
    {"speculation"},
    {"tokenization", "multimodal"},
    {"loading", "ranks"},
    {"engine", "replicas"},
    {"testing", "cli", "bench"},
)
"""Rooms of the core, ground first. A room imports from its own floor and from those below."""

FORBIDDEN = ("llama", "lfm2", "eagle", "dflash", "kimi")
"""Architectures and drafters: the core knows none of them."""

OPTION_VALUES = {"config/rope.py": '"llama3"', "layers/rope.py": '"llama3"'}
"""Where a Hugging Face option has a value of such a name: the quoted value itself is no breach."""

PEER = ("llama.cpp", "llama_cpp", "llama-cpp", "llamacpp")
PEERS_FILES = ("bench/llama_cpp.py", "config/peer_attributes.py")
"""A system that `bench` runs beside ours and its package, no architecture; and the file whose
calls go to it."""

NOT_FOR_PLUGINS = {"engine", "loading", "cli"}


@attrs.frozen
class Import:
    """One import statement's module and name; name is "" for `import module`."""

    module: str
    name: str
    line: int
    at_module_level: bool


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """Every import, those for types too: who reads a file reads what its types are."""
    return tuple(_imports(ast.parse(path.read_text()), at_module_level=True))


def _imports(node: ast.AST, *, at_module_level: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, "", child.lineno, at_module_level)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: write the whole module name"
            for alias in child.names:
                yield Import(child.module or "", alias.name, child.lineno, at_module_level)
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _imports(child, at_module_level=at_module_level and not inside)


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def where(path: Path, found: Import) -> str:
    return f"{path.relative_to(ROOT)}:{found.line} imports {found.module} {found.name}".rstrip()


def room_of(module: str, name: str) -> str | None:
    """The room of the core that `from module import name` reaches; None for the root package."""
    parts = module.split(".")
    if parts[0] != "pilotfish":
        return None
    if len(parts) > 1:
        return parts[1]
    return (
        name if name and name[0].islower() and (CORE / name).with_suffix(".py").exists() else None
    )


def floor_of(room: str) -> int:
    for floor, rooms in enumerate(FLOORS):
        if room in rooms:
            return floor
    pytest.fail(f"the room {room!r} stands on no floor: add it to FLOORS in {Path(__file__).name}")


def climbing(path: Path, room: str) -> list[str]:
    """The imports of one file of a room that reach a higher floor."""
    found = []
    for one in imports(path):
        reached = room_of(one.module, one.name)
        if reached is not None and floor_of(reached) > floor_of(room):
            found.append(where(path, one))
    return found


def rooms() -> list[tuple[str, Path]]:
    found = []
    for path in sources(CORE):
        first = path.relative_to(CORE).parts[0].removesuffix(".py")
        if not first.startswith("__"):
            found.append((first, path))
    return found


def test_a_room_imports_only_what_stands_below_it() -> None:
    assert [line for room, path in rooms() for line in climbing(path, room)] == []


def test_the_test_of_floors_sees_a_climb() -> None:
    source = "def f():\n    from pilotfish.engine import LLM\n    import pilotfish.cli.main\n"
    planted = ROOT / "planted.py"
    found = [
        one
        for one in _imports(ast.parse(source), at_module_level=True)
        if floor_of(room_of(one.module, one.name) or "") > floor_of("layers")
    ]
    assert [where(planted, one) for one in found] == [
        "planted.py:2 imports pilotfish.engine LLM",
        "planted.py:3 imports pilotfish.cli.main",
    ]


def modules() -> dict[str, Path]:
    """Of the core, by their names; a package is its `__init__`."""
    found = {}
    for path in sources(CORE):
        parts = path.relative_to(CORE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def circles(needs: dict[str, set[str]]) -> set[str]:
    """The modules that stand in a circle, or above one and below another."""
    left = {module: set(needed) for module, needed in needs.items()}
    while True:
        users = set().union(*left.values()) if left else set()
        ends = {module for module, needed in left.items() if not needed or module not in users}
        if not ends:
            return set(left)
        left = {module: needed - ends for module, needed in left.items() if module not in ends}


def needed_by(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of `known` that a file imports, for types and within functions too."""
    named = ((one.module, f"{one.module}.{one.name}") for one in imports(path))
    return {whole if whole in known else module for module, whole in named} & known.keys()


def test_no_module_needs_one_that_needs_it() -> None:
    known = modules()
    needs = {module: needed_by(path, known) - {module} for module, path in known.items()}
    assert circles(needs) == set()


def test_the_test_of_circles_sees_one(tmp_path: Path) -> None:
    lines = {
        "pilotfish.a": "from pilotfish.b import x",
        "pilotfish.b": "if TYPE_CHECKING:\n    from pilotfish import c",
        "pilotfish.c": "def f():\n    import pilotfish.b",
        "pilotfish.d": "from pilotfish.c import y",
    }
    known = {name: tmp_path / f"{name}.py" for name in lines}
    for name, line in lines.items():
        known[name].write_text(line)
    needs = {module: needed_by(path, known) for module, path in known.items()}
    assert circles(needs) == {"pilotfish.b", "pilotfish.c"}


def test_rooms_of_one_floor_do_not_depend_on_one_another_in_a_circle() -> None:
    """Imports at module level only: a circle among them breaks whichever is imported first."""
    needs: dict[str, set[str]] = {}
    for room, path in rooms():
        for one in imports(path):
            reached = room_of(one.module, one.name)
            if one.at_module_level and reached not in (None, room):
                needs.setdefault(room, set()).add(str(reached))
    done: set[str] = set()
    while ready := {
        room for room in needs if room not in done and not needs[room] - done & set(needs)
    }:
        done |= ready
    assert set(needs) - done == set()


def test_the_core_names_no_architecture_and_no_drafter() -> None:
    found = []
    for path in sorted(p for p in CORE.rglob("*") if p.is_file() and p.suffix != ".pyc"):
        name_of_file = path.relative_to(CORE).as_posix()
        text = f"{name_of_file}\n{path.read_text(errors='ignore')}".lower()
        if name_of_file in OPTION_VALUES:
            text = text.replace(OPTION_VALUES[name_of_file], "")
        for name in ("llama",) if name_of_file in PEERS_FILES else PEER:
            text = text.replace(name, "")
        found += [f"{path.relative_to(ROOT)}: {name}" for name in FORBIDDEN if name in text]
    assert found == []


def test_the_core_imports_no_plugin() -> None:
    found = [
        where(path, one)
        for path in sources(CORE)
        for one in imports(path)
        if one.module.startswith(("pilotfish_", "plugins"))
    ]
    assert found == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_plugin_imports_only_public_names_of_the_core(package: Path) -> None:
    found = []
    for path in sources(package):
        for one in imports(path):
            if one.module.split(".")[0] != "pilotfish":
                continue
            private = any(part.startswith("_") for part in (*one.module.split("."), one.name))
            if private or room_of(one.module, one.name) in NOT_FOR_PLUGINS or not _is_public(one):
                found.append(where(path, one))
    assert found == []


def _is_public(one: Import) -> bool:
    """Whether a name is in its package's `__all__` where there is one, or is a module."""
    module = import_module(one.module)
    listed = getattr(module, "__all__", None)
    if not one.name or listed is None or one.name in listed:
        return True
    return (Path(str(module.__file__)).parent / f"{one.name}.py").exists()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_plugin_imports_no_other_plugin(package: Path) -> None:
    others = tuple(other.name for other in PACKAGES if other != package)
    found = [
        where(path, one)
        for path in sources(package)
        for one in imports(path)
        if one.module.split(".")[0] in others
    ]
    assert found == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_importing_a_plugin_imports_no_torch(package: Path) -> None:
    heavy = "{'torch', 'triton', 'transformers'}"
    code = f"import sys, {package.name}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.fixture(scope="module")
def pyproject() -> Any:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_every_plugin_is_in_every_list_of_pyproject(package: Path, pyproject: Any) -> None:
    folder = package.parent.relative_to(ROOT).as_posix()
    build, tool = pyproject["tool"]["hatch"]["build"], pyproject["tool"]
    assert folder in build["dev-mode-dirs"]
    assert f"{folder}/{package.name}" in build["targets"]["wheel"]["packages"]
    assert pyproject["project"]["entry-points"]["pilotfish"][package.parent.name] == package.name
    assert package.name in tool["mypy"]["packages"]
    assert folder in tool["mypy"]["mypy_path"].split(":")
    assert folder in tool["ruff"]["src"]
    assert (package / "__init__.py").exists()
    assert (package.parent / "README.md").exists()
    assert (ROOT / "tests" / package.parent.name).is_dir()


def test_pyproject_lists_no_plugin_that_is_not_there(pyproject: Any) -> None:
    there = {package.name for package in PACKAGES}
    assert set(pyproject["project"]["entry-points"]["pilotfish"].values()) == there
    assert set(pyproject["tool"]["mypy"]["packages"]) == {"pilotfish", *there}
    listed = pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {Path(entry).name for entry in listed} == {"pilotfish", *there}
