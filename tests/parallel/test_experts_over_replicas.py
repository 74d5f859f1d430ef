"""Experts that replicas share: every row has the bits of one device, whoever is idle meanwhile."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_k25 import cases
from parallel import own_models as own
from parallel.parallel_sessions import prepare_rank
from parallel.replica_ranks import Arrival, alone, served
from parallel.test_bits import tiny
from pilotfish.batch import RequestContext
from pilotfish.config import ParallelConfig
from pilotfish.errors import ConfigError
from pilotfish.parallel.group import Groups
from pilotfish.parallel.threads import OtherRankFailedError, run_ranks, thread_groups
from pilotfish.plugins import load_registry
from pilotfish.protocols import ModelInputs
from pilotfish.testing.session import Session

REGISTRY = load_registry()
EXPERTS = "DeepseekV3ForCausalLM"
NUM_CHOSEN = 3
"""Experts of a row of the tiny model."""


def text(length: int, seed: int = 0) -> list[int]:
    drawn = random.Random(seed)
    return [drawn.randrange(90) for _ in range(length)]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("replicas")
    return cache(lambda architecture: tiny(architecture, folder))


def check(
    model: Path,
    sizes: tuple[int, int, int],
    lengths: Sequence[tuple[int, int, bool]],
    **options: Any,
) -> None:
    """sizes: replicas, ranks of each, ranks that share experts. lengths: of requests, each with the
    replica that gets it and whether all have left before.
    """
    replicas, ranks, experts = sizes
    seed = options.pop("seed", 0)
    config = ParallelConfig(data_parallel=replicas, tensor_parallel=ranks, expert_parallel=experts)
    arrivals = [
        Arrival(place % replicas, text(length, seed + number), waits)
        for number, (place, length, waits) in enumerate(lengths)
    ]
    found = served(model, config, arrivals, seed=seed, **options)
    for name, logits in alone(model, ranks, arrivals, **options).items():
        assert torch.equal(found[name], logits), name


@pytest.mark.parametrize(("sizes", "dtype"), [((2, 1, 2), "bfloat16"), ((2, 2, 4), "float32")])
def test_logits_are_those_of_one_device(
    shelf: Callable[[str], Path], sizes: tuple[int, int, int], dtype: str
) -> None:
    lengths = [(0, 9, False), (1, 30, False), (0, 1, False), (0, 14, True), (1, 3, False)]
    check(shelf(EXPERTS), sizes, lengths, dtype=dtype)


@pytest.mark.slow
@settings(max_examples=25)
@given(
    architecture=st.sampled_from((EXPERTS, "KimiK25ForConditionalGeneration")),
    dtype=st.sampled_from(("float32", "bfloat16")),
    sizes=st.sampled_from(((2, 1, 2), (2, 2, 4), (4, 1, 4), (4, 1, 2), (2, 4, 8))),
    lengths=st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 30), st.booleans()), min_size=1, max_size=6
    ),
    seed=st.integers(0, 99),
)
def test_logits_are_those_of_one_device_whoever_is_idle(
    shelf: Callable[[str], Path], *, architecture: str, **drawn: Any
) -> None:
    check(shelf(architecture), **drawn)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_on_torch_are_those_of_one_device(shelf: Callable[[str], Path], dtype: str) -> None:
    """Of one rank each, whose products are cut nowhere; experts' rows are padded by each rank."""
    config = ParallelConfig(data_parallel=2, expert_parallel=2)
    arrivals = [Arrival(number % 2, text(5 + 9 * number, number)) for number in range(3)]
    options = {"dtype": dtype, "backend": "torch"}
    found = served(shelf(EXPERTS), config, arrivals, **options)
    for name, logits in alone(shelf(EXPERTS), 1, arrivals, **options).items():
        assert torch.equal(found[name], logits), name


def test_packed_experts_are_shared_too(tmp_path: Path) -> None:
    """INT4: the published format of Kimi K2.5."""
    plain = tiny(EXPERTS, tmp_path, moe_intermediate_size=32)
    tensors = cases.packed(cases.tensors_of(plain))
    model = cases.with_tensors(
        plain, tmp_path / "packed", tensors, quantization_config=cases.PACKED
    )
    config = ParallelConfig(data_parallel=2, tensor_parallel=2, expert_parallel=4)
    arrivals = [Arrival(number % 2, text(4 + 5 * number, number)) for number in range(3)]
    found = served(model, config, arrivals, dtype="bfloat16")
    for name, logits in alone(model, 2, arrivals, dtype="bfloat16").items():
        assert torch.equal(found[name], logits), name


