"""What a plan says that ranks tell one another is what they do, call for call and to the byte."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from parallel.parallel_sessions import prepare_rank
from parallel.test_bits import ARCHITECTURES, REGISTRY, tiny
from pilotfish.config import ParallelConfig
from pilotfish.layers.row_parallel import RowParallelLinear
from pilotfish.loading.prepared import Prepared
from pilotfish.parallel import reduction
from pilotfish.parallel.gloo import Gloo
from pilotfish.parallel.group import Groups
from pilotfish.parallel.threads import ThreadTransport, run_ranks, thread_groups
from pilotfish.parallel.traffic import Collective, PassRows
from pilotfish.testing.session import Session

Took = list[tuple[str, int]]
PASSES = ((3, 1), (3, 3), (1, 1), (7, 0), (12, 5), (16, 16))
"""Rows of a pass, and those whose logits are wanted."""


def run_passes(prepared: Prepared, after: Callable[[int, int], None]) -> None:
    """after: called with the rows and logit rows of each pass."""
    session, drawn = Session(prepared.model, prepared.load()), random.Random(3)
    for number, (rows, logit_rows) in enumerate(PASSES):
        session.add(str(number), [drawn.randrange(90) for _ in range(rows)])
        session.run({str(number): rows}, wanted={str(number): logit_rows})
        after(rows, logit_rows)


def calls_of(groups: Groups) -> Took:
    """What both groups' transports carried since they were last asked."""
    found: Took = []
    for group in (groups.tensor, groups.expert):
        assert isinstance(group.transport, ThreadTransport)
        found += group.transport.calls
        group.transport.calls.clear()
    return found


def mismatch(made: list[Collective], took: Took) -> str:
    """ "" where a pass said what was planned. Groups are told apart by nothing: order is free."""
    if len(made) != len(took):
        return f"{len(made)} calls planned, {len(took)} made"
    fixed = Counter((one.name, one.most) for one in made if one.least == one.most)
    routed = Counter(took)
    routed.subtract(fixed)
    if min(routed.values()) < 0:
        return f"planned {fixed}, made {Counter(took)}"
    bounds = [one for one in made if one.least < one.most]
    for name, num_bytes in routed.elements():
        if not any(one.name == name and one.least <= num_bytes <= one.most for one in bounds):
            return f"{name} of {num_bytes} bytes; planned {bounds}"
    return ""


