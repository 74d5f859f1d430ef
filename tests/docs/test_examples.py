"""The programs of examples/, as they stand, each in a process of its own."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pilotfish import LLM, SamplingParams

EXAMPLES = Path(__file__).parents[2] / "examples"
PROMPTS = ["The capital of France is", "One, two, three,", "Once upon a time"]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, EXAMPLES / "server.py", "demo", str(port)], stderr=subprocess.PIPE
    )
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/generate"
    finally:
        process.terminate()
        _, said = process.communicate(timeout=60)
        assert b"Traceback" not in said, said.decode()


def post(url: str, **body: Any) -> list[dict[str, Any]]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return [json.loads(line) for line in response]


def test_the_server_answers_several_at_once(server: str) -> None:
    greedy = {"temperature": 0, "max_tokens": 8}
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda prompt: post(server, prompt=prompt, **greedy), PROMPTS))
    with LLM("demo") as llm:
        wanted = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=8))
    for pieces, output in zip(found, wanted, strict=True):
        assert "".join(piece["text"] for piece in pieces) == output.text
        assert [piece["finish_reason"] for piece in pieces if piece["finish_reason"]] == ["length"]
        assert len(pieces) > 2, "it comes piece by piece"


def test_the_commands_of_the_recipe_are_answered(server: str) -> None:
    """Each `curl` of docs/recipes.md, and of the program itself, with its body as it is."""
    page = (EXAMPLES.parent / "docs" / "recipes.md").read_text()
    program = (EXAMPLES / "server.py").read_text()
    bodies = re.findall(r"^ *curl -N localhost:8000/generate -d '(.*)'$", page + program, re.M)
    assert len(bodies) == 3
    for body in bodies:
        (*_, last) = post(server, **json.loads(body))
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