def test_a_replica_that_is_idle_for_long_is_no_hindrance(shelf: Callable[[str], Path]) -> None:
    """All requests but the last go to one of them."""
    config = ParallelConfig(data_parallel=2, expert_parallel=2)
    arrivals = [Arrival(0, text(20, number), waits=number == 3) for number in range(5)]
    arrivals.append(Arrival(1, text(7, 9), waits=True))
    found = served(shelf(EXPERTS), config, arrivals)
    for name, logits in alone(shelf(EXPERTS), 1, arrivals).items():
        assert torch.equal(found[name], logits), name


# A round that all know of: its inputs say how many requests each replica has


def on_replicas(
    model: Path, config: ParallelConfig, work: Callable[[Session], Any], **options: Any
) -> list[Any]:
    """What `work` gives on every rank."""

    def run(groups: Groups) -> Any:
        prepared = prepare_rank(model, config, groups, registry=REGISTRY, **options)
        return work(Session(prepared.model, prepared.load()))

    return run_ranks(thread_groups(config), run)


def inputs_of(session: Session, batches: Sequence[Sequence[str]]) -> ModelInputs:
    """Of all rows of the named requests of every replica, which all ranks know."""
    model: Any = session.model
    data = model.groups.data
    own = [name for batch in batches for name in batch] if data.is_alone else batches[data.rank]
    kv = None
    if own:
        rows = {name: session.left(name) for name in own}
        kv = session.inputs(rows).kv_cache_inputs
    others = RequestContext(request_id="another's", tokens=[1], num_scheduled=1)
    contexts = [[session.contexts.get(name, others) for name in batch] for batch in batches]
    made: ModelInputs = model.prepare_initial_token_inputs(
        contexts, kv, [len(TEXTS[name]) for name in own]
    )
    return made


TEXTS = {"a": text(9, 1), "b": text(4, 2), "c": text(17, 3)}
ROUNDS = ([["a"], []], [[], ["b", "c"]], [["b"], ["a"]])
"""Requests of each replica, round by round."""


def rounds(session: Session) -> list[torch.Tensor]:
    """The logits of this replica's requests in every round."""
    model: Any = session.model
    found, data = [], model.groups.data
    for batches in ROUNDS:
        own = [n for batch in batches for n in batch] if data.is_alone else batches[data.rank]
        session.add_all({name: TEXTS[name] for name in own})
        inputs = inputs_of(session, batches)
        splits = [0, len(batches[0]), sum(map(len, batches))]
        assert inputs.data_parallel_splits is not None
        assert inputs.data_parallel_splits.tolist() == splits
        outputs = session.execute(inputs)
        assert outputs.logit_offsets.shape == (len(own) + 1,)
        found.append(outputs.logits.clone())
        for name in own:
            session.drop(name)
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_replica_batches_are_packed_by_their_replicas(
    shelf: Callable[[str], Path], ranks: int
) -> None:
    """An empty one is an idle round; a model alone packs them one after the other."""
    alone_too = ParallelConfig(reduction_slices=ranks)
    (wanted,) = on_replicas(shelf(EXPERTS), alone_too, rounds)
    config = ParallelConfig(data_parallel=2, tensor_parallel=ranks, expert_parallel=2 * ranks)
    found = on_replicas(shelf(EXPERTS), config, rounds)
    for number, (logits, batches) in enumerate(zip(wanted, ROUNDS, strict=True)):
        parts = [found[place * ranks][number] for place in range(2)]
        assert torch.equal(torch.cat(parts), logits), batches


def test_batches_and_splits_that_do_not_fit_are_told(shelf: Callable[[str], Path]) -> None:
    config = ParallelConfig(data_parallel=2, expert_parallel=2)
    groups = Groups.of_rank(1, config)
    model: Any = prepare_rank(shelf(EXPERTS), config, groups, registry=REGISTRY).model
    one = RequestContext(request_id="a", tokens=[1, 2], num_scheduled=2)
    assert model.prepare_initial_token_inputs([[one]]).data_parallel_splits is None
    for batches in ([], [[one]] * 3):
        with pytest.raises(ValueError, match="replica batches; wanted 1 or 2"):
            model.prepare_initial_token_inputs(batches)
    made = model.prepare_initial_token_inputs([[], [one]])
    for splits in ([1, 2], [0, 2, 1], [0]):
        with pytest.raises(ValueError, match="never fall"):
            attrs.evolve(made, data_parallel_splits=torch.tensor(splits))
    wrong = attrs.evolve(made, data_parallel_splits=torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="inputs are of 1 requests of replica 1 of 2"):
        model.begin_round(wrong)
    with pytest.raises(ValueError, match="B >= 1"):
        attrs.evolve(model.prepare_initial_token_inputs([[one], []]), data_parallel_splits=None)


