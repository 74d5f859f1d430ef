"""The pages and forms for contributors against the tree: what they name is there, as they say.

Knows: CONTRIBUTING.md, SECURITY.md, code-style.md, .github, .pre-commit-config.yaml. Does not know:
the pages for users.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from pilotfish.errors import RequestError
from pilotfish.tokenization.chat_template import ChatTemplate

from . import contributing_page
from .test_page_form import broken_links, too_long

ROOT = Path(__file__).parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
SECURITY = (ROOT / "SECURITY.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "examples/README.md", ".github/pull_request_template.md")
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_of_the_house_has_short_lines_and_links_that_lead_somewhere(page: str) -> None:
    assert too_long((ROOT / page).read_text()) == []
    assert broken_links(ROOT / page) == []


def test_the_tables_of_rooms_and_plugins_are_those_of_the_docstrings() -> None:
    assert contributing_page.written(CONTRIBUTING) == CONTRIBUTING, (
        "run: cd tests && python -m docs.contributing_page --write"
    )
    row = next(line for line in CONTRIBUTING.splitlines() if "| `kernels/` |" in line)
    assert contributing_page.written(CONTRIBUTING.replace(f"{row}\n", "")) == CONTRIBUTING


def missing(page: str) -> list[str]:
    """Tests, or folders of them, that a page names and that are not there."""
    gone = []
    for path, test in re.findall(r"`(tests/[a-z0-9_/.*]+)(?:::(\w+))?`", page):
        files = list(ROOT.glob(path))
        if not files or (test and f"def {test}(" not in files[0].read_text()):
            gone.append(f"{path}::{test}" if test else path)
    return gone


@pytest.mark.parametrize("page", [CONTRIBUTING, SECURITY], ids=PAGES[:2])
def test_the_tests_that_a_page_names_are_there(page: str) -> None:
    assert page.count("`tests/") > 8
    assert missing(page) == []


def test_a_test_that_is_not_there_is_found() -> None:
    there = "`tests/docs/test_contributing.py::test_a_test_that_is_not_there_is_found`"
    page = f"{there} `tests/d*s` `tests/gone_*.py` `tests/docs/page.py::test_it`"
    assert missing(page) == ["tests/gone_*.py", "tests/docs/page.py::test_it"]


def test_the_commands_are_there() -> None:
    targets = set(re.findall(r"^(\w[\w-]*):(?!=)", MAKEFILE, re.M))
    made = set(re.findall(r"(?:`|^|&& )make ([a-z][a-z-]*)", CONTRIBUTING, re.M))
    assert {"setup", "test", "lint", "test-all", "docs", "bench", "gpu"} <= made <= targets
    for script in re.findall(r"python ([\w./]+\.py)", CONTRIBUTING):
        assert (ROOT / script).exists(), script
    for module in re.findall(r"cd tests && python -m ([\w.]+)", CONTRIBUTING):
        assert (ROOT / "tests" / module.replace(".", "/")).with_suffix(".py").exists(), module


def excerpts(page: Path) -> list[tuple[str, str]]:
    """(source, lines) of the blocks that a link and a colon stand before."""
    found = re.findall(r"\]\(([^)\s]+)\):\n\n```py\n(.*?)^```$", page.read_text(), re.M | re.S)
    assert len(found) == page.read_text().count("```py\n"), "a block without its source"
    return found


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/code-style.md"])
def test_code_that_a_page_shows_stands_in_its_file(name: str) -> None:
    page = ROOT / name
    shown = excerpts(page)
    assert shown
    for source, lines in shown:
        assert lines in (page.parent / source).read_text(), f"not in {source}:\n{lines}"


def test_the_bug_of_the_worked_example_is_planted_where_the_page_says() -> None:
    import support.planted_maths  # noqa: F401 - lists them
    from support.planted_bugs import BUGS

    (bug,) = [bug for bug in BUGS if bug.what == "a greedy answer takes the runner-up"]
    assert f'"{bug.promise}"' in CONTRIBUTING
    assert f"\n{bug.what}: got " in CONTRIBUTING


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_an_issue_form_is_one(form: Path) -> None:
    """As the hosting site wants forms: else none is shown, and nobody is told."""
    row: dict[str, Any] = yaml.safe_load(form.read_text())
    if form.stem == "config":
        assert row == {"blank_issues_enabled": False}
        return
    assert row.keys() == {"name", "description", "labels", "body"}
    fields = [field for field in row["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert len(set(ids)) == len(ids)
    kinds = {"input", "textarea", "dropdown", "checkboxes"}
    assert {field["type"] for field in fields} <= kinds
    assert all(field["attributes"]["label"] for field in fields)
    assert all(field["attributes"]["options"] for field in fields if field["type"] in ("dropdown",))
    assert any(field.get("validations", {}).get("required") for field in fields)
    for page in re.findall(r"`([\w/-]+\.md)`", form.read_text()):
        assert (ROOT / page).exists(), page


def test_forms_of_bugs_ask_for_what_the_page_of_troubles_asks_for() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text().split("## Reporting a bug")[1]
    for name in ("bug", "wrong_text"):
        form = (ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text()
        for command in ("pilotfish --version", "pilotfish inspect MODEL"):
            assert f"`{command}`" in page
            assert f"`{command}`" in form


def test_the_workflow_runs_what_a_contributor_runs_on_every_python() -> None:
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pythons = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert jobs["test"]["strategy"]["matrix"]["python"] == pythons
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert jobs["test"]["steps"][-1]["env"] == {"PYTHON": "python3"}, "not the system's own"
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run", "make docs"]
    assert all(re.search(r"@v\d+\.\d+\.\d+$", step["uses"]) for step in steps if "uses" in step)


def test_the_hooks_before_a_commit_are_those_of_make_lint() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    assert repository["repo"] == "local", "nothing is fetched"
    entries = [hook["entry"].removesuffix(" --force-exclude") for hook in repository["hooks"]]
    recipe = MAKEFILE.split("\nlint: setup\n")[1].split("\n\n")[0]
    lint = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    of_files = {".venv/bin/ruff check .", ".venv/bin/ruff format --check ."}
    wanted = [line.removesuffix(" .") if line in of_files else line for line in lint]
    assert entries == wanted


def test_the_sandbox_of_templates_keeps_them_in() -> None:
    """SECURITY.md says so: what Python objects lead to is out of reach."""
    for template in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"):
        with pytest.raises(RequestError, match="cannot render"):
            ChatTemplate(template).render([{"role": "user", "content": "x"}])
