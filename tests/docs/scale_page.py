"""The tables of docs/scale.md, by what `pilotfish inspect` says of the configs of that page.

`cd tests && python -m docs.scale_page --write` writes them anew.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pilotfish.cli.inspect import prepare
from pilotfish.cli.inspect_ranks import describe_ranks
from pilotfish.cli.main import make_parser

from .page import blocks

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
MODELS = ("llama-405b", "kimi-k2.5")
SIZES = (8, 16, 32, 64)
COLUMNS = ("ranks", "weights", "caches", "activations", "sent in decode", "in prefill")
HEAD = f"| {' | '.join(COLUMNS)} | floor of decode | of prefill |\n|{'---|' * 8}\n"


def written(page: str, folder: Path) -> str:
    """The page with its tables as they should be. folder: empty; gets the configs."""
    first = next(block for block in blocks(page) if block.info == "python")
    command = next(block for block in blocks(page) if block.info == "console")
    words = command.text.splitlines()[0].removeprefix("$ pilotfish ").split()
    before = Path.cwd()
    os.chdir(folder)
    try:
        exec(first.text, {})
        for model in MODELS:
            begin, end = f"<!-- {model}: begin -->\n", f"<!-- {model}: end -->"
            head, _, rest = page.partition(begin)
            _, _, tail = rest.partition(end)
            page = head + begin + table(model, words) + end + tail
    finally:
        os.chdir(before)
    return page


def table(model: str, words: Sequence[str]) -> str:
    """words: of the page's command, about another model and number of ranks."""
    rows = []
    for size in SIZES:
        argv = [*words]
        argv[1], argv[argv.index("--tensor-parallel") + 1] = model, str(size)
        args = make_parser().parse_args(argv)
        facts = describe_ranks(prepare(args), args.bandwidth, args.link)
        assert facts is not None
        rows.append(row(facts))
    return HEAD + "".join(rows)


def row(facts: dict[str, Any]) -> str:
    """One number of ranks."""
    passes, held = facts["passes"], facts["bytes_per_rank"]
    cells = [str(facts["tensor_parallel"])]
    cells += [f"{held[name] / 2**30:.1f}" for name in ("weights", "caches", "activations")]
    for one in passes.values():
        sent = [
            sum(made["bytes_sent"][i] for made in one["collectives"].values()) / 2**30
            for i in (0, 1)
        ]
        cells.append(between(sent, 2 if one["rows"] < 100 else 1))
    cells += [between(facts["floors_ms"][name], 1) for name in passes]
    return f"| {' | '.join(cells)} |\n"


def between(bounds: Sequence[float], digits: int) -> str:
    """Least and most, or one of them."""
    least, most = (f"{bound:.{digits}f}" for bound in bounds)
    return least if least == most else f"{least} to {most}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made_folder:
        text = written(PAGE.read_text(), Path(made_folder))
    if "--write" in sys.argv:
        PAGE.write_text(text)
    else:
        print(text)
