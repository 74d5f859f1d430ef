"""Every page of the documentation: its blocks run, and what it lists is what there is.

Knows: which page lists what. Does not know: how pages are written (test_page_form.py).
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import attrs
import pytest

from pilotfish import LLM, SamplingParams, SpeculativeConfig
from pilotfish.cli.chat_commands import NAMES
from pilotfish.hookspecs import PilotfishHooks
from pilotfish.registry import ArchitectureSpec, SpeculatorSpec
from pilotfish.weights.formats.gguf_blocks import BLOCK_TYPES, TYPE_NAMES
from pilotfish.weights.stored_rows import PACKED_KINDS
from support import forked

from . import peers_page
from .page import Block, blocks, check_console

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
RUNNABLE = ("python", "console")
HOOKS = [name for name in vars(PilotfishHooks) if name.startswith("pilotfish_")]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def has_code(page: Path) -> bool:
    infos = [block.info for block in blocks(page.read_text())]
    return any(info in RUNNABLE or " file=" in info for info in infos)


@pytest.fixture(scope="module")
def installed_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's wheel, unpacked: a folder on the path is how an installed one looks."""
    out = tmp_path_factory.mktemp("wheel")
    command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    example = str(DOCS / "examples" / "third_party")
    subprocess.run([sys.executable, *command, example], check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(out / "site")
    return out / "site"


def run_page(page: Path, folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Runs a page in a process of its own and a folder that holds the checkout's scripts only."""
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    programs = [str(forked.programs()), str(Path(sys.executable).parent), os.environ["PATH"]]
    clean = {name: value for name, value in os.environ.items() if name != "PILOTFISH_PLUGINS"}
    return forked.run(
        Path(__file__).with_name("page.py"),
        page,
        cwd=folder,
        env={
            **clean,
            **forked.SETTINGS,
            **forked.ranks_too(),
            "PYTHONPATH": str(site),
            "PATH": os.pathsep.join(programs),
        },
    )


@pytest.mark.parametrize("page", [page for page in PAGES if has_code(page)], ids=name_of)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, installed_example: Path) -> None:
    done = run_page(page, tmp_path, installed_example)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("```python\nx = 1\n```\n```python\nassert x == 2\n```\n", "line 5"),
        ("```console\n$ echo one\ntwo\n```\n", "$ echo one"),
        ("```console\n$ exit 3\n```\n", "[3]"),
        ("```console\n$ true\n[2]\n```\n", "$ true"),
        ("```python file=pyproject.toml\nnot in it\n```\n", "not in pyproject.toml"),
        ("```python\nx = 1\n", "never closed"),
    ],
)
def test_a_block_that_is_wrong_is_found(page: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(page)
    done = run_page(file, tmp_path, tmp_path)
    assert done.returncode == 1
    assert said in done.stderr


def test_blocks_of_a_page_share_their_names_and_consoles_match_with_dots(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(
        "```python\nx = 1\n```\n```\nnot run\n```\n```python\nassert x == 1\n```\n"
        "```console\n$ echo one; exit 2\n...\n[2]\n$ true\n```\n"
    )
    done = run_page(file, tmp_path, tmp_path)
    assert (done.returncode, done.stdout) == (0, "3 blocks\n")
    check_console(Block("console", "$ echo a b\na ...\n", 1))


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_section_with_its_signature_and_its_test(hook: str) -> None:
    section = (DOCS / "hooks.md").read_text().split(f"\n## `{hook}`\n")[1].split("\n## ")[0]
    signature = str(inspect.signature(getattr(PilotfishHooks, hook)))
    signature = signature.replace("self", "").replace("'", "")
    assert f"`{hook}{signature}`" in section
    (test, file) = re.findall(r"^Test: `(\w+)` in `([\w/.]+)`\.$", section, re.MULTILINE)[0]
    assert test == f"test_{hook}"
    assert f"\ndef {test}(" in (ROOT / file).read_text()


def test_every_operation_is_in_the_table_of_kernels() -> None:
    kernels = ROOT / "framework" / "pilotfish" / "kernels"
    folders = {path.parent.name for path in kernels.glob("*/__init__.py")} - {"native"}
    named = re.findall(r"^\| \[(\w+)\]", (DOCS / "kernels.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(folders)


def test_hooks_md_has_no_section_for_a_hook_that_is_gone() -> None:
    sections = re.findall(r"^## `(pilotfish_\w+)`$", (DOCS / "hooks.md").read_text(), re.MULTILINE)
    assert sections == HOOKS


@pytest.mark.parametrize("spec", [ArchitectureSpec, SpeculatorSpec])
def test_every_field_of_a_spec_is_described(spec: type) -> None:
    text = (DOCS / "hooks.md").read_text()
    table = text.split(f"| field of `{spec.__name__}` |")[1].split("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    described = set(re.findall(r"`(\w+)`", " ".join(cells)))
    assert described == {field.name for field in attrs.fields(spec)}


def test_the_kinds_of_gguf_tensors_are_those_that_are_read() -> None:
    section = (DOCS / "models.md").read_text().split("\n## GGUF files\n")[1].split("\n## ")[0]
    packed, plain, refused = re.findall(r"^\| (`.*) \| .* \|$", section, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", packed)) == set(PACKED_KINDS)
    read = {kind.name for kind in BLOCK_TYPES.values()}
    assert set(re.findall(r"`(\w+)`", f"{packed} {plain}")) == read
    assert not set(re.findall(r"`(\w+)`", refused)) - set(TYPE_NAMES.values())


def test_the_table_of_sampling_has_every_field_with_its_default() -> None:
    table = (DOCS / "sampling.md").read_text().split("| field | default | |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", table, re.MULTILINE)
    found = {
        name: default
        for names, defaults in rows
        for name, default in zip(
            re.findall(r"`(\w+)`", names), defaults.split(", ") * 3, strict=False
        )
    }
    empty = {"none": (None, (), {}), "drawn": (None,), "false": (False,)}
    for name, default in attrs.asdict(SamplingParams()).items():
        wanted = empty.get(found[name]) or (float(found[name]),)
        assert default in wanted, name
    assert len(found) == len(attrs.fields(SamplingParams))


def column(page: str, head: str) -> list[str]:
    """The names of options and the like in the first column of the table with this head."""
    rows = (DOCS / page).read_text().split(f"\n{head}\n")[1].split("\n\n")[0].splitlines()[1:]
    return re.findall(r"`(.+?)`", " ".join(row.split("|")[1] for row in rows))


def test_the_table_of_llm_has_every_argument() -> None:
    arguments = [name for name in inspect.signature(LLM.__init__).parameters if name != "self"]
    assert sorted(column("python.md", "| argument | default | |")) == sorted(arguments)


def test_the_table_of_speculative_config_has_every_field() -> None:
    fields = [field.name for field in attrs.fields(SpeculativeConfig)]
    assert sorted(column("python.md", "| field | default | |")) == sorted(fields)


def test_the_table_of_chat_has_every_command() -> None:
    named = {name.split()[0] for name in column("command-line.md", "| command | |")}
    assert named == set(NAMES)


def test_names_of_other_engines_are_those_that_are_answered() -> None:
    """`python tests/docs/peers_page.py --write` writes the tables anew."""
    page = peers_page.PAGE.read_text()
    assert peers_page.written(page) == page
