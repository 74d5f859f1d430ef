"""The page of figures: tables of every part that was measured.

Knows: what stands in the JSON file. Does not know: how it was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

INTRODUCTION = """\
Random weights in real shapes, bfloat16. Both sides run in one process on the same files, in
alternating rounds; a figure is the median. A decode step's time is that of an answer of N + 1
tokens less that of one token. "of the limit" is the time that the least memory traffic (weights,
keys and values, each read once) takes at the measured bandwidth of a copy, over the measured time;
for prefill, the products' operations at the measured rate of a large bfloat16 product, over the
time. Random weights make near-ties everywhere; tokens are compared by the rule of
`pilotfish bench`.
"""

MODELS = {"llama": "Llama-3.1-8B's shape", "lfm2": "LFM2-1.2B's shape"}


def page(found: Row, title: str) -> str:
    """found: the whole JSON file. Returns Markdown."""
    parts = found["parts"]
    machine = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    dates = sorted({part["date"] for part in parts.values()})
    lines = [f"# {title}", "", f"Measured on {' and '.join(dates)}. {machine}.", ""]
    lines += ["```", "make gpu", "```", "", INTRODUCTION]
    for name, part in parts.items():
        rows = part["rows"]
        lines += [f"## {name if 'toy' in found['machine']['device'] else _heading(name)}", ""]
        lines += _TABLES.get(name, _comparison)(rows)
        if "error" in part:
            lines += ["", f"This part ended early: {part['error'].splitlines()[-1]}"]
        lines.append("")
    return "\n".join(lines)


def _heading(part: str) -> str:
    known = {
        "kernels": "Kernels",
        "bandwidth": "The device's own limits",
        "speculation": "Speculation, beside our own plain decoding (synthetic acceptance)",
    }
    return known.get(part) or MODELS.get(part, part)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _limits(rows: list[Row]) -> list[str]:
    return _table(
        ["what", "figure", "unit"],
        [[row["name"], _number(row["value"]), row["unit"]] for row in rows],
    )


def _kernels(rows: list[Row]) -> list[str]:
    tests = [row for row in rows if "passed" in row]
    lines = [
        f"Tests of the kernels, compiled and run on the device: {row['passed']} passed, "
        f"{row['failed']} failed, {row['skipped']} skipped."
        for row in tests
    ]
    heads = ["kernel", "us", "MB", "of the limit", "library, us"]
    timed = [
        [
            row["name"],
            _number(1e6 * row["value"]),
            _number(row["megabytes"]),
            _share(row["of_limit"]),
            _number(row["library_s"] and 1e6 * row["library_s"]),
        ]
        for row in rows
        if "megabytes" in row
    ]
    return [*lines, "", *_table(heads, timed)]


def _comparison(rows: list[Row]) -> list[str]:
    heads = ["what", "ours", "theirs", "peer", "ratio", "unit", "ms", "of the limit", "tokens"]
    compared = [
        [
            row["name"],
            _number(row["value"]),
            _number(row["theirs"]),
            row["peer"],
            f"{row['value'] / row['theirs']:.2f}",
            row["unit"],
            _number(row["step_ms"]),
            _share(row.get("of_bandwidth") or row.get("of_product_rate")),
            row["tokens"],
        ]
        for row in rows
        if "theirs" in row
    ]
    loads = [f"{row['name']}: {_number(row['value'])} s." for row in rows if "theirs" not in row]
    return [*_table(heads, compared), "", " ".join(loads)]


def _speculation(rows: list[Row]) -> list[str]:
    heads = ["what", "ours", "plain", "ratio", "tokens a step", "step, ms", "plain step, ms"]
    return _table(
        heads,
        [
            [
                row["name"],
                _number(row["value"]),
                _number(row["theirs"]),
                f"{row['value'] / row['theirs']:.2f}",
                f"{row['tokens_a_step']:.2f}",
                _number(row["step_ms"]),
                _number(row["plain_step_ms"]),
            ]
            for row in rows
        ],
    )


_TABLES = {"bandwidth": _limits, "kernels": _kernels, "speculation": _speculation}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"
