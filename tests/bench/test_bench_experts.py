"""How evenly rows go to experts: counted after a run, told beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parallel.test_bits import tiny
from pilotfish.bench import BenchReport
from pilotfish.bench.experts import busiest_over_mean
from pilotfish.bench.peers import PilotfishSide

PROMPTS = [[1, 2, 3], [5, 6, 7, 8]]


def side(architecture: str, folder: Path) -> PilotfishSide:
    return PilotfishSide(str(tiny(architecture, folder)), dtype="float32")


def test_the_busiest_expert_is_told(tmp_path: Path) -> None:
    """Of planned passes too, which are laid down anew; the answers are the same."""
    ours = side("DeepseekV3ForCausalLM", tmp_path)
    before = ours.generate(PROMPTS, 6)
    model: Any = ours.llm.engine.runner.model
    said = busiest_over_mean(ours, PROMPTS, 6)
    assert ours.generate(PROMPTS, 6) == before
    ((name, loads),) = model.expert_loads().items()
    num_rows = 2 * sum(len(prompt) + 5 for prompt in PROMPTS)
    assert loads.sum() == 3 * num_rows
    ratio = loads.max().item() / (3 * num_rows / 8)
    assert ratio > 1
    assert said == f"{ratio:.2f} ({name})"
    report = BenchReport.of(ours.llm, model="", rows=(), sample="", experts=said)
    assert f"experts: busiest / mean {said}" in report.markdown_end()


def test_nothing_is_said_where_there_are_none(tmp_path: Path) -> None:
    ours = side("LlamaForCausalLM", tmp_path)
    assert busiest_over_mean(ours, PROMPTS, 2) == ""
    report = BenchReport.of(ours.llm, model="", rows=(), sample="")
    assert "experts" not in report.markdown_end()
