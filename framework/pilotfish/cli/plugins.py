"""`pilotfish plugins`: what is installed, what it serves, and what failed to load.

Knows: how a registry is shown. Does not know: how it was made.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pilotfish.registry import Plugin, PluginFailure, Registry

HEADINGS = ("plugin", "distribution", "serves", "kind", "reads", "verified against")


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declares the verb."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "plugins",
        help="list the installed plugins and what they serve",
        description="List the installed plugins, what they serve, and those that failed to load.",
        examples=(
            "pilotfish plugins",
            "pilotfish plugins --json",
            "PILOTFISH_PLUGINS=my_plugin,ngram pilotfish plugins",
        ),
    )
    parser.add_argument(
        "--json", action="store_true", help="one object, with the tracebacks of failures"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code. A plugin that failed is shown, and is no error."""
    from pilotfish.plugins import load_registry

    registry = load_registry()
    if args.json:
        print(json.dumps(_as_json(registry), indent=1))
        return 0
    rows = [row for plugin in registry.plugins for row in _rows(plugin)]
    lines = list(_table([HEADINGS, *rows])) if rows else ["no plugin is installed"]
    columns = shutil.get_terminal_size().columns
    if sys.stdout.isatty() and max(map(len, lines)) > columns:
        lines = [line for plugin in registry.plugins for line in _list(plugin, columns)]
    print("\n".join(lines))
    if registry.failures:
        print("\nfailed to load (pilotfish plugins --json has the tracebacks):")
    for failure in registry.failures:
        print(f"  {failure}")
    return 0


def _rows(plugin: Plugin) -> Iterator[tuple[str, ...]]:
    """One row a name; the plugin's own columns stand in its first row only."""
    first = (plugin.name, f"{plugin.distribution} {plugin.version}".strip())
    for served in list(_served(plugin)) or [("nothing", "", "", "")]:
        yield (*first, *served)
        first = ("", "")


def _served(plugin: Plugin) -> Iterator[tuple[str, ...]]:
    for names, kind, reads, verified in _items(plugin):
        for name in names:
            yield name, kind, reads[0], verified
        yield from (("", "", more, "") for more in reads[1:])


def _items(plugin: Plugin) -> Iterator[tuple[Sequence[str], str, list[str], str]]:
    """Names of one thing, its kind, what it reads, and what it was verified against."""
    for spec in plugin.architectures:
        formats = [", ".join(spec.weight_formats)]
        yield spec.names, "architecture", formats, spec.verified_against
    for method in plugin.speculators:
        drafts = method.draft_architectures or ("no draft",)
        reads = ["any architecture" if name == "*" else name for name in drafts]
        yield [method.method], f"{method.driver} method", reads, method.verified_against


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _list(plugin: Plugin, columns: int) -> Iterator[str]:
    """The same for a terminal that is too narrow for the table."""
    yield f"{plugin.name}, of {plugin.distribution} {plugin.version}".strip()
    items = [
        f"{', '.join(names)}: {kind}, reads {', '.join(reads)}, verified against {verified}"
        for names, kind, reads, verified in _items(plugin)
    ]
    for item in items or ["nothing"]:
        yield from textwrap.wrap(
            item, max(20, columns), initial_indent="  ", subsequent_indent="    "
        )


_PLUGIN = ("name", "distribution", "version")
_ARCHITECTURE = (
    *("names", "weight_formats", "gguf_architectures", "capabilities", "modalities"),
    "verified_against",
)
_METHOD = ("method", "driver", "draft_architectures", "needs", "targets", "verified_against")
"""Attributes that --json prints, by these names."""


def _as_json(registry: Registry) -> dict[str, Any]:
    return {
        "plugins": [_plugin_as_json(plugin) for plugin in registry.plugins],
        "failures": [_failure_as_json(failure) for failure in registry.failures],
        "limited_to": registry.limited_to,
    }


def _plugin_as_json(plugin: Plugin) -> dict[str, Any]:
    return {
        **_facts(plugin, _PLUGIN),
        "architectures": [_facts(spec, _ARCHITECTURE) for spec in plugin.architectures],
        "methods": [_facts(spec, _METHOD) for spec in plugin.speculators],
    }


def _failure_as_json(failure: PluginFailure) -> dict[str, Any]:
    return {
        **_facts(failure, _PLUGIN),
        "error": str(failure.error),
        "traceback": "".join(traceback.format_exception(failure.error)),
    }


def _facts(one: object, names: Sequence[str]) -> dict[str, Any]:
    """Some attributes; sets as sorted lists."""
    values = {name: getattr(one, name) for name in names}
    return {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name, value in values.items()
    }
