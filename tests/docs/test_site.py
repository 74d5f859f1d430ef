"""The site of docs/: every page is in its navigation, every public name has an entry, links hold.

Knows: mkdocs.yml, docs/site_pages.py, the pages. Does not know: mkdocs; `make docs` builds.
"""

from __future__ import annotations

import importlib.util
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

import pilotfish

from . import api_page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
API = {name: (DOCS / name).read_text() for name in api_page.PAGES}
ROOMS = (
    *("batch", "config", "engine", "errors", "kernels", "protocols"),
    *("registry", "sampling", "speculation", "state", "testing", "weights"),
)


def _load(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location("docs_site", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


site = _load(DOCS / "site_pages.py")


def config() -> Any:
    """mkdocs.yml; its tags stand for values that only mkdocs makes."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("", lambda loader, suffix, node: None)
    return yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)


def test_the_site_is_made_of_these_pages_by_this_hook_strictly() -> None:
    found = config()
    assert (found["docs_dir"], found["hooks"]) == ("docs", ["docs/site_pages.py"])
    assert found["site_dir"] == "build/site"
    assert found["strict"] is True
    assert set(found["validation"].values()) == {"warn"}, "what is strict are warnings"
    assert found["plugins"][1]["mkdocstrings"]["handlers"]["python"]["paths"] == ["framework"]
    assert "mkdocs build --strict" in (ROOT / "Makefile").read_text()


def test_every_page_is_in_the_navigation_once_grouped_as_the_index() -> None:
    index = (DOCS / "index.md").read_text()
    groups = site.nav(index)
    assert [title for group in groups for title in group][1:] == re.findall(
        r"^## (.*)$", index, re.M
    )
    listed = [page for group in groups for pages in group.values() for page in pages]
    assert sorted(listed) == [page.relative_to(DOCS).as_posix() for page in PAGES]
    less = index.replace("| [tuning.md](tuning.md) |", "| tuning |")
    left = [page for group in site.nav(less) for pages in group.values() for page in pages]
    assert set(listed) - set(left) == {"tuning.md"}


@pytest.mark.parametrize("name", sorted(API))
def test_the_tables_of_names_are_those_of_the_sources(name: str) -> None:
    assert api_page.written(API[name], name) == API[name], (
        "run: cd tests && python -m docs.api_page --write"
    )


def test_a_row_that_is_missing_is_written() -> None:
    page = API["api.md"]
    row = next(line for line in page.splitlines() if line.startswith("| `SamplingParams` |"))
    assert api_page.written(page.replace(f"{row}\n", ""), "api.md") == page


def objects() -> dict[str, Any]:
    """Entry -> what stands behind it when it is imported."""
    found = {}
    for page in API.values():
        for entry in site.entries(page):
            module, _, name = entry.rpartition(".")
            home = import_module(module)
            found[entry] = getattr(home, name) if hasattr(home, name) else import_module(entry)
    return found


def test_every_entry_is_there_and_every_public_name_has_one() -> None:
    made = objects()
    behind = {id(thing) for thing in made.values()}
    assert {f"pilotfish.{name}" for name in pilotfish.__all__} <= made.keys()
    for room in ROOMS:
        module = import_module(f"pilotfish.{room}")
        names = getattr(module, "__all__", None) or [
            name
            for name, thing in vars(module).items()
            if isinstance(thing, type) and thing.__module__ == module.__name__ and name[0] != "_"
        ]
        assert names
        for name in names:
            assert id(getattr(module, name)) in behind, f"pilotfish.{room}.{name}"


def test_what_plugins_and_pages_import_has_an_entry() -> None:
    used = set(api_page.imported())
    assert ("pilotfish.layers.norm", "RMSNorm") in used
    assert ("pilotfish.speculation", "StatelessConfig") in used
    listed = {found for names in api_page.tables().values() for found in names.values()}
    found = {api_page.find(module, name) for module, name in used}
    assert {one for one in found if one is not None} - listed == set()  # None: refused on a page


def test_an_entry_is_made_of_each_row() -> None:
    page = "# A\n<!-- pilotfish.x: begin -->\n| name | |\n|---|---|\n| `a.B` | says `c` |\n"
    page += "| `d` | |\n<!-- pilotfish.x: end -->\nrest\n"
    assert list(site.entries(page)) == ["pilotfish.x.a.B", "pilotfish.x.d"]
    assert site.reference(page) == "# A\n::: pilotfish.x.a.B\n\n::: pilotfish.x.d\n\nrest\n"
    for text in API.values():
        made = site.reference(text)
        assert re.findall(r"^::: (\S+)$", made, re.M) == list(site.entries(text))
        assert "| `" not in made


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
@pytest.mark.parametrize("repository", ["", "https://example.org/pilotfish/"])
def test_links_of_a_page_lead_to_pages_or_to_the_repository(page: Path, repository: str) -> None:
    text = site.FENCE.sub("", site.linked(page.read_text(), page, DOCS, repository))
    for _, target in site.LINK.findall(text):
        name = target.partition("#")[0]
        if name and "://" not in name:
            file = (page.parent / name).resolve()
            assert file.is_file(), target
            assert file.is_relative_to(DOCS)
        elif repository and target.startswith(repository):
            path = target.removeprefix(repository).split("/", 2)[2].partition("#")[0]
            assert (ROOT / path).exists(), target


def test_lines_of_fields_stand_below_one_another() -> None:
    docstring = "One line.\n\nname: [T] of\n    it. b, c: two.\nd, e: which\nis so. Raises: no."
    assert site.broken(docstring).split("  \n") == [
        "One line.\n\nname: [T] of\n    it. b, c: two.",
        "d, e: which\nis so. Raises: no.",
    ]
    file = (DOCS / "site_docstrings.py").read_text()
    assert "obj.docstring.value = broken(obj.docstring.value)" in file


def test_links_out_of_the_pages_are_words_where_the_repository_is_not_known() -> None:
    text = "[a `b`](../README.md#c), [d](own-state.md#e), [f](examples/third_party)\n"
    text += "```\n[g](../README.md)\n```\n[h](https://i.org) [j](../plugins)"
    page = DOCS / "page.md"
    kept = "[d](own-state.md#e), [f](examples/third_party/README.md)\n```\n[g](../README.md)\n```\n"
    assert site.linked(text, page, DOCS, "") == f"a `b`, {kept}[h](https://i.org) j"
    there = site.linked(text, page, DOCS, "https://r.org/")
    assert there.startswith(f"[a `b`](https://r.org/blob/HEAD/README.md#c), {kept}")
    assert there.endswith("[j](https://r.org/tree/HEAD/plugins)")
