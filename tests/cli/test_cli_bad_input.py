"""Every mistake a user can make gets one clear line and exit code 2, and never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pilotfish.cli import main
from pilotfish.cli.lines import Lines
from pilotfish.cli.requests import Reading
from pilotfish.ranks.failure import Failure
from support import forked

PROMPT = ["--prompt", "hello", "--max-tokens", "4"]


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny_checkpoint checkpoint that a test may spoil."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def refused(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    """Runs the command line, wants exit code 2 and one line on stderr; returns the line."""
    code = main([str(arg) for arg in argv])
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert "Traceback" not in captured.err
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("pilotfish: error: ")
    assert captured.out == ""
    return lines[0]


def edit_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_tensors(directory: Path, change: Any) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_missing_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no/such/place" in refused(capsys, "generate", "./no/such/place", *PROMPT)


def test_directory_without_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "config.json" in refused(capsys, "generate", tmp_path, *PROMPT)


def test_truncated_safetensors(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "model.safetensors" in refused(capsys, "generate", copy, *PROMPT)


def test_corrupt_safetensors(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"\xff" * 4096)
    assert "model.safetensors" in refused(capsys, "generate", copy, *PROMPT)


def test_missing_tensor(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    edit_tensors(copy, lambda tensors: tensors.pop("model.layers.1.mlp.down_proj.weight"))
    assert "layers.1.mlp.down_proj.weight" in refused(capsys, "generate", copy, *PROMPT)


def test_extra_tensor(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    edit_tensors(copy, lambda tensors: tensors.update({"model.surprise": torch.zeros(3)}))
    assert "model.surprise" in refused(capsys, "generate", copy, *PROMPT)


def test_misshapen_tensor(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    edit_tensors(copy, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(31)}))
    line = refused(capsys, "generate", copy, *PROMPT)
    assert "model.norm.weight" in line
    assert "31" in line
    assert "32" in line


def test_unknown_architecture_names_the_nearest(
    capsys: pytest.CaptureFixture[str], copy: Path
) -> None:
    edit_config(copy, architectures=["LlamaForCausalML"])
    line = refused(capsys, "generate", copy, *PROMPT)
    assert "LlamaForCausalML" in line
    assert "LlamaForCausalLM" in line


def test_unknown_rope_type(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    edit_config(copy, rope_parameters={"rope_type": "spiral", "rope_theta": 10000.0})
    assert "spiral" in refused(capsys, "generate", copy, *PROMPT)


def test_text_prompt_without_a_tokenizer(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path
) -> None:
    assert "tokenizer" in refused(capsys, "generate", tiny_checkpoint, *PROMPT)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ({"prompt_token_ids": list(range(60)) + [1] * 20}, "64"),
        ({"prompt_token_ids": []}, "empty"),
        ({"prompt_token_ids": [1, 64]}, "64"),
        ({"prompt_token_ids": [-1]}, "-1"),
    ],
)
def test_bad_prompt(
    capsys: pytest.CaptureFixture[str],
    tiny_checkpoint: Path,
    tmp_path: Path,
    line: dict[str, Any],
    named: str,
) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps(line))
    assert named in refused(capsys, "generate", tiny_checkpoint, "--input-file", file)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--max-tokens", "0"], "max_tokens"),
        (["--max-tokens", "-3"], "max_tokens"),
        (["--temperature", "-1"], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--top-p", "0"], "top_p"),
        (["--top-p", "1.5"], "top_p"),
        (["--top-k", "-3"], "top_k"),
        (["--seed", "-1"], "seed"),
        (["--dtype", "float8"], "dtype"),
        (["--arithmetic", "sloppy"], "arithmetic"),
        (["--page-size", "3"], "--page-size"),
        (["--max-tokns", "3"], "--max-tokens"),
        (["--temperature", "hot"], "--temperature"),
        (["--device", "quantum"], "quantum"),
    ],
)
def test_bad_flag(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, flags: list[str], named: str
) -> None:
    assert named in refused(capsys, "generate", tiny_checkpoint, "--prompt", "x", *flags)


def test_no_prompt(capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path) -> None:
    assert "--prompt" in refused(capsys, "generate", tiny_checkpoint)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"prompt": "x", "max_tokns": 3}', "max_tokens"),
        ('{"prompt": "x"', "line 1"),
        ("[]", "object"),
        ('{"prompt": "x", "chat": "y"}', "exactly one"),
        ('{"prompt": "x", "temperature": "hot"}', "temperature"),
        ("", "no request"),
    ],
)
def test_bad_input_file(
    capsys: pytest.CaptureFixture[str],
    tiny_checkpoint: Path,
    tmp_path: Path,
    content: str,
    named: str,
) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(content)
    assert named in refused(capsys, "generate", tiny_checkpoint, "--input-file", file)


def test_not_enough_memory(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    edit_config(copy, max_position_embeddings=2**40)
    line = refused(capsys, "generate", copy, *PROMPT, "--num-pages", str(2**33))
    assert "needed" in line or "need" in line
    assert "max-length" in line or "num-pages" in line or "num_pages" in line


def test_a_draft_without_a_method_and_an_unknown_method(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path
) -> None:
    assert "telepathy" in refused(
        capsys, "generate", tiny_checkpoint, *PROMPT, "--speculative", "telepathy"
    )
    assert "without a method" in refused(
        capsys, "generate", tiny_checkpoint, *PROMPT, "--draft", tiny_checkpoint
    )


def test_a_bad_request_does_not_disturb_the_others(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    good = {"prompt_token_ids": [1, 2, 3], "seed": 5, "max_tokens": 4, "ignore_eos": True}
    bad = {"prompt_token_ids": [1] * 80}
    file = tmp_path / "mixed.jsonl"
    file.write_text("\n".join(map(json.dumps, (good, bad, good))))
    assert main(["generate", str(tiny_checkpoint), "--input-file", str(file), "--json"]) == 2
    outputs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [out["finish_reason"] for out in outputs] == ["length", "error", "length"]
    assert outputs[0]["token_ids"] == outputs[2]["token_ids"]


def test_output_that_cannot_be_written_is_one_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A full disk, a closed stdout, and letters that the terminal does not know."""
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps({"prompt_token_ids": [1, 2], "max_tokens": 3}))
    words = f"generate {tiny_checkpoint} --input-file {file} --json"
    full = subprocess.run(
        ["sh", "-c", f"{forked.programs() / 'pilotfish'} {words} >/dev/full"],
        env={**os.environ, **forked.SETTINGS},
        capture_output=True,
        check=False,
    )
    assert full.returncode == 2
    assert full.stderr.decode().splitlines()[-1].startswith("pilotfish: error: cannot write")
    command = f"{sys.executable} -m pilotfish {words} >&-"
    closed = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
    assert closed.returncode == 2
    assert b"Traceback" not in closed.stderr + full.stderr
    ascii_only = subprocess.run(
        [
            sys.executable,
            "-c",
            "from pilotfish.cli import main; main(['plugins']); print('\u65e5')",
        ],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert ascii_only.returncode == 0, ascii_only.stderr


def test_flags_of_speculation_that_nobody_would_read(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path
) -> None:
    ngram = ["--speculative", "ngram"]
    for flags, said in (
        (["--show-draft"], "wanted --speculative METHOD"),
        ([*ngram, "--show-draft", "--json"], "wanted one of the two"),
        ([*ngram, "--synthetic-rate", "0.5"], "--acceptance synthetic"),
        ([*ngram, "--thinking-tokens", "1,2"], "--acceptance relaxed"),
        ([*ngram, "--width=--3"], "width is '--3'"),
        ([*ngram, "--width=100000"], "1 to 64"),
        ([*ngram, "--acceptance", "relaxed", "--thinking-tokens", "1,64"], "ids from 0 to 63"),
    ):
        assert said in refused(capsys, "generate", tiny_checkpoint, *PROMPT, *flags)


def test_ctrl_c_exits_with_130() -> None:
    flags = ["--prompt", "Once", "--ignore-eos", "--max-tokens", "4000"]
    command = [sys.executable, "-m", "pilotfish.cli", "generate", "demo", *flags]
    near, far = os.pipe()
    with os.fdopen(near, "rb") as stdout, TemporaryFile() as stderr:
        with os.fdopen(far, "wb") as written:
            streams = {"stdin": subprocess.PIPE, "stdout": written, "stderr": stderr}
            process = forked.popen(command, env=os.environ, **streams)
        assert len(stdout.read(50)) == 50  # it is in the midst of its answer
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
        stderr.seek(0)
        assert b"Traceback" not in stderr.read()


def test_a_chat_that_cannot_be_rendered_does_not_disturb_the_others(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    good = {"prompt_token_ids": [1, 2, 3], "seed": 5, "max_tokens": 4, "ignore_eos": True}
    file = tmp_path / "mixed.jsonl"
    file.write_text("\n".join(map(json.dumps, ({"chat": "hello", "seed": 7}, good))))
    assert main(["generate", str(tiny_checkpoint), "--input-file", str(file), "--json"]) == 2
    captured = capsys.readouterr()
    outputs = [json.loads(line) for line in captured.out.splitlines()]
    assert [out["index"] for out in outputs] == [0, 1]
    assert [out["finish_reason"] for out in outputs] == ["error", "length"]
    assert "no tokenizer" in outputs[0]["error"]
    assert outputs[0]["seed"] == 7
    assert "request 0: the checkpoint has no tokenizer" in captured.err


def test_a_refused_request_alone_still_prints_its_object(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps({"prompt_token_ids": [64]}))
    assert main(["generate", str(tiny_checkpoint), "--input-file", str(file), "--json"]) == 2
    captured = capsys.readouterr()
    [output] = [json.loads(line) for line in captured.out.splitlines()]
    assert output["prompt_token_ids"] == [64]
    assert output["finish_reason"] == "error"
    assert "wanted a whole number from 0 to 63" in output["error"]
    assert len(captured.err.strip().splitlines()) == 1


def test_a_line_separator_inside_a_json_string_is_no_end_of_line(tmp_path: Path) -> None:
    file = tmp_path / "odd.jsonl"
    file.write_text('{"prompt": "a\u2028b\x85c"}\r\n\n{"prompt": "d"}', encoding="utf-8")
    lines = list(Lines(str(file)).read())
    assert [number for number, _ in lines] == [1, 3]
    reading = Reading(name="odd.jsonl")
    assert [reading.request(*line).prompt for line in lines] == ["a\u2028b\x85c", "d"]


def test_a_logit_bias_that_is_no_object_is_refused(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "bias.jsonl"
    file.write_text(json.dumps({"prompt_token_ids": [1], "logit_bias": [[1, 2.0]]}))
    line = refused(capsys, "generate", tiny_checkpoint, "--input-file", file)
    assert "line 1: logit_bias is [[1, 2.0]]; wanted a mapping" in line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--width", "two"], "--width is 'two'; wanted adaptive, or 1 to 64 drafted tokens a step"),
        (["--width", "65"], "--width is '65'; wanted adaptive, or 1 to 64"),
        (["--width", "1:6,8:2"], "or 1 to 64 drafted tokens a step; batch sizes are Python only: "),
        (["--draft", ""], "draft is ''; wanted a checkpoint"),
    ],
)
def test_flags_of_speculation_say_what_a_command_line_can_give(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, flags: list[str], said: str
) -> None:
    line = refused(capsys, "generate", tiny_checkpoint, *PROMPT, "--speculative", "ngram", *flags)
    assert said in line
    assert "schedule" not in line


def test_a_page_size_is_named_by_its_flag(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path
) -> None:
    line = refused(capsys, "generate", tiny_checkpoint, *PROMPT, "--page-size", "3")
    assert "--page-size is 3; wanted one of 1, 2, 4" in line


def test_an_empty_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert "the model's name is empty" in refused(capsys, "generate", "", *PROMPT)


def test_a_draft_that_no_small_model_can_be(
    capsys: pytest.CaptureFixture[str], copy: Path, tiny_checkpoint: Path
) -> None:
    edit_config(copy, architectures=["LlamaForCausalLMEagle3"])
    flags = ["--speculative", "small_model", "--draft", str(copy)]
    line = refused(capsys, "generate", tiny_checkpoint, *PROMPT, *flags)
    assert (
        "methods that read it: eagle; 'small_model' reads: any architecture that is served" in line
    )
    assert "did you mean" not in line
    assert "*" not in line


def test_what_a_verb_exits_with_is_no_exit_code_of_ours(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drafter that raises SystemExit(3) is a bug of the drafter, and is heard."""

    def exits(*_: Any) -> Any:
        raise SystemExit(3)

    monkeypatch.setattr("pilotfish_ngram.proposer.NgramProposer.propose", exits)
    flags = ["--speculative", "ngram", "--input-file"]
    lines = tiny_checkpoint.parent / "ids.jsonl"
    lines.write_text('{"prompt_token_ids": [1, 2, 3]}\n')
    assert main(["generate", str(tiny_checkpoint), *flags, str(lines)]) == 1
    assert "SystemExit: 3" in capsys.readouterr().err


def test_a_rank_that_failed_is_told_as_to_who_types_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Any) -> int:
        raise Failure("rank 1 of 2 was ended by SIGKILL in execute", "its traceback").error()

    monkeypatch.setattr("pilotfish.cli.generate.run", fails)
    assert main(["generate", "demo", "Hello"]) == 1
    assert capsys.readouterr().err == (
        "pilotfish: of another rank: its traceback\n"
        "pilotfish: error: rank 1 of 2 was ended by SIGKILL in execute; wanted every rank to "
        "answer until the model is closed: no request can go on, so run the command again\n"
    )


def test_bench_refuses_before_it_says_that_it_loads(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path
) -> None:
    assert "wanted 1 to 63" in refused(capsys, "bench", tiny_checkpoint, "--prefill", "64")
    flags = ["--speculative", "small_model", "--draft", "no/such/draft"]
    assert "no/such/draft" in refused(capsys, "bench", tiny_checkpoint, *flags)
