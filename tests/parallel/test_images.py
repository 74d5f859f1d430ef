"""Images on several ranks: rank 0 encodes them, and every rank has their rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from parallel.test_bits import REGISTRY, tiny
from parallel.thread_ranks import ranks_are_threads
from pilotfish import CacheConfig, SamplingParams
from pilotfish.testing.subject import Subject

ARCHITECTURE = "KimiK25ForConditionalGeneration"
PARAMS = [SamplingParams(temperature=t, seed=3, max_tokens=9, ignore_eos=True) for t in (0.0, 0.8)]


def prompts(subject: Subject) -> list[Any]:
    processor = subject.image_processor
    assert processor is not None
    found: list[Any] = [subject.tokens(7)]
    for number in (1, 2):
        tokens, images = subject.tokens(5, number), []
        for place in range(number):
            tokens += [processor.placeholder_token_id, *subject.tokens(3, 10 + place)]
            generator = torch.Generator().manual_seed(place)
            pixels = torch.randint(0, 256, (3, 30, 20 + 30 * place), generator=generator)
            images.append(processor.preprocess(pixels.to(torch.uint8)))
        found.append({"prompt": tokens, "images": images})
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_texts_with_images_are_those_of_one_device(tmp_path: Path, dtype: str) -> None:
    """In passes of few rows, which cut images, twice: the second time pages are there."""
    with Subject(
        name="kimi", model=str(tiny(ARCHITECTURE, tmp_path)), registry=REGISTRY
    ) as subject:
        asked = prompts(subject)
        options: dict[str, Any] = {
            "max_batch_tokens": 7,
            "cache": CacheConfig(page_size_tokens=4, num_pages=96, image_bytes=0),
            "device": "cpu",
        }

        def texts(**more: Any) -> list[list[int]]:
            with subject.llm(dtype, **options, **more) as llm:
                return [
                    list(out.token_ids)
                    for params in PARAMS * 2
                    for out in llm.generate(asked, params)
                ]

        wanted = texts(reduction_slices=4)
        with ranks_are_threads():
            for size in (2, 4):
                assert texts(tensor_parallel=size, reduction_slices=4) == wanted
