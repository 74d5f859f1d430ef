"""Replicas on a Ray cluster of three nodes, all on this machine: one dies, and another comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilotfish import LLM, CacheConfig, load_registry
from pilotfish.testing.checkpoints import save_tiny
from ranks.left import are_gone, listening_ports
from replicas.faulty import ARCHITECTURE
from replicas.test_replica_failures import (
    LONG,
    PROMPTS,
    InBackground,
    dispatcher,
    serving,
    wait_for,
)

SMALL: dict[str, Any] = {"object_store_memory": 80 << 20}


class Nodes:
    """A cluster whose head has room for nothing. others: nodes with room for one replica each."""

    def __init__(self, num_cpus: int) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **SMALL})
        self.num_cpus = num_cpus
        self.others = [self.add(), self.add()]
        self.cluster.wait_for_nodes()

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=self.num_cpus, **SMALL)

    def kill(self, node_id: str) -> None:
        (node,) = (one for one in self.others if one.node_id == node_id)
        self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(params=[1, pytest.param(2, marks=pytest.mark.slow)])
def nodes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """With room for replicas of one rank, and of two."""
    pytest.importorskip("ray")
    made = Nodes(request.param)
    monkeypatch.setenv("RAY_ADDRESS", made.cluster.address)
    yield made
    made.cluster.shutdown()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    return save_tiny(ARCHITECTURE, "plain", folder, load_registry())


def load(checkpoint: Path, **options: Any) -> LLM:
    cache = CacheConfig(page_size_tokens=4, num_pages=64)
    return LLM(str(checkpoint), device="cpu", rank_timeout=20, cache=cache, **options)


def texts(llm: LLM, count: int = 1) -> list[list[int]]:
    return [[*output.token_ids] for output in llm.generate(PROMPTS * count, LONG)]


def nodes_of_groups() -> list[set[str]]:
    """Of each placement group that is alive, where it lies."""
    import ray

    found = ray.util.placement_group_table().values()
    return [set(one["bundles_to_node_id"].values()) for one in found if one["state"] == "CREATED"]


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:replica")
def test_a_node_dies_and_another_comes(checkpoint: Path, nodes: Nodes) -> None:
    import ray

    ranks = nodes.num_cpus
    with load(checkpoint, reduction_slices=ranks) as one:
        wanted = texts(one)
    ray.init(nodes.cluster.address, log_to_driver=False)
    ports = listening_ports()
    try:
        with load(checkpoint, data_parallel=2, tensor_parallel=ranks, distributed="ray") as llm:
            assert texts(llm, 4) == wanted * 4
            groups = nodes_of_groups()
            assert sorted(map(len, groups)) == [1, 1]
            assert set.union(*groups) == {node.node_id for node in nodes.others}
            pids = dispatcher(llm).pids
            work = InBackground(llm)
            nodes.kill(groups[1].pop())
            good, bad = work.ended()
            assert good
            assert all([*out.token_ids] == wanted[out.index % len(PROMPTS)] for out in good)
            (said,) = bad
            lost = serving(llm).index(False)
            assert said.startswith(f"replica {lost} of 2: rank ")
            assert texts(llm, 4) == wanted * 4
            assert serving(llm).count(True) == 1
            nodes.add()
            wait_for(llm, [True, True])
            assert texts(llm, 4) == wanted * 4
            assert all(load.names for load in dispatcher(llm).router.loads)
            pids += dispatcher(llm).pids
        assert are_gone(pids)
        assert nodes_of_groups() == []
        assert listening_ports() == ports
    finally:
        ray.shutdown()
