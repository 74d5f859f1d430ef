"""Replicas that torchrun starts: rank 0's process feeds them, and has one beside itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pilotfish import LLM, SamplingParams, load_registry
from pilotfish.testing.checkpoints import save_tiny
from ranks.faulty import ARCHITECTURE
from ranks.left import are_gone

SCRIPT = """
import os, signal, sys
os.write(1, f"pid {os.getpid()}\\n".encode())  # in one piece, as others write there too
from pilotfish import LLM, SamplingParams
from pilotfish.errors import ConfigError, RankError

def load(**options):
    return LLM(sys.argv[1], device="cpu", rank_timeout=30, **options)

def texts(llm):
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=12, ignore_eos=True)
    return [[*out.token_ids] for out in llm.generate([[1, 2, 3], [4, 5], [6]], params)]

"""
TWO_MODELS = """
replicas, ranks = map(int, sys.argv[2].split("x"))
with load(data_parallel=replicas, tensor_parallel=ranks) as llm:
    print("pid", " ".join(map(str, llm.engine.scheduler.pids)))
    print(texts(llm))
    try:
        load(data_parallel=replicas, tensor_parallel=ranks)
    except ConfigError as error:
        print(error)
    print(texts(llm))
with load(data_parallel=replicas, tensor_parallel=ranks, reduction_slices=4) as llm:
    print(texts(llm))
"""
ONE_DIES = """
import warnings
warnings.simplefilter("ignore")
llm = load(data_parallel=2)
texts(llm)
pids = llm.engine.scheduler.pids
stream = llm.stream([1], SamplingParams(temperature=0, max_tokens=100, ignore_eos=True))
next(stream)
os.kill(pids[0], signal.SIGKILL)
print([*stream][-1].output.error)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    return save_tiny(ARCHITECTURE, "plain", folder, load_registry())


def lines_of(then: str, checkpoint: Path, tmp_path: Path, size: int, *arguments: str) -> list[str]:
    """What rank 0's process printed; no other one says anything, and all have ended."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + then)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(size)]
    done = subprocess.run(
        [*command, str(script), str(checkpoint), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines = done.stdout.replace("pid ", "\npid ").splitlines()
    pids = [int(pid) for line in lines if line.startswith("pid ") for pid in line.split()[1:]]
    assert len(pids) >= size, done.stderr
    assert are_gone(pids)
    return [line for line in lines if line and not line.startswith("pid ")]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "shape"), [(2, "2x1"), (4, "2x2")])
def test_models_one_after_the_other_have_the_texts_of_one_device(
    checkpoint: Path, tmp_path: Path, size: int, shape: str
) -> None:
    first, refused, again, second = lines_of(TWO_MODELS, checkpoint, tmp_path, size, shape)
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=12, ignore_eos=True)
    wanted = []
    for slices in (size // 2, 4):
        with LLM(str(checkpoint), device="cpu", reduction_slices=slices) as one:
            outputs = one.generate([[1, 2, 3], [4, 5], [6]], params)
            wanted.append(str([[*output.token_ids] for output in outputs]))
    assert (first, again, second) == (wanted[0], wanted[0], wanted[1])
    assert refused.startswith("another model has the processes of torchrun; wanted that one closed")


@pytest.mark.slow
def test_a_replica_that_dies_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (said,) = lines_of(ONE_DIES, checkpoint, tmp_path, 2)
    assert said.startswith("replica 0 of 2: rank 0 of 1 ")
