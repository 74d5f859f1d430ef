"""A draft that ranks share, as threads: the logits of one device, from every file's own parts."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest
import torch

from eagle.checkpoints import CASES
from eagle.conftest import Pair
from eagle.driver import load
from eagle.test_eagle_planned import history
from kernels.native_cases import NATIVE, needs_library
from kernels.planned_passes import called_one_by_one
from parallel.test_planted import in_ring_order
from pilotfish.config import ParallelConfig
from pilotfish.errors import PluginError
from pilotfish.layers import attention, row_parallel
from pilotfish.parallel.group import Group, Groups
from pilotfish.parallel.threads import run_ranks, thread_groups
from pilotfish_eagle.model import EagleModel

pytestmark = needs_library
SLICES = 4


def on_ranks(pair: Pair, case: str, size: int, dtype: str = "float32") -> list[list[torch.Tensor]]:
    """What every rank drafts from."""
    config = ParallelConfig(tensor_parallel=size, reduction_slices=SLICES)
    files = pair(case)

    def run(groups: Groups) -> list[torch.Tensor]:
        everywhere = attrs.evolve(groups, logits_everywhere=True)
        return history(load(*files, dtype=dtype, backend=NATIVE, groups=everywhere))

    return list(run_ranks(thread_groups(config), run))


def same(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    assert len(one) == len(other) > 10
    return all(map(torch.equal, one, other))


@pytest.mark.parametrize("case", CASES)
def test_every_rank_has_the_logits_of_one_device(pair: Pair, case: str) -> None:
    (wanted,) = on_ranks(pair, case, 1, "bfloat16")
    for found in on_ranks(pair, case, 4, "bfloat16"):
        assert same(found, wanted)


@pytest.mark.parametrize("case", ["eagle1-deep", "eagle3-fc-norm"])
def test_planned_passes_have_the_bits_of_single_calls(pair: Pair, case: str) -> None:
    planned, _ = on_ranks(pair, case, 2)
    with called_one_by_one(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(EagleModel, "_planned", lambda self, combines: None)
        single, _ = on_ranks(pair, case, 2)
    assert same(planned, single)


def test_every_matrix_is_shared(pair: Pair) -> None:
    """Also embedding and head of its own, and fc; who reads one whole is told."""
    config = ParallelConfig(tensor_parallel=2)
    groups = Groups.of_rank(1, config)
    network = load(*pair("eagle3-permuted"), backend=NATIVE, groups=groups).network
    shapes, shards = network.parameter_shapes(), network.shards()
    matrices = {name for name, shape in shapes.items() if len(shape) == 2}
    assert shards.keys() == matrices
    assert {"embed_tokens.weight", "lm_head.weight", "fc.weight"} < matrices
    for name in matrices:
        held = shards[name].shape(shapes[name])
        assert 2 * held[0] * held[1] == shapes[name][0] * shapes[name][1], name
    with pytest.raises(PluginError, match="this one has rows 24 to 48"):
        _ = network.fc.packed


@pytest.mark.parametrize("bug", ["slices in ring order", "heads of another rank"])
def test_a_mistake_of_splitting_is_seen(
    pair: Pair, bug: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (wanted,) = on_ranks(pair, "eagle3", 1)
    heads = attention.heads_of_rank
    if bug == "slices in ring order":
        monkeypatch.setattr(row_parallel, "all_reduce", in_ring_order)
    else:
        monkeypatch.setattr(
            attention,
            "heads_of_rank",
            lambda group, n, k, name: heads(Group(3 - group.rank, 4), n, k, name),
        )
    assert not same(on_ranks(pair, "eagle3", 4)[0], wanted)