@pytest.mark.parametrize(
    ("size", "slices", "experts", "dtype"),
    [
        pytest.param(2, 4, None, "float32", marks=pytest.mark.slow),
        (4, 4, None, "bfloat16"),
        (4, 4, 2, "float32"),
        pytest.param(2, 2, 1, "bfloat16", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_passes_say_what_was_planned(
    *,
    architecture: str,
    size: int,
    slices: int,
    experts: int | None,
    dtype: str,
    tmp_path: Path,
) -> None:
    config = ParallelConfig(tensor_parallel=size, reduction_slices=slices, expert_parallel=experts)
    check_passes(tiny(architecture, tmp_path), config, dtype)


@pytest.mark.parametrize(("size", "replicas", "dtype"), [(1, 2, "bfloat16"), (2, 2, "float32")])
def test_rows_that_go_to_other_replicas_are_as_many_as_was_planned(
    size: int, replicas: int, dtype: str, tmp_path: Path
) -> None:
    config = ParallelConfig(
        tensor_parallel=size, data_parallel=replicas, expert_parallel=size * replicas
    )
    check_passes(tiny("DeepseekV3ForCausalLM", tmp_path), config, dtype)


@pytest.mark.parametrize(("size", "slices"), [(2, 6), (4, 12)])
def test_slices_that_are_no_node_of_the_tree_are_sent_one_by_one(
    size: int, slices: int, tmp_path: Path
) -> None:
    model = tiny("LlamaForCausalLM", tmp_path, head_dim=12)
    check_passes(model, ParallelConfig(tensor_parallel=size, reduction_slices=slices))


@pytest.mark.parametrize(("size", "slices"), [(4, 4), (4, 12)])
def test_sums_that_are_joined_in_parts_take_two_calls(
    size: int, slices: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reduction, "PARTED_BYTES", 0)
    model = tiny("LlamaForCausalLM", tmp_path, head_dim=12)
    check_passes(model, ParallelConfig(tensor_parallel=size, reduction_slices=slices))


def check_passes(model: Path, config: ParallelConfig, dtype: str = "float32") -> None:
    def run(groups: Groups) -> list[str]:
        prepared = prepare_rank(model, config, groups, registry=REGISTRY, dtype=dtype)
        found: list[str] = []

        def after(rows: int, logit_rows: int) -> None:
            made = prepared.share.collectives(rows, logit_rows)
            if all(one.least == one.most for one in made):
                took = calls_of(groups)
                found.append("" if [(o.name, o.most) for o in made] == took else f"{made} {took}")
            else:
                found.append(mismatch(made, calls_of(groups)))

        calls_of(groups)
        run_passes(prepared, after)
        return found

    for found in run_ranks(thread_groups(config), run):
        assert found == [""] * len(PASSES)


@pytest.mark.parametrize(
    ("architecture", "size"),
    [("LlamaForCausalLM", 4), ("DeepseekV3ForCausalLM", 4), ("DeepseekV3ForCausalLM", 2)],
)
def test_gloo_sends_what_was_planned(architecture: str, size: int, tmp_path: Path) -> None:
    """Of four ranks: of one replica, or of two that share their experts."""
    model = tiny(architecture, tmp_path)
    config = ParallelConfig(tensor_parallel=size, data_parallel=4 // size, expert_parallel=4)
    ranks, store = [Groups.of_rank(rank, config) for rank in range(4)], dist.HashStore()

    def run(groups: Groups) -> None:
        rank, name = groups.tensor.rank, f"tensor {groups.data.rank}"
        tensor = groups.tensor.transport = Gloo(store, name, rank, size, timeout_s=20.0)
        expert = groups.expert.transport = Gloo(store, "expert", groups.number, 4, timeout_s=20.0)
        prepared = prepare_rank(model, config, groups, registry=REGISTRY)

        def after(rows: int, logit_rows: int) -> None:
            made, sent = prepared.share.collectives(rows, logit_rows), tensor.sent + expert.sent
            for name in ("all_gather", "all_to_all_rows", "gather"):
                mine = [one for one in made if one.name == name]
                assert sent[f"{name} calls"] == len(mine)
                least, most = (sum(one.sent[i] for one in mine) for i in (0, 1))
                is_root = name == "gather" and rank == 0
                low, high = (0, 0) if is_root else (least, most)
                assert low <= sent[f"{name} bytes"] <= high
            tensor.sent.clear()
            expert.sent.clear()

        run_passes(prepared, after)
        tensor.close()
        expert.close()

    run_ranks(ranks, run)


def test_a_call_that_is_not_planned_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison can fail: a layer that says half of its bytes, or nothing."""
    model, config = tiny("LlamaForCausalLM", tmp_path), ParallelConfig(tensor_parallel=2)

    def run(groups: Groups) -> set[str]:
        prepared, found = prepare_rank(model, config, groups, registry=REGISTRY), set[str]()
        calls_of(groups)
        run_passes(
            prepared,
            lambda rows, r: found.add(
                mismatch(prepared.share.collectives(rows, r), calls_of(groups))
            ),
        )
        return found

    assert run_ranks(thread_groups(config), run) == [{""}] * 2
    right = RowParallelLinear.collectives
    wrong: list[Callable[..., tuple[Collective, ...]]] = [
        lambda self, run: (),
        lambda self, run: (
            right(self, PassRows(run.rows, 1, 2))
            and (Collective.of("all_gather", 2, right(self, run)[0].most // 2),)
        ),
    ]
    for said in wrong:
        monkeypatch.setattr(RowParallelLinear, "collectives", said)
        for found in run_ranks(thread_groups(config), run):
            assert "" not in found


def test_bytes_of_a_collective() -> None:
    both = Collective("all_gather", 4, 10, 30)
    assert (both.sent, both.received) == ((30, 90), (30, 90))
    one = Collective.of("gather", 4, 10)
    assert (one.sent, one.received) == ((10, 10), (30, 30))
