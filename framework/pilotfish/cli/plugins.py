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
    for served in _served(plugin) or [("nothing", "", "", "")]:
        yield (*first, *served)
        first = ("", "")


def _served(plugin: Plugin) -> list[tuple[str, ...]]:
    served: list[tuple[str, ...]] = []
    for spec in plugin.architectures:
        formats = ", ".join(spec.weight_formats)
        for name in spec.names:
            served.append((name, "architecture", formats, spec.verified_against))
    for method in plugin.speculators:
        first, *others = method.draft_architectures or ("no draft",)
        reads = "any architecture" if first == "*" else first
        served.append((method.method, f"{method.driver} method", reads, method.verified_against))
        served.extend(("", "", name, "") for name in others)
    return served


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _list(plugin: Plugin, columns: int) -> Iterator[str]:
    """The same for a terminal that is too narrow for the table."""
    yield f"{plugin.name}, of {plugin.distribution} {plugin.version}".strip()
    items = [
        f"{', '.join(spec.names)}: architecture, reads {', '.join(spec.weight_formats)}, verified "
        f"against {spec.verified_against}"
        for spec in plugin.architectures
    ]
    for method in plugin.speculators:
        drafts = ", ".join(method.draft_architectures) or "no draft"
        reads = "any architecture" if drafts == "*" else drafts
        items.append(
            f"{method.method}: {method.driver} method, reads {reads}, verified against "
            f"{method.verified_against}"
        )
    for item in items or ["nothing"]:
        yield from textwrap.wrap(
            item, max(20, columns), initial_indent="  ", subsequent_indent="    "
        )


def _as_json(registry: Registry) -> dict[str, Any]:
    return {
        "plugins": [_plugin_as_json(plugin) for plugin in registry.plugins],
        "failures": [_failure_as_json(failure) for failure in registry.failures],
        "limited_to": registry.limited_to,
    }


def _plugin_as_json(plugin: Plugin) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "architectures": [
            {
                "names": spec.names,
                "weight_formats": spec.weight_formats,
                "gguf_architectures": spec.gguf_architectures,
                "capabilities": sorted(spec.capabilities),
                "modalities": sorted(spec.modalities),
                "verified_against": spec.verified_against,
            }
            for spec in plugin.architectures
        ],
        "methods": [
            {
                "method": spec.method,
                "driver": spec.driver,
                "draft_architectures": spec.draft_architectures,
                "needs": sorted(spec.needs),
                "targets": spec.targets,
                "verified_against": spec.verified_against,
            }
            for spec in plugin.speculators
        ],
    }


def _failure_as_json(failure: PluginFailure) -> dict[str, Any]:
    return {
        "name": failure.name,
        "distribution": failure.distribution,
        "version": failure.version,
        "error": str(failure.error),
        "traceback": "".join(traceback.format_exception(failure.error)),
    }
