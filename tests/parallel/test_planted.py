"""Each mistake of splitting turns the comparison of ranks red."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel.test_bits import REGISTRY, tiny
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.combine_rows import combine_rows
from pilotfish.layers import attention, experts_over_replicas, row_parallel, spread_experts
from pilotfish.layers.row_parallel import RowParallelLinear
from pilotfish.parallel import reduction
from pilotfish.parallel.collectives import all_gather, all_to_all_rows
from pilotfish.parallel.group import Group
from pilotfish.testing.outcome import Broken
from pilotfish.testing.promises.ranks import any_number_of_ranks_gives_the_same_bits
from pilotfish.testing.subject import Subject

heads_of_rank, shared = attention.heads_of_rank, Group.share


def in_ring_order(group: Group, terms: Sequence[torch.Tensor], num_slices: int) -> torch.Tensor:
    """What an all-reduce over a ring adds: from one rank to the next, from left to right."""
    own = terms[0]
    for term in terms[1:]:
        own = own + term
    parts = list(all_gather(group, own))
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return whole


def off_by_one(group: Group, heads: int, kv_heads: int, name: str) -> tuple[range, range]:
    own, kv = heads_of_rank(group, heads, kv_heads, name)
    shift = 1 if own.start else 0
    return range(own.start - shift, own.stop - shift), kv


def repeated_in_turns(group: Group, heads: int, kv_heads: int, name: str) -> tuple[range, range]:
    own, kv = heads_of_rank(group, heads, kv_heads, name)
    return own, kv if kv_heads % group.size == 0 else range(
        group.rank % kv_heads, group.rank % kv_heads + 1
    )


def bias_on_every_rank(layer: RowParallelLinear, terms: list[torch.Tensor]) -> torch.Tensor:
    if layer.bias is not None:
        terms[0].add_(layer.bias.float())
    return reduction.all_reduce(layer.group, terms, layer.num_slices)


def experts_by_rank(group: Group, x: torch.Tensor) -> Sequence[torch.Tensor]:
    parts = list(all_gather(group, x))
    return parts[group.rank :] + parts[: group.rank]


def rows_rotated(
    group: Group, x: torch.Tensor, sent: Sequence[int], received: Sequence[int]
) -> torch.Tensor:
    parts = all_to_all_rows(group, x, sent, received).split(list(received))
    return torch.cat([*parts[group.rank :], *parts[: group.rank]])


def rank_by_rank(
    x: torch.Tensor,
    places: torch.Tensor,
    weights: torch.Tensor,
    last: torch.Tensor | None,
    backend: KernelBackend,
) -> torch.Tensor:
    """Each rank's results are summed, and the sums are added."""
    own = combine_rows(x, places[:, :1], weights[:, :1], backend=backend)
    return own + combine_rows(x, places[:, 1:], weights[:, 1:], last, backend=backend)


PLANTED: dict[str, tuple[str, Any, str, Callable[..., Any]]] = {
    "an all-reduce in ring order": (
        "LlamaForCausalLM",
        row_parallel,
        "all_reduce",
        in_ring_order,
    ),
    "a slice of heads off by one": (
        "LlamaForCausalLM",
        attention,
        "heads_of_rank",
        off_by_one,
    ),
    "a kv head repeated wrongly": (
        "LlamaForCausalLM",
        attention,
        "heads_of_rank",
        repeated_in_turns,
    ),
    "a bias added on every rank": (
        "biased",
        RowParallelLinear,
        "_whole",
        bias_on_every_rank,
    ),
    "experts put together by rank": (
        "DeepseekV3ForCausalLM",
        spread_experts,
        "all_gather",
        experts_by_rank,
    ),
    "results of replicas' experts put together by rank": (
        "DeepseekV3ForCausalLM",
        experts_over_replicas,
        "all_to_all_rows",
        rows_rotated,
    ),
    "results of replicas' experts summed rank by rank": (
        "DeepseekV3ForCausalLM",
        experts_over_replicas,
        "combine_rows",
        rank_by_rank,
    ),
}


@pytest.fixture
def subject_of(tmp_path: Path) -> Callable[[str], Subject]:
    def make(architecture: str) -> Subject:
        if architecture == "biased":
            model = tiny("LlamaForCausalLM", tmp_path, attention_bias=True, mlp_bias=True)
        else:
            model = tiny(architecture, tmp_path)
        return Subject(
            name=architecture,
            model=str(model),
            registry=REGISTRY,
            dtypes=("float32",),
            device="cpu",
            backend="native",
            num_threads=1,
        )

    return make


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(
    bug: str, subject_of: Callable[[str], Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture, where, name, wrong = PLANTED[bug]
    with subject_of(architecture) as subject:
        any_number_of_ranks_gives_the_same_bits(subject)
        monkeypatch.setattr(where, name, wrong)
        with pytest.raises(Broken):
            any_number_of_ranks_gives_the_same_bits(subject)
