"""How rows of a benchmark are shown: as they come, and with what a figure is worth."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import pytest

from pilotfish.bench import BenchReport, BenchRow
from pilotfish.bench.llama_cpp import LlamaCppLookup, LlamaCppSide
from pilotfish.bench.measure import Median
from pilotfish.bench.peers import TransformersSide, _no_bars
from pilotfish.bench.table import PEERS, BenchTable
from pilotfish.cli import main


def test_a_ratio_above_one_is_a_win_for_rates_and_costs() -> None:
    fast = BenchRow.rate("r", 30.0, 20.0, peer="p", equal=True)
    cheap = BenchRow.cost("c", 2.0, 3.0, peer="p", equal="1 of 2 equal; near-ties: x")
    assert fast.ratio == cheap.ratio == 1.5
    report = BenchReport(
        model="m", dtype="float32", threads=2, rows=(fast, cheap), sample="text", backend="torch"
    )
    shown = json.loads(json.dumps(report.to_json()))
    assert shown[0] == {
        "name": "r",
        "ours": 30.0,
        "theirs": 20.0,
        "peer": "p",
        "ratio": 1.5,
        "unit": "tokens/s",
        "tokens_equal": True,
        "higher_is_better": True,
        "ours_spread": None,
        "theirs_spread": None,
    }
    assert shown[-1]["machine"]["threads"] == 2
    assert shown[-1]["machine"]["backend"] == "torch"
    assert "| r | 30 | 20 | p | 1.50 | tokens/s | yes |" in report.to_markdown()
    assert "near-ties" in report.to_markdown()


def row(ratio: float, equal: bool | str | None = True, *, spread: float = 0.0) -> BenchRow:
    ours = Median.of([ratio - ratio * spread, ratio, ratio + ratio * spread])
    return BenchRow.rate(f"r{ratio}", ours, Median.of([1.0, 1.0]), peer="transformers", equal=equal)


def shown(rows: Sequence[BenchRow]) -> str:
    stream = io.StringIO()
    table = BenchTable(stream, width=100)
    for one in rows:
        table.show(one)
    table.end(
        BenchReport(
            model="m", dtype="float32", threads=2, rows=tuple(rows), sample="s", backend="torch"
        )
    )
    return stream.getvalue()


def test_the_table_tells_what_theirs_is_and_what_a_figure_is_worth() -> None:
    bound = BenchRow.cost("overhead", 3.0, 6.0, peer="bound of 6", unit="%")
    rows = [row(1.3), row(1.3, spread=0.4), row(0.5, "1 of 2 equal; near-ties: x"), bound]
    text = shown([*rows, row(2.0, False)])
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert (
        lines.count("theirs: transformers, its generate, on the same weights and in the same dtype")
        == 2
    )
    assert "theirs: bound of 6, a bound, and no system" in lines
    assert "r1.3, tokens/s ↑ 1.3 ±0% 1 ±0% 1.30x better" in lines
    assert "r1.3, tokens/s ↑ 1.3 ±40% 1 ±0% 1.30x level" in lines
    assert "r0.5, tokens/s ↑ 0.5 ±0% 1 ±0% 0.50x* worse" in lines
    assert "* 1 of 2 equal; near-ties: x" in lines
    assert "overhead, % ↓ 3 6 2.00x better" in lines
    assert "r2.0, tokens/s ↑ 2 ±0% 1 ±0% 2.00x, OTHER TOKENS" in lines
    assert (
        "of 5 figures ours is better in 2, level in 1, worse in 1; "
        "1 compare other tokens, and so nothing"
    ) in lines
    assert "\x1b" not in text
    assert "one round" not in text
    once = BenchRow.rate("r", 2.0, 1.0, peer="transformers")
    assert "one round: no spread is known" in shown([once])


def test_every_peer_of_a_row_is_known_to_the_table() -> None:
    names = {TransformersSide.name, LlamaCppSide.name, LlamaCppLookup.name}
    assert names < set(PEERS)


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [([], "1.50x better"), (["--markdown"], "| r1.5 | 1.5 | 1 | transformers | 1.50 |")],
)
def test_a_run_that_is_killed_has_shown_what_it_had(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    wanted: str,
) -> None:
    def killed(*_: Any, show: Any, **options: Any) -> None:
        show(row(1.5))
        raise KeyboardInterrupt

    monkeypatch.setattr("pilotfish.bench.run_suite", killed)
    assert main(["bench", "demo", *flags]) == 130
    assert wanted in capsys.readouterr().out


def test_transformers_shows_no_bars(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging

    monkeypatch.setattr(gguf, "tqdm", gguf.tqdm)
    logging.enable_progress_bar()
    try:
        _no_bars()
        assert list(gguf.tqdm([1, 2], desc="Converting")) == [1, 2]
        assert list(logging.tqdm([3], desc="Loading")) == [3]
        assert capsys.readouterr().err == ""
    finally:
        logging.enable_progress_bar()