def test_what_a_pass_raises_in_its_replica_is_raised(shelf: Callable[[str], Path]) -> None:
    """The other one stands in an exchange, and is let go as the first one ends."""

    def run(session: Session) -> None:
        model: Any = session.model
        is_first = model.groups.data.rank == 0
        session.add("a", [1, 10**6] if is_first else [1, 2])
        with pytest.raises(IndexError if is_first else OtherRankFailedError) as raised:
            session.run({"a": 2})
        raise raised.value

    config = ParallelConfig(data_parallel=2, expert_parallel=2)
    with pytest.raises(IndexError):
        on_replicas(shelf(EXPERTS), config, run)


# What is counted


@pytest.mark.parametrize("ranks", [1, 2])
def test_loads_are_those_of_all_replicas(shelf: Callable[[str], Path], ranks: int) -> None:
    def counted(session: Session) -> dict[str, list[int]]:
        model: Any = session.model
        assert model.expert_loads() == {}
        rounds(session)
        model.count_expert_loads()
        rounds(session)
        return {name: loads.tolist() for name, loads in model.expert_loads().items()}

    (wanted,) = on_replicas(shelf(EXPERTS), ParallelConfig(reduction_slices=ranks), counted)
    num_rows = sum(len(TEXTS[name]) for batches in ROUNDS for batch in batches for name in batch)
    assert {sum(loads) for loads in wanted.values()} == {num_rows * NUM_CHOSEN}
    assert len(wanted) == 1
    config = ParallelConfig(data_parallel=2, tensor_parallel=ranks, expert_parallel=2 * ranks)
    assert on_replicas(shelf(EXPERTS), config, counted) == [wanted] * 2 * ranks
    within = ParallelConfig(tensor_parallel=2, reduction_slices=2)
    if ranks == 2:
        assert on_replicas(shelf(EXPERTS), within, counted) == [wanted] * 2


# What is refused before weights are read


@pytest.mark.parametrize(
    ("architecture", "fields", "told"),
    [
        (
            EXPERTS,
            {"data_parallel": 3, "expert_parallel": 3},
            r"8 experts over 3 ranks; with .*, data_parallel=3 wanted expert_parallel one of 1$",
        ),
        (
            EXPERTS,
            {"data_parallel": 6, "tensor_parallel": 2, "expert_parallel": 12},
            r"one of 1, 2, 4$",
        ),
        (
            "LlamaForCausalLM",
            {"data_parallel": 2, "expert_parallel": 2},
            r"Decoder has no experts of the library's .* at most 1$",
        ),
    ],
)
def test_experts_that_replicas_cannot_share_are_refused(
    architecture: str, fields: dict[str, int], told: str, shelf: Callable[[str], Path]
) -> None:
    config = ParallelConfig(**fields)
    with pytest.raises(ConfigError, match=told):
        prepare_rank(shelf(architecture), config, Groups.of_rank(0, config), registry=REGISTRY)


@pytest.mark.parametrize(
    "fields",
    [
        {"expert_parallel": 2},
        {"data_parallel": 3, "expert_parallel": 2},
        {"data_parallel": 4, "tensor_parallel": 2, "expert_parallel": 6},
    ],
)
def test_ranks_that_do_not_divide_are_told(fields: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"expert_parallel is .* wanted a divisor of"):
        ParallelConfig(**fields)


def test_a_mixture_of_ones_own_is_refused_by_name(shelf: Callable[[str], Path]) -> None:
    """Rows and results are the library's matter; within a replica all rows are there."""
    served = own.registry(EXPERTS, own.WithOwnMixture)
    over = ParallelConfig(data_parallel=2, expert_parallel=2)
    with pytest.raises(ConfigError, match=r"mlp \(DoubledMixture\) .* `__call__` of its own"):
        prepare_rank(shelf(EXPERTS), over, Groups.of_rank(0, over), registry=served)
    within = ParallelConfig(tensor_parallel=2)
    prepare_rank(shelf(EXPERTS), within, Groups.of_rank(0, within), registry=served)
    alike = own.registry(EXPERTS, own.WithOwnExperts)
    with pytest.raises(ConfigError, match=r"experts \(DoubledExperts\) .* not the library's"):
        prepare_rank(shelf(EXPERTS), over, Groups.of_rank(0, over), registry=alike)
