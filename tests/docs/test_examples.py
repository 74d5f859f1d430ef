"""The programs of examples/, as they stand, each in a process of its own."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest

from pilotfish import LLM, SamplingParams
from support import forked

EXAMPLES = Path(__file__).parents[2] / "examples"
README = (EXAMPLES / "README.md").read_text()
PROMPTS = ["The capital of France is", "One, two, three,", "Once upon a time"]
SHORT = 40
"""Lines of a program; the server has an app around them."""


def printed(program: str, *arguments: str) -> list[str]:
    """The lines that a program prints, run as its docstring says, without a network."""
    done = forked.run(EXAMPLES / program, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    """What the programs' answers are compared with."""
    with LLM("demo", max_length=512) as made:
        yield made


def test_every_program_is_listed_and_short() -> None:
    programs = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert sorted(re.findall(r"^\| \[(\w+\.py)\]\(\1\) \|", README, re.M)) == programs
    for name in programs:
        source = (EXAMPLES / name).read_text()
        assert len(source.splitlines()) < (2 if name == "server.py" else 1) * SHORT
        assert f"python examples/{name} " in source.split('"""')[1]


def test_a_batch_gives_each_request_the_text_of_its_seed(llm: LLM) -> None:
    *lines, alone = printed("batch.py")
    found = [re.fullmatch(r"seed (\d): '(.+)' -> (.+)", line) for line in lines]
    assert len(found) == 3
    for match in found:
        assert match is not None
        params = SamplingParams(temperature=0.8, seed=int(match[1]), max_tokens=12)
        assert repr(llm.generate(match[2], params)[0].text) == match[3]
    assert alone == "alone: the same text"


def test_a_chat_answers_with_the_turns_before(llm: LLM) -> None:
    text = "\n".join(printed("chat.py"))
    messages: list[dict[str, Any]] = []
    wanted = ""
    for question in ("What is the capital of France?", "And of Italy?"):
        messages.append({"role": "user", "content": question})
        (answer,) = llm.chat(messages, SamplingParams(temperature=0, max_tokens=24))
        messages.append({"role": "assistant", "content": answer.text})
        wanted += f"> {question}\n{answer.text}\n"
    assert text == wanted.rstrip("\n")
    assert "Paris" in text


def test_drafts_are_counted_and_the_text_is_plain_decodings(llm: LLM) -> None:
    text, accepted, step, plain = printed("speculate.py")
    prompt = "red green blue red green blue red green"
    (output,) = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=32))
    assert text == repr(output.text)
    assert plain == "plain: the same text"
    counted = re.fullmatch(r"(\d+) of (\d+) drafted tokens accepted", accepted)
    assert counted is not None
    assert 0 < int(counted[1]) <= int(counted[2])
    # Each of the steps behind the first token gives the target's own token and what was accepted.
    per_step = float(step.removesuffix(" tokens a step"))
    steps = 31 - int(counted[1])
    assert per_step == pytest.approx(31 / steps, abs=0.01)


def test_scores_are_sums_of_log_probabilities(llm: LLM) -> None:
    lines = printed("score.py")
    assert lines[0].endswith("The capital of France is Paris")
    assert llm.tokenizer is not None
    first = len(llm.tokenizer.encode("The capital of France is"))
    for line in lines:
        score, text = float(line[:9]), line[10:]
        ids = list(llm.tokenizer.encode(text))
        rows = llm.score(ids).log_softmax(-1)
        wanted = sum(float(rows[t - 1, ids[t]]) for t in range(first, len(ids)))
        assert score == pytest.approx(wanted, abs=1e-3)
    assert sorted(lines, key=lambda line: -float(line[:9])) == lines


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(EXAMPLES / "server.py"), "demo", str(port)]
    with TemporaryFile() as said, open(os.devnull, "wb") as nothing:
        streams = {"stdin": subprocess.PIPE, "stdout": nothing, "stderr": said}
        process = forked.popen(command, env=os.environ, **streams)
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/generate"
        finally:
            process.terminate()
            process.wait(60)
            said.seek(0)
            assert b"Traceback" not in (text := said.read()), text.decode()


def post(url: str, **body: Any) -> list[dict[str, Any]]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return [json.loads(line) for line in response]


def test_the_server_answers_several_at_once(server: str, llm: LLM) -> None:
    greedy = {"temperature": 0, "max_tokens": 8}
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda prompt: post(server, prompt=prompt, **greedy), PROMPTS))
    wanted = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=8))
    for pieces, output in zip(found, wanted, strict=True):
        assert "".join(piece["text"] for piece in pieces) == output.text
        assert [piece["finish_reason"] for piece in pieces if piece["finish_reason"]] == ["length"]
        assert len(pieces) > 2, "it comes piece by piece"


def test_the_commands_of_the_recipe_are_answered(server: str) -> None:
    """Each `curl` of docs/recipes.md, and of the program itself, with its header and body."""
    page = (EXAMPLES.parent / "docs" / "recipes.md").read_text()
    program = str(ast.get_docstring(ast.parse((EXAMPLES / "server.py").read_text())))
    commands = re.findall(r"^ *curl (?:.*\\\n)*.*$", page + program, re.M)
    assert len(commands) == 3
    for command in commands:
        curl, plain, url, says_header, header, says_body, body = shlex.split(
            command.replace("\\\n", "")
        )
        assert (curl, plain, says_header, says_body) == ("curl", "-N", "-H", "-d")
        assert url == "localhost:8000/generate"
        name, value = header.split(": ")
        request = urllib.request.Request(server, body.encode(), {name: value})
        with urllib.request.urlopen(request, timeout=120) as response:
            (*_, last) = [json.loads(line) for line in response]
        assert last["finish_reason"] in ("length", "stop")


def test_the_server_refuses_what_cannot_be_meant(server: str) -> None:
    for body in ({"prompt": ""}, {"prompt": "x", "temperature": -1}, {"prompt": "x", "heat": 1}):
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(server, **body)
        assert caught.value.code == 400
        assert json.loads(caught.value.read())["detail"]


def test_a_client_that_hangs_up_holds_nobody_up(server: str) -> None:
    data = json.dumps({"prompt": "Once", "max_tokens": 4000, "ignore_eos": True}).encode()
    request = urllib.request.Request(server, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        assert response.readline()
    (*_, last) = post(server, prompt="One, two", temperature=0, max_tokens=2)
    assert last["finish_reason"] == "length"
