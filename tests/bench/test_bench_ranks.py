"""`pilotfish bench` with several ranks: their tokens beside one process's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parallel.test_bits import tiny
from parallel.thread_ranks import ranks_are_threads
from pilotfish.bench import BenchRow, rows, run_ranks
from pilotfish.cli.main import main
from pilotfish.config import ParallelConfig
from pilotfish.errors import ConfigError


def test_ranks_stand_beside_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(1, 10**6))  # rows of a toy on a busy machine are no longer than others
    monkeypatch.setattr(rows, "timed", lambda run: (float(next(seconds)), run()))
    shown: list[BenchRow] = []
    model, parallel = str(tiny("LlamaForCausalLM", tmp_path)), ParallelConfig(tensor_parallel=2)
    with ranks_are_threads():
        report = run_ranks(
            model, parallel, dtype="float32", rounds=1, prefills=[9], show=shown.append
        )
    assert tuple(shown) == report.rows
    *speeds, weights = report.rows
    assert [row.name for row in speeds] == [
        "2 ranks: decode, 1 request",
        "2 ranks: decode, 8 requests",
        "2 ranks: prefill of 9 tokens",
    ]
    assert all(row.tokens_equal is True and row.peer == "one process" for row in speeds)
    assert weights.theirs / 2 < weights.ours < weights.theirs
    assert report.sample


def test_what_cannot_be_compared_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="rounds is 0"):
        run_ranks("demo", ParallelConfig(tensor_parallel=2), rounds=0)
    two: tuple[Any, ...] = ("bench", "demo", "--tensor-parallel", "3")
    for flags, said in (
        ((*two, "--against", "transformers"), "no several ranks with it"),
        ((*two, "--speculative", "ngram"), "wanted no --speculative"),
        (("bench", "demo", "--reduction-slices", "3"), "wanted --tensor-parallel 2"),
    ):
        assert main(flags) == 2
        assert said in capsys.readouterr().err
