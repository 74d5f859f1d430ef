"""Makes the pages of docs/ pages of a site; `mkdocs.yml` names this file as a hook.

Knows: where a page's links lead, the groups of index.md, the tables of public names. Does not know:
how anything looks. The pages themselves are written to be read in the repository.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
FIELD = re.compile(r"(?<!\n)\n(?=[a-z]\w*(?:, [a-z]\w*)*: )")
FILE = re.compile(r"^```(\w+) file=(\S+)$", re.MULTILINE)
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")
TABLE = re.compile(r"<!-- (pilotfish[\w.]*): begin -->\n(.*?)<!-- \1: end -->", re.DOTALL)


def nav(index: str) -> list[dict[str, list[str]]]:
    """The groups of index.md, each with the page of the first cell of every row.

    A page that is linked again is left out; a folder stands for its README.md.
    """
    groups: dict[str, list[str]] = {}
    seen: set[str] = set()
    for part in index.split("\n## ")[1:]:
        title, _, rows = part.partition("\n")
        pages = groups.setdefault(title, [])
        for target in re.findall(r"^\| \[[^\]]*\]\(([^)]+)\)", rows, re.MULTILINE):
            page = target.partition("#")[0]
            page = page if page.endswith(".md") else f"{page}/README.md"
            if page not in seen:
                pages.append(page)
                seen.add(page)
    return [{"Overview": ["index.md"]}, *({title: pages} for title, pages in groups.items())]


def entries(page: str) -> Iterator[str]:
    """The public names of a page's tables, with their modules."""
    for room, rows in TABLE.findall(page):
        for name in re.findall(r"^\| `([\w.]+)` \|", rows, re.MULTILINE):
            yield f"{room}.{name}"


def reference(page: str) -> str:
    """The page with an entry made from the source in the place of each row."""
    return TABLE.sub(lambda table: "\n".join(f"::: {e}\n" for e in entries(table[0])), page)


def target_of(target: str, page: Path, docs: Path, repository: str) -> str:
    """Where a link of a page leads on the site; "" for a file of the repository without a URL."""
    name, _, anchor = target.partition("#")
    if not name or "://" in name:
        return target
    file = (page.parent / name).resolve()
    if file.is_relative_to(docs):
        if file.is_dir():
            return f"{name.rstrip('/')}/README.md"
        if file.suffix in (".md", ".svg"):
            return target
    if not repository:
        return ""
    kind = "tree" if file.is_dir() else "blob"
    path = file.relative_to(docs.parent).as_posix()
    return f"{repository.rstrip('/')}/{kind}/HEAD/{path}" + (f"#{anchor}" if anchor else "")


def linked(text: str, page: Path, docs: Path, repository: str) -> str:
    """The text with links that hold on the site; code is left as it is."""

    def link(found: re.Match[str]) -> str:
        target = target_of(found[2], page, docs, repository)
        return f"[{found[1]}]({target})" if target else found[1]

    made, at = "", 0
    for fence in FENCE.finditer(text):
        made += LINK.sub(link, text[at : fence.start()]) + fence[0]
        at = fence.end()
    return made + LINK.sub(link, text[at:])


def broken(docstring: str) -> str:
    """The docstring with a line of its own for each line that begins with names and a colon."""
    return FIELD.sub("  \n", docstring)


def on_config(config: Any) -> Any:
    """As mkdocs asks: the navigation is that of index.md."""
    config["nav"] = nav(Path(config["docs_dir"], "index.md").read_text(encoding="utf-8"))
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """As mkdocs asks: a page's text, before it is made HTML."""
    docs = Path(config["docs_dir"]).resolve()
    text = linked(markdown, docs / page.file.src_uri, docs, config["repo_url"] or "")
    return FILE.sub(r'```\1 title="\2"', reference(text))
