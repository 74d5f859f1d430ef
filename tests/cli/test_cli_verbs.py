"""inspect and chat: what they print, and that inspect reads no weights."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from kernels.native_cases import needs_library
from pilotfish import LLM, SamplingParams, SpeculativeConfig
from pilotfish.cli import main
from pilotfish.cli.deltas import draft_colors
from pilotfish.kernels.native import library
from pilotfish.weights.formats.gguf import GGUFFile
from support.talkers import talkative_checkpoint


def test_inspect_says_what_would_run_and_reads_no_weights(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: GGUFFile, name: str) -> Any:
        raise AssertionError(f"inspect read {name}")

    monkeypatch.setattr(GGUFFile, "load", load)
    flags = ["--max-length", "1024", "--backend", "torch", "--json"]
    assert main(["inspect", "demo", *flags]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["architecture"] == "LlamaForCausalLM"
    assert facts["parameters"] == 134_515_008
    assert facts["dtype"] == "bfloat16"
    assert facts["kernels"] == "torch"
    assert facts["arithmetic"].startswith(("invariant", "NOT invariant"))  # a matter of the machine
    assert facts["max_seq_len"] == 1024
    memory = facts["memory"]
    assert sum(memory["weights_bytes"].values()) == 2 * 134_515_008
    row_bytes = 30 * 2 * 3 * 64 * 2
    assert memory["state_bytes"] == {"kv": memory["max_cached_tokens"] * row_bytes}
    total = sum(memory["weights_bytes"].values()) + memory["activation_bytes"]
    assert memory["total_bytes"] == total + sum(memory["state_bytes"].values())


@needs_library
def test_inspect_of_native_kernels_counts_the_files_own_bytes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["inspect", "demo", "--max-length", "1024", "--backend", "native"]
    assert main([*flags, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    found = library()
    assert found is not None
    assert (facts["kernels"], facts["instruction_set"]) == ("native", found.instruction_set)
    assert (facts["dtype"], facts["row_multiple"]) == ("float32", 1)
    assert facts["linear_weights"] == ["float32", "q4_1", "q8_0"]
    assert facts["arithmetic"] == "invariant: a row's bits are its own"
    stored = sum(info.num_bytes for info in GGUFFile(facts["path"]).infos.values())
    assert sum(facts["memory"]["weight_kinds_bytes"]["model"].values()) == stored
    assert facts["memory"]["weights_bytes"] == {"model": stored}
    assert main(flags) == 0
    shown = capsys.readouterr().out
    assert "weights (model): 92.1 MiB (q4_1 63.28 MiB, q8_0 28.69 MiB, float32 137.2 KiB)" in shown
    assert "no_native_kernels" not in shown
    assert "\nmodalities: text\n" in shown
    assert "\nlinear_weights: float32, q4_1, q8_0\n" in shown


def test_inspect_says_why_there_are_no_native_kernels(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfish.kernels.native.why_not", lambda: "no compiler")
    assert main(["inspect", "demo", "--backend", "torch"]) == 0
    shown = capsys.readouterr().out
    assert "no_native_kernels: no compiler" in shown
    assert "instruction_set" not in shown


def test_drafts_are_colored_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM("demo", speculative=SpeculativeConfig(method="ngram", width=3))
    params = SamplingParams(temperature=0, max_tokens=12)
    prompt = "red green blue, red green blue, red green"

    def shown() -> str:
        render = draft_colors(llm)
        return "".join(map(render, llm.stream(prompt, params)))

    text = llm.generate(prompt, params)[0].text
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    piped = shown()
    assert "\x1b" not in piped
    assert "{+" in piped
    assert re.sub(r"\[-.*?-\]|\{\+|\+\}", "", piped) == text
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    colored = shown()
    assert "\x1b[32m" in colored
    for color, mark in ((r"31;9", r"\[-(.*?)-\]"), ("32", r"\{\+(.*?)\+\}")):
        marked = re.findall(mark, piped)
        assert marked
        assert re.findall(rf"\x1b\[{color}m(.*?)\x1b\[0m", colored) == marked
    monkeypatch.setenv("TERM", "dumb")
    assert shown() == piped
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown() == piped


def test_inspect_says_when_arithmetic_is_not_invariant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "demo", "--arithmetic", "fastest"]) == 0
    assert "arithmetic: fastest" in capsys.readouterr().out


def test_chat_answers_each_line_and_ends_with_the_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 2 + 2?\n\n/clear\nSay hello.\n"))
    flags = ["--temperature", "0", "--max-tokens", "8", "--max-length", "256"]
    assert main(["chat", "demo", *flags]) == 0
    answers = capsys.readouterr().out.strip().splitlines()
    assert len(answers) == 2
    assert all(answers)


def test_chat_without_a_chat_template_is_refused(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path
) -> None:
    assert main(["chat", str(tiny_checkpoint)]) == 2
    assert "tokenizer" in capsys.readouterr().err


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(talkative_checkpoint(tmp_path_factory.mktemp("talker")))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--acceptance", "synthetic"], "acceptance 'synthetic' is not real"),
        (["--acceptance", "relaxed", "--thinking-tokens", "1,2"], "acceptance 'relaxed' is lossy"),
        (["--acceptance", "residual"], None),
        ([], None),
    ],
)
def test_text_that_is_not_the_models_own_is_told_of_on_stderr(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    talker: str,
    flags: list[str],
    said: str | None,
) -> None:
    options = ["--speculative", "ngram", "--max-tokens", "3", "--max-length", "128", *flags]
    monkeypatch.setattr("sys.stdin", io.StringIO("hello!\n"))
    for verb in (["generate", talker, "--prompt", "1 2 3"], ["chat", talker]):
        assert main([*verb, *options]) == 0
        lines = [line for line in capsys.readouterr().err.splitlines() if "acceptance" in line]
        assert len(lines) == (said is not None)
        assert said is None or lines[0].startswith(f"pilotfish: {said}")
    assert main(["generate", talker, "--prompt", "1 2 3", "--json", *options]) == 0
    assert "acceptance" not in capsys.readouterr().err
