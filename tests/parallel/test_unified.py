"""Kimi K2.5 and its DFlash draft as one model, stepped on every rank with the same inputs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from kernels.native_cases import NATIVE, needs_library
from kimi_k25.test_kimi_k25_unified import Pair, Steps
from kimi_k25.towers import image
from parallel.test_bits import tiny
from pilotfish import LLM
from pilotfish.config import ParallelConfig
from pilotfish.parallel.group import Groups
from pilotfish.parallel.threads import run_ranks, thread_groups
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


def stepped(pair: Pair, config: ParallelConfig, temperature: float) -> Sequence[list[list[int]]]:
    """What every rank makes of the prompts."""

    def run(groups: Groups) -> list[list[int]]:
        model = UnifiedDflashKimiK25Model(
            pair.options(), pair.config(), NATIVE, device=torch.device("cpu")
        )
        model.shard(groups)
        one, two = open_checkpoint(str(pair.target)), open_checkpoint(str(pair.draft))
        model.load_model(one.weights(), two.weights())
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
