"""Many requests: each answer is written when it is done, and stays written however a run ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import attrs
import pytest

from pilotfish import RequestOutput, SamplingParams
from pilotfish.cli import main
from pilotfish.cli.batch import MOST_HELD, answer_all
from pilotfish.cli.lines import _split
from pilotfish.cli.requests import FileRequest
from pilotfish.errors import RequestError
from support import forked

BATCH = 4
LINE = {"prompt_token_ids": [1, 2, 3], "seed": 5, "max_tokens": 2, "ignore_eos": True}


class FakeLLM:
    """Answers the prompt [n] after some turns of the loop; a prompt in `never` has no answer."""

    def __init__(self, never: tuple[int, ...] = (), interrupt_at: int = -1) -> None:
        self.never, self.interrupt_at = never, interrupt_at
        self.num_running = self.most_running = 0
        runtime = type("Runtime", (), {"max_batch_size": BATCH})
        self.pipeline_config = type("Config", (), {"runtime": runtime})

    def default_sampling_params(self) -> SamplingParams:
        return SamplingParams()

    async def agenerate(self, prompt: Any, params: SamplingParams) -> list[RequestOutput]:
        (number,) = prompt["prompt"]
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        if number in self.never:
            await asyncio.Event().wait()
        if number == self.interrupt_at:
            signal.raise_signal(signal.SIGINT)
            await asyncio.Event().wait()
        for _ in range(number % 7):
            await asyncio.sleep(0)
        self.num_running -= 1
        if number % 100 == 99:
            raise RequestError(f"{number} is refused")
        found = RequestOutput(
            index=0, prompt_token_ids=[number], token_ids=[], text="", finish_reason="stop"
        )
        return [found]


def asked(count: int, seen: list[int] | None = None) -> Iterator[tuple[int, FileRequest]]:
    for number in range(count):
        if seen is not None:
            seen.append(number)
        yield number, FileRequest(prompt_token_ids=[number], custom_id=f"number {number}")


@pytest.mark.parametrize("in_order", [True, False])
def test_a_long_file_is_read_as_its_answers_are_written(in_order: bool) -> None:
    """In their order, or with their index; a refused one stands at its place."""
    llm: Any = FakeLLM()
    read: list[int] = []
    ahead, written = 0, list[RequestOutput]()

    def write(output: RequestOutput, custom_id: str | None) -> None:
        nonlocal ahead
        assert custom_id == f"number {output.index}"
        ahead = max(ahead, len(read) - len(written))
        written.append(output)

    answer_all(llm, asked(5000, read), write, in_order=in_order)
    indices = [output.index for output in written]
    assert sorted(indices) == list(range(5000))
    assert (indices == sorted(indices)) == in_order
    assert llm.most_running == 2 * BATCH
    assert ahead < 100
    assert [o.index for o in written if o.error] == sorted(range(99, 5000, 100), key=indices.index)
    assert all(list(o.prompt_token_ids) == [o.index] for o in written if o.error is None)


def test_what_is_done_is_written_at_an_interrupt() -> None:
    llm: Any = FakeLLM(never=(0,), interrupt_at=500)
    written: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        answer_all(llm, asked(10**9), lambda output, _: written.append(output.index))
    assert written == sorted(written)
    assert set(range(1, 450)) <= set(written) < set(range(1, 510))


def test_few_answers_wait_for_an_earlier_one() -> None:
    """The first has none, so that all others wait; after two seconds comes Ctrl-C."""
    llm: Any = FakeLLM(never=(0,))
    read: list[int] = []
    written: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.alarm(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            answer_all(llm, asked(10**9, read), lambda output, _: written.append(output.index))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert len(read) < MOST_HELD + 100
    assert written == list(range(1, len(written) + 1))
    assert 0 < len(written) < MOST_HELD


def test_reading_that_fails_raises_after_the_answers_to_what_was_read() -> None:
    def fails() -> Iterator[tuple[int, FileRequest]]:
        yield from asked(20)
        raise RequestError("the disk is gone")

    llm: Any = FakeLLM()
    written: list[int] = []
    with pytest.raises(RequestError, match="the disk is gone"):
        answer_all(llm, fails(), lambda output, _: written.append(output.index))
    assert written == list(range(20))


def test_what_is_wrong_with_writing_or_with_an_answer_is_raised_as_it_is() -> None:
    def full(output: RequestOutput, _: str | None) -> None:
        raise BrokenPipeError

    llm: Any = FakeLLM()
    with pytest.raises(BrokenPipeError):
        answer_all(llm, asked(20), full)
    llm.agenerate = None
    with pytest.raises(TypeError):
        answer_all(llm, asked(20), lambda _, __: None)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_lines_end_wherever_chunks_do(size: int) -> None:
    raw = BytesIO(b"one\n\n two\r\nthr\xc3\xa9e")
    lines = list(_split(iter(lambda: raw.read(size), b"")))
    assert lines == [b"one", b"", b" two\r", b"thr\xc3\xa9e"]


@attrs.frozen
class Running:
    """A program that answers lines."""

    process: Any
    stdin: IO[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]

    def said(self) -> str:
        """All of its standard error."""
        self.stderr.seek(0)
        return self.stderr.read().decode()


@contextmanager
def started(checkpoint: Path, *flags: str) -> Iterator[Running]:
    """The program; what never answers is killed, and so its pipes end."""
    program = "from pilotfish.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", program, "generate", str(checkpoint), "--input-file", "-"]
    near, far = os.pipe()
    with os.fdopen(near, "rb") as stdout, TemporaryFile() as stderr:
        with os.fdopen(far, "wb") as written:
            streams = {"stdin": subprocess.PIPE, "stdout": written, "stderr": stderr}
            process = forked.popen([*command, *flags], env=os.environ, **streams)
        timer = threading.Timer(300, process.kill)
        timer.daemon = True
        timer.start()
        try:
            yield Running(process, process.stdin, stdout, stderr)
        finally:
            timer.cancel()
            process.kill()


def test_many_lines_through_a_pipe_that_stays_open(tiny_checkpoint: Path) -> None:
    """Answers come while lines are still written, few lines ahead of them; then Ctrl-C."""
    with started(tiny_checkpoint, "--json") as process:
        many_lines(process)


def many_lines(run: Running) -> None:
    stdin, stdout = run.stdin, run.stdout
    line = json.dumps({**LINE, "custom_id": "mine"}).encode().ljust(1000) + b"\n"
    num_lines, num_fed, most_ahead = 1200, 0, 0

    def feed() -> None:
        nonlocal num_fed
        for number in range(num_lines):
            stdin.write(b"[]\n" if number == 600 else line)
            num_fed += 1
        stdin.flush()

    feeder = threading.Thread(target=feed)
    feeder.start()
    outputs = []
    for number in range(num_lines):
        outputs.append(json.loads(stdout.readline()))
        most_ahead = max(most_ahead, num_fed - number)
    feeder.join()
    assert [output["index"] for output in outputs] == list(range(num_lines))
    bad = outputs.pop(600)
    assert "standard input, line 601: got list; wanted a JSON object" in bad["error"]
    assert len({tuple(output["token_ids"]) for output in outputs}) == 1
    assert {output["custom_id"] for output in outputs} == {"mine"}
    assert most_ahead < 800, "what two pipes hold, and what is read ahead"
    os.kill(run.process.pid, signal.SIGINT)
    assert (run.process.wait(60), stdout.read()) == (130, b"")
    assert run.said().splitlines()[-1] == "pilotfish: interrupted"
    assert "Traceback" not in run.said()


@pytest.mark.parametrize("end", ["sigterm", "closed pipe"])
def test_a_run_that_ends_early_has_written_what_was_done(tiny_checkpoint: Path, end: str) -> None:
    line = json.dumps(LINE).encode() + b"\n"
    with started(tiny_checkpoint, "--order", "done", "--json") as run:
        run.stdin.write(3 * line)
        run.stdin.flush()
        assert sorted(json.loads(run.stdout.readline())["index"] for _ in range(3)) == [0, 1, 2]
        if end == "sigterm":
            os.kill(run.process.pid, signal.SIGTERM)
        else:
            run.stdout.close()
            run.stdin.write(line)
            run.stdin.flush()
        assert run.process.wait(60) == (-signal.SIGTERM if end == "sigterm" else 141)
        assert "Traceback" not in run.said()


def test_texts_are_told_apart(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "two.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": "Say hello."}], "n": 2, "seed": 3},
        {"chat": "Say hello.", "seed": 3},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    flags = ["--input-file", str(file), "--max-tokens", "4", "--max-length", "256"]
    assert main(["generate", "demo", *flags, "--system", "You are a fish."]) == 0
    found = capsys.readouterr()
    first, second, third = found.out.split("==> ")[1:]
    assert [text.split(" <==\n")[0] for text in (first, second, third)] == [
        "0, sample 0",
        "0, sample 1",
        "1",
    ]
    assert first.split("<==")[1] == third.split("<==")[1] != second.split("<==")[1]
    assert "[3 of 3 answers were cut: --max-tokens" in found.err
    flags = ["--max-length", "256", "--temperature", "0", "--max-tokens", "3"]
    assert main(["generate", "demo", *flags, "The capital of France is"]) == 0
    found = capsys.readouterr()
    assert "Paris" in found.out
    assert found.err == "[cut at 3 tokens; --max-tokens]\n"
