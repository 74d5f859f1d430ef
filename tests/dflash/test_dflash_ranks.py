"""A draft that ranks share, as threads: the logits of one device, from every file's own parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import torch

from dflash.checkpoints import CASES
from dflash.conftest import Pair
from dflash.driver import draft_config, load
from dflash.histories import play
from kernels.native_cases import NATIVE, needs_library
from kernels.planned_passes import called_one_by_one
from pilotfish.config import ParallelConfig
from pilotfish.errors import ConfigError
from pilotfish.parallel.group import Groups
from pilotfish.parallel.threads import run_ranks, thread_groups
from pilotfish_dflash import network
from pilotfish_dflash.network import ContextKV, DFlashLlama3

pytestmark = needs_library
SLICES = 4
SIX_HEADS = "wide-heads"
"""Six query heads over three of keys and values."""


def on_ranks(pair: Pair, case: str, size: int, dtype: str = "float32") -> list[list[torch.Tensor]]:
    """What every rank drafts from."""
    config = ParallelConfig(tensor_parallel=size, reduction_slices=SLICES)
    files = pair(case)

    def run(groups: Groups) -> list[torch.Tensor]:
        everywhere = attrs.evolve(groups, logits_everywhere=True)
        draft = load(*files, dtype=dtype, backend=NATIVE, groups=everywhere)
        return [one.logits for seed in range(2) for one in play(draft, seed, num_steps=7)]

    return list(run_ranks(thread_groups(config), run))


def same(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    assert len(one) == len(other) > 10
    return all(map(torch.equal, one, other))


@pytest.mark.parametrize("case", [case for case in CASES if case != SIX_HEADS])
def test_every_rank_has_the_logits_of_one_device(pair: Pair, case: str) -> None:
    (wanted,) = on_ranks(pair, case, 1, "bfloat16")
    for found in on_ranks(pair, case, 4, "bfloat16"):
        assert same(found, wanted)


def test_heads_that_do_not_divide_are_refused_with_what_would_fit(pair: Pair) -> None:
    groups = Groups.of_rank(0, ParallelConfig(tensor_parallel=4))
    with pytest.raises(ConfigError, match=r"6 query and 3 kv heads over 4 .* one of 1, 3, 6"):
        load(*pair(SIX_HEADS), groups=groups)


def test_planned_passes_have_the_bits_of_single_calls(pair: Pair) -> None:
    case = next(iter(CASES))
    planned, _ = on_ranks(pair, case, 2)
    with called_one_by_one(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(DFlashLlama3, "_planned", lambda self, kind: None)
        single, _ = on_ranks(pair, case, 2)
    assert same(planned, single)


def test_every_matrix_is_shared(pair: Pair) -> None:
    groups = Groups.of_rank(1, ParallelConfig(tensor_parallel=2))
    draft = load(*pair(next(iter(CASES))), backend=NATIVE, groups=groups)
    shapes, shards = draft.network.parameter_shapes(), draft.network.shards()
    matrices = {n for n, shape in shapes.items() if len(shape) == 2 and "k_norm" not in n}
    assert {name for name in shards if "bias" not in name} == matrices
    for name in matrices:
        held = shards[name].shape(shapes[name])
        assert 2 * held[0] * held[1] == shapes[name][0] * shapes[name][1], name


def test_keys_of_another_rank_are_seen(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    case, heads = next(iter(CASES)), network.heads_of_rank
    (wanted,) = on_ranks(pair, case, 1)

    def firsts(group: Any, *args: Any) -> Any:
        own, held = heads(group, *args)
        return own, range(len(held))

    monkeypatch.setattr(network, "heads_of_rank", firsts)
    assert not same(on_ranks(pair, case, 2)[0], wanted)


def test_a_context_of_its_own_way_is_refused(pair: Pair) -> None:
    class Own(ContextKV):
        def write(self, rows: torch.Tensor, *args: Any) -> None:
            super().write(rows.flip(-1), *args)

    draft = DFlashLlama3(draft_config(*pair(next(iter(CASES)))))
    draft.context.__class__ = Own
    groups = Groups.of_rank(0, ParallelConfig(tensor_parallel=2))
    with pytest.raises(ConfigError, match=r"context \(Own\) cannot be split .* `write` of its own"):
        draft.shard(groups)
