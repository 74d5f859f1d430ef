"""Kimi K2.5 and its DFlash draft as one model, stepped on every rank with the same inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from kernels.native_cases import NATIVE, needs_library
from kimi_k25.test_kimi_k25_unified import Pair, Steps
from kimi_k25.towers import image
from parallel.test_bits import tiny
from pilotfish import LLM
from pilotfish.batch import RequestContext
from pilotfish.config import ParallelConfig
from pilotfish.parallel.collectives import all_gather
from pilotfish.parallel.group import Groups
from pilotfish.parallel.threads import run_ranks, thread_groups
from pilotfish.speculation.unified import UnifiedInputs
from pilotfish.speculation.unified.inputs import NOTHING
from pilotfish.weights import open_checkpoint
from pilotfish_kimi_k25.unified import UnifiedDflashKimiK25Model
from speculation.pairs import Shelf, registry

pytestmark = needs_library


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("unified")
    target = tiny("KimiK25ForConditionalGeneration", folder)
    draft = Shelf(folder, registry()).draft("dflash")
    assert draft is not None
    with LLM(str(target), dtype="float32") as llm:
        processor = llm.engine.runner.model.config.image_processor
        images = [processor.preprocess(image(*size)) for size in [(60, 40), (30, 70)]]
        token = processor.placeholder_token_id
    prompts = [
        {"prompt": [3, 4, token, 5, token, 6, 7], "images": images},
        {"prompt": [1, 2, 3, 4, 5, 6, 7, 8, 9], "images": []},
    ]
    return Pair(target, draft, prompts)


def loaded(pair: Pair, groups: Groups) -> UnifiedDflashKimiK25Model:
    model = UnifiedDflashKimiK25Model(
        pair.options(), pair.config(), NATIVE, device=torch.device("cpu")
    )
    model.shard(groups)
    one, two = open_checkpoint(str(pair.target)), open_checkpoint(str(pair.draft))
    model.load_model(one.weights(), two.weights())
    return model


def stepped(pair: Pair, config: ParallelConfig, temperature: float) -> Sequence[list[list[int]]]:
    """What every rank makes of the prompts."""

    def run(groups: Groups) -> list[list[int]]:
        model = loaded(pair, groups)
        steps = Steps(model, pair.placed(model), temperature, chunk=5)
        while min(map(len, steps.answers())) < 10:
            steps.run()
        assert steps.num_drafted > 20
        return [answer[:10] for answer in steps.answers()]

    return run_ranks(thread_groups(config), run)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_every_rank_makes_the_text_of_one_device(pair: Pair, temperature: float) -> None:
    """Four ranks share heads and vocabulary, and two by two the experts."""
    (wanted,) = stepped(pair, ParallelConfig(reduction_slices=4), temperature)
    for experts in (1, 2, 4):
        config = ParallelConfig(tensor_parallel=4, expert_parallel=experts)
        assert list(stepped(pair, config, temperature)) == [wanted] * 4


class OfAllReplicas:
    """The model of one replica, whose inputs are made of the batches of all."""

    def __init__(self, model: UnifiedDflashKimiK25Model) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def batches(self, own: Sequence[RequestContext]) -> list[Sequence[RequestContext]]:
        """Every replica's, once each has said how many requests it has."""
        data, size = self._model.groups.data, self._model.signal_buffers.size
        told = [int(one) for one in all_gather(self._model.ep_inputs, torch.tensor(len(own)))]
        others = RequestContext(request_id="another's", tokens=[1], num_scheduled=1)
        return [
            own if place == data.rank else [others] * count
            for place, count in enumerate(told[::size])
        ]

    def prepare_initial_token_inputs(
        self, batches: Sequence[Sequence[RequestContext]], *args: Any, **fields: Any
    ) -> UnifiedInputs:
        made = self._model.prepare_initial_token_inputs(self.batches(batches[0]), *args, **fields)
        assert made.data_parallel_splits is not None
        assert made.num_requests == len(batches[0])
        return made

    def be_idle(self) -> None:
        """Without requests, until no replica has any."""
        while any(batches := self.batches(())):
            inputs = self._model.prepare_initial_token_inputs(batches)
            assert self._model.execute(inputs) == NOTHING


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_replicas_make_the_texts_of_one_device(pair: Pair, temperature: float) -> None:
    """Two replicas of two ranks, experts over all four; one has images, the other more steps."""
    (wanted,) = stepped(pair, ParallelConfig(reduction_slices=2), temperature)
    config = ParallelConfig(data_parallel=2, tensor_parallel=2, expert_parallel=4)

    def run(groups: Groups) -> list[int]:
        model = OfAllReplicas(loaded(pair, groups))
        own, length = model.groups.data.rank, 10
        steps = Steps(model, [pair.placed(model)[own]], temperature, chunk=5)  # type: ignore[arg-type]
        while len(steps.answers()[0]) < length:
            steps.run()
        model.be_idle()
        assert steps.num_drafted > 5
        assert (model.signal_buffers.size, model.ep_inputs.size) == (2, 4)
        return steps.answers()[0][:length]

    first, second = wanted
    assert run_ranks(thread_groups(config), run) == [first, first, second, second]


def test_splits_follow_the_drafted_rows_to_the_target(pair: Pair) -> None:
    """Inputs of one newest token are of as many requests."""
    config = ParallelConfig(data_parallel=2, expert_parallel=2)
    model = UnifiedDflashKimiK25Model(
        pair.options(), pair.config(), NATIVE, device=torch.device("cpu")
    )
    model.shard(Groups.of_rank(1, config))
    one = RequestContext(request_id="0", tokens=[1, 2, 3], num_scheduled=3)
    made = model.prepare_initial_token_inputs([[], [one, one]])
    after = model.prepare_next_token_inputs(torch.tensor([5, 6]), made)
    for inputs in (made, after):
        assert inputs.data_parallel_splits is not None
        assert inputs.data_parallel_splits.tolist() == [0, 0, 2]
        assert any(one is inputs.data_parallel_splits for one in inputs.buffers)
    with pytest.raises(ValueError, match="3 replica batches; wanted 1 or 2"):
        model.prepare_initial_token_inputs([[one]] * 3)


def test_the_seeds_names_of_groups(pair: Pair) -> None:
    """What ranks tell one another goes through the model's groups, the target's too."""
    config = ParallelConfig(data_parallel=2, tensor_parallel=2, expert_parallel=4)
    model = UnifiedDflashKimiK25Model(
        pair.options(), pair.config(), NATIVE, device=torch.device("cpu")
    )
    assert model.signal_buffers.is_alone
    assert model.ep_inputs.is_alone
    groups = Groups.of_rank(3, config)
    model.shard(groups)
    for one in (model, model.target):
        assert getattr(one, "signal_buffers") is groups.tensor  # noqa: B009
        assert getattr(one, "ep_inputs") is groups.expert  # noqa: B009
