"""Ranks that are actors of a Ray cluster of two nodes, both on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from time import monotonic, sleep
from typing import Any

import pytest

from docs.page import blocks, check_console
from pilotfish import LLM, SamplingParams, load_registry
from pilotfish.config import ParallelConfig
from pilotfish.errors import ConfigError, RankError
from pilotfish.ranks import on_ray
from pilotfish.ranks.launch import launcher_of
from pilotfish.testing.checkpoints import save_tiny
from ranks.faulty import ARCHITECTURE
from ranks.left import are_gone, listening_ports

ROOT = Path(__file__).resolve().parents[2]
ON_RAY = ParallelConfig(tensor_parallel=2, distributed="ray")
PROMPTS = [[1, 2, 3], [4, 5]]
PARAMS = SamplingParams(temperature=0.8, seed=3, max_tokens=12, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=4000, ignore_eos=True)


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r'wanted `pip install "pilotfish\[ray\]"`'):
        launcher_of(ON_RAY)


class Nodes:
    """A cluster. Ranks have room on its second node alone; the driver is on the first."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        small: dict[str, Any] = {"object_store_memory": 80 << 20}
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
        self.small = small
        self.second = self.cluster.add_node(num_cpus=2, **small)
        self.cluster.wait_for_nodes()

    def kill_second(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    pytest.importorskip("ray")
    made = Nodes()
    monkeypatch.setenv("RAY_ADDRESS", made.cluster.address)
    yield made
    made.cluster.shutdown()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("plain")
    return str(save_tiny(ARCHITECTURE, "plain", folder, load_registry()))


def load(checkpoint: str, **options: Any) -> LLM:
    return LLM(
        checkpoint,
        device="cpu",
        **{"tensor_parallel": 2, "rank_timeout": 20, "distributed": "ray", **options},
    )


def pids_of(llm: LLM) -> tuple[int, ...]:
    found: tuple[int, ...] = llm.engine.runner.model.ranks.pids  # type: ignore[attr-defined]
    return found


def texts(llm: LLM) -> list[list[int]]:
    return [[*out.token_ids] for out in llm.generate(PROMPTS, PARAMS)]


@pytest.mark.ray
def test_over_two_nodes_the_text_is_that_of_one_device_and_nothing_is_left(
    checkpoint: str, nodes: Nodes
) -> None:
    import ray

    ray.init(nodes.cluster.address, log_to_driver=False)
    try:
        ports = listening_ports()
        with load(checkpoint) as first, load(checkpoint, reduction_slices=4) as second:
            pids = *pids_of(first), *pids_of(second)
            found = texts(first), texts(second)
            (used, _) = ray.util.placement_group_table().values()
            assert used["strategy"] == "PACK"
            assert [*used["bundles_to_node_id"].values()] == [nodes.second.node_id]
            assert nodes.second.node_id != ray.get_runtime_context().get_node_id()
        assert are_gone(pids)
        left = ray.util.placement_group_table().values()
        assert {one["state"] for one in left} == {"REMOVED"}
        assert listening_ports() == ports
        assert ray.is_initialized()  # by this test, which goes on with it
    finally:
        ray.shutdown()
    for slices, got in zip((2, 4), found, strict=True):
        with LLM(checkpoint, device="cpu", reduction_slices=slices) as one:
            assert got == texts(one)


def go_on(llm: LLM) -> None:
    while True:
        llm.generate(PROMPTS, LONG)


@pytest.mark.ray
def test_a_node_that_dies_is_a_rank_that_failed(checkpoint: str, nodes: Nodes) -> None:
    import ray

    llm = load(checkpoint, tensor_parallel=2)
    pids = pids_of(llm)
    timer = Timer(0.3, nodes.kill_second)
    timer.start()
    with pytest.raises(RankError, match="rank 1 of 2 ended with") as raised:
        go_on(llm)
    said = monotonic()
    timer.join()
    assert monotonic() - said < 10, str(raised.value)
    assert are_gone(pids)
    llm.close()
    assert not ray.is_initialized()


@pytest.mark.ray
@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_an_actor_that_fails_is_a_rank_that_failed(checkpoint: str, nodes: Nodes, how: str) -> None:
    llm = load(checkpoint, rank_timeout=8)
    texts(llm)
    pids = pids_of(llm)
    os.kill(pids[0], getattr(signal, how))
    begun = monotonic()
    wanted = "did not answer for 8 s" if how == "SIGSTOP" else "ended with"
    with pytest.raises(RankError, match=f"rank 1 of 2 {wanted}") as raised:
        texts(llm)
    assert monotonic() - begun < 20
    assert are_gone(pids), str(raised.value)
    llm.close()
    with load(checkpoint) as again:  # the room is free
        texts(again)


@pytest.mark.ray
def test_a_cluster_without_room_is_said_and_one_that_is_not_there(
    checkpoint: str, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "CONNECT_S", 1.0)
    with pytest.raises(ConfigError, match="no room for 3 ranks of 1 CPUs for 1 s"):
        load(checkpoint, tensor_parallel=4, rank_timeout=1)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS is '127\.0\.0\.1:1' and no Ray cluster"):
        load(checkpoint)


@pytest.mark.ray
def test_what_the_page_shows_runs(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks that need Ray, and the one before them, whose names they share."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    page = blocks((ROOT / "docs" / "parallel.md").read_text())
    shown, plain = [], []
    for block in page:
        {"python": plain, "python needs=ray": shown, "console needs=ray": shown}.get(
            block.info, []
        ).append(block)
    names: dict[str, Any] = {}
    exec(plain[0].text, names)
    for block in shown:
        exec(block.text, names) if "python" in block.info else check_console(block)
    assert len(shown) == 2


@pytest.mark.ray
def test_a_cluster_that_was_started_for_it_ends_with_the_model(
    checkpoint: str, tmp_path: Path
) -> None:
    """However the script ends."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pilotfish import LLM, SamplingParams\n"
        "options = dict(device='cpu', tensor_parallel=2, distributed='ray')\n"
        "with LLM(sys.argv[1], **options) as llm: pass\n"
        "import ray; print(ray.is_initialized())\n"
        "llm = LLM(sys.argv[1], **options)\n"
        "print(len(llm.generate([[1, 2]], SamplingParams(max_tokens=3))))\n"
    )
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, str(script), checkpoint],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["False", "1"], done.stderr
    assert (done.returncode, done.stderr) == (0, "")
    sleep(1.0)
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert "raylet" not in running.stdout
