"""Ranks that torchrun starts: the same text, every failure named, and nobody left."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from torch.distributed import TCPStore

from pilotfish import LLM, SamplingParams, load_registry
from pilotfish.config import ParallelConfig
from pilotfish.errors import ConfigError, RankError
from pilotfish.ranks import torchrun as torchrun_module
from pilotfish.ranks.channel import listen
from pilotfish.ranks.launch import launcher_of
from pilotfish.ranks.spawn import Spawn
from pilotfish.testing.checkpoints import save_tiny
from ranks.faulty import ARCHITECTURE, VARIABLE
from ranks.left import are_gone

TESTS = Path(__file__).resolve().parents[1]
HEAD = f"""
import os, signal, sys, time
sys.path.insert(0, {str(TESTS)!r})
os.write(1, f"pid {{os.getpid()}}\\n".encode())  # in one piece, as others write there too
from pilotfish import LLM, SamplingParams
from pilotfish.errors import ConfigError, RankError, WorkerEnd
from ranks.faulty import registry

def load(**options):
    options = dict(registry=registry(), device="cpu", tensor_parallel=2, rank_timeout=30) | options
    return LLM(sys.argv[1], **options)

def text(llm):
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=12, ignore_eos=True)
    return llm.generate([[1, 2, 3], [4, 5]], params)[0].token_ids

"""
SAID = {
    "raise": "rank 1 of 2 raised ValueError in execute: planted",
    "SIGKILL": "rank 1 of 2 ended without a word (torchrun says how) in execute",
    "SIGSTOP": "rank 1 of 2 did not answer for 8 s (rank_timeout) in execute",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    return save_tiny(ARCHITECTURE, "plain", folder, load_registry())


class Run:
    """What a script printed under torchrun. pids: of its processes, which must all have ended."""

    def __init__(
        self, then: str, checkpoint: Path, tmp_path: Path, *how: str, **environment: str
    ) -> None:
        script = tmp_path / "script.py"
        script.write_text(HEAD + then)
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *how]
        begun = monotonic()
        done = subprocess.run(
            [*command, str(script), str(checkpoint)],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        self.code, self.errors, self.seconds = done.returncode, done.stderr, monotonic() - begun
        lines = done.stdout.replace("pid ", "\npid ").splitlines()
        self.pids = [int(line.split()[1]) for line in lines if line.startswith("pid ")]
        self.lines = [line for line in lines if line and not line.startswith("pid ")]
        assert are_gone(self.pids), self.errors


TWO_MODELS = """
import torch
try:
    with load() as llm:
        print(text(llm))
        try:
            load()
        except ConfigError as error:
            print(error)
        print(text(llm))
    with load(reduction_slices=4, distributed="torchrun") as llm:
        print(text(llm))
except WorkerEnd as error:
    assert error.code == 0
    print("served as", os.environ["RANK"])
    raise
print(torch.distributed.is_initialized())
"""


def test_models_one_after_the_other_have_the_text_of_one_device(
    checkpoint: Path, tmp_path: Path
) -> None:
    run = Run(TWO_MODELS, checkpoint, tmp_path)
    texts = []
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=12, ignore_eos=True)
    for slices in (2, 4):
        with LLM(str(checkpoint), device="cpu", reduction_slices=slices) as one:
            texts.append(str(one.generate([[1, 2, 3], [4, 5]], params)[0].token_ids))
    first, refused, again, second, is_initialized, served = run.lines
    assert (first, again, second) == (texts[0], texts[0], texts[1])
    assert refused.startswith("another model has the processes of torchrun; wanted that one closed")
    assert (is_initialized, served) == ("False", "served as 1")
    assert run.code == 0, run.errors


@pytest.mark.parametrize(
    "how", ["SIGKILL", *(pytest.param(one, marks=pytest.mark.slow) for one in ("raise", "SIGSTOP"))]
)
def test_a_rank_that_fails_is_named_before_torchrun_ends_all(
    checkpoint: Path, tmp_path: Path, how: str
) -> None:
    """The script sleeps before it says so: torchrun has long told it to end."""
    then = """
llm = load(rank_timeout=8 if "SIGSTOP" in os.environ["TEST_FAULT"] else 30)
try:
    text(llm)
except RankError as error:
    time.sleep(2)
    print(error, flush=True)
try:
    load()
