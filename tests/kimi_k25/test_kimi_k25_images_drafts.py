"""Every drafter beside images: the text of plain decoding, in chunks that cut them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kimi_k25.towers import VOCAB, image
from pilotfish import SamplingParams
from speculation.pairs import Shelf, registry

PARAMS = [
    SamplingParams(max_tokens=12, seed=seed, temperature=temperature, ignore_eos=True)
    for seed, temperature in enumerate((0.0, 0.8, 1.2))
]
DRAFTERS = ("eagle-1", "eagle-3", "dflash", "ngram", "small model")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"), registry())


@pytest.fixture(scope="module")
def with_images(shelf: Shelf) -> tuple[Path, list[dict[str, Any]], list[Any]]:
    """The kit's tiny Kimi, prompts of images and text for it, and its plain answers."""
    target = shelf.target("KimiK25ForConditionalGeneration", "whole")
    with shelf.llm(target, None, "float32") as llm:
        processor = llm.engine.runner.model.config.image_processor
        pixels = [image(60, 40), image(30, 30), image(20, 90)]
        a, b, c = (processor.preprocess(one) for one in pixels)
        placeholder = processor.placeholder_token_id
        assert placeholder < VOCAB
        prompts: list[dict[str, Any]] = [
            {"prompt": [3, placeholder, 5, 5, placeholder, 6], "images": [a, b]},
            {"prompt": [7, 8, 9] * 4, "images": []},
            {"prompt": [placeholder, 3, placeholder, 3, 7], "images": [c, c]},
        ]
        return target, prompts, [o.token_ids for o in llm.generate(prompts, PARAMS)]


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_drafter_changes_no_text_beside_images(
    drafter: str, shelf: Shelf, with_images: tuple[Path, list[dict[str, Any]], list[Any]]
) -> None:
    """Chunks of 13 rows cut the images, and 24 pages of 4 tokens make requests wait or go."""
    target, prompts, wanted = with_images
    with shelf.llm(target, drafter, "float32") as llm:
        for _ in range(2):
            outputs = llm.generate(prompts, PARAMS)
            assert [output.token_ids for output in outputs] == wanted
        if drafter != "ngram":
            assert all(output.speculative["drafted"] > 0 for output in outputs)  # type: ignore[index]