except RankError as error:
    print(error, flush=True)
    raise
"""
    run = Run(then, checkpoint, tmp_path, **{VARIABLE: f"decode {how}"})
    assert len(run.lines) == 2, (run.lines, run.errors)
    first, again = run.lines
    assert first.startswith(SAID[how])
    assert again.startswith("the processes of torchrun ended with the model before")
    assert run.code == 1
    assert run.seconds < 60


@pytest.mark.slow
@pytest.mark.parametrize("then", ["text(llm)", "1 / 0", "sys.exit(0)", "os._exit(0)"])
def test_however_rank_0_ends_the_others_end(checkpoint: Path, tmp_path: Path, then: str) -> None:
    run = Run(f"llm = load()\n{then}", checkpoint, tmp_path)
    assert (run.code, run.lines) == (int(then == "1 / 0"), [])


@pytest.mark.slow
def test_rank_0_is_ended_by_a_signal_as_ever(checkpoint: Path, tmp_path: Path) -> None:
    then = "llm = load()\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60)"
    run = Run(then, checkpoint, tmp_path)
    assert "Signal 15 (SIGTERM)" in run.errors
    assert run.seconds < 40


@pytest.mark.slow
def test_a_model_that_is_refused_ends_all(checkpoint: Path, tmp_path: Path) -> None:
    run = Run("load(max_length=10 ** 9)", checkpoint, tmp_path)
    assert (run.code, run.lines) == (1, [])
    assert run.errors.count("pilotfish.errors.ConfigError") == 1


@pytest.mark.slow
def test_ranks_of_several_machines_meet_at_an_address_that_all_reach(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Two of torchrun's agents; that they are on one machine they are not told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but 127.0.0.1")
        host = str(probe.getsockname()[0])
    with listen(host) as free:
        port = str(free.getsockname()[1])
    script = tmp_path / "script.py"
    say = "print(text(llm), llm.engine.runner.model.ranks._held.launcher.host)"
    script.write_text(f"{HEAD}\nwith load() as llm: {say}")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "--nnodes"]
    command += ["2", "--master-addr", host, "--master-port", port]
    agents = [
        subprocess.Popen(
            [*command, "--node-rank", node, str(script), str(checkpoint)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for node in "01"
    ]
    said = [agent.communicate(timeout=90)[0].splitlines()[1:] for agent in agents]
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=12, ignore_eos=True)
    with LLM(str(checkpoint), device="cpu", reduction_slices=2) as one:
        wanted = one.generate([[1, 2, 3], [4, 5]], params)[0].token_ids
    assert said == [[f"{wanted} {host}"], []]
    assert [agent.returncode for agent in agents] == [0, 0]


def environ(monkeypatch: pytest.MonkeyPatch, **variables: Any) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


TWO = ParallelConfig(tensor_parallel=2)


def test_torchrun_is_seen_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(launcher_of(TWO), Spawn)
    environ(monkeypatch, RANK=0, WORLD_SIZE=4)  # of some other launcher
    assert isinstance(launcher_of(TWO), Spawn)
    with pytest.raises(ConfigError, match="has no MASTER_ADDR; wanted torchrun --nproc-per-node 2"):
        launcher_of(ParallelConfig(tensor_parallel=2, distributed="torchrun"))
    environ(monkeypatch, TORCHELASTIC_RUN_ID="x", MASTER_ADDR="127.0.0.1", MASTER_PORT=1)
    wanted = "is 2 and torchrun started 4 processes; wanted tensor_parallel 4, torchrun --nproc-per"
    with pytest.raises(ConfigError, match=wanted):
        launcher_of(TWO)
    assert isinstance(launcher_of(ParallelConfig(distributed="spawn")), Spawn)


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_do_not_come_are_named(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=5))
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    environ(monkeypatch, RANK=rank, WORLD_SIZE=2, TORCHELASTIC_USE_AGENT_STORE=True, **place)
    monkeypatch.setattr(torchrun_module, "CONNECT_S", 0.5)
    torchrun_module._store.cache_clear()
    said = "rank 1 of 2 did not come" if rank == 0 else "rank 0 made no LLM"
    with pytest.raises(RankError, match=f"{said} for 0.5 s"):
        launcher_of(ParallelConfig(tensor_parallel=2, distributed="torchrun", rank_timeout=0.5))
    torchrun_module._store.cache_clear()
