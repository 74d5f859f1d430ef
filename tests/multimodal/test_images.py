"""Images in prompts: their rows, their pages' keys, and every way in which one may be wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pilotfish import LLM, CacheConfig, MultimodalPrompt, SamplingParams
from pilotfish.batch import PlacedImage, RequestContext
from pilotfish.errors import ConfigError, PluginError, RequestError
from pilotfish.multimodal import files as image_files
from pilotfish.multimodal.admission import digest_of
from pilotfish.multimodal.embedding_cache import EmbeddingCache
from pilotfish.protocols import ImageFeatures
from pilotfish.registry import ArchitectureSpec
from pilotfish.state import MemoryPlan
from speculation.toy_draft import ToyDraft, ToyShiftedDraft, drafting
from support import forked
from support.engine_strategies import MAX_SEQ_LEN, params, sizes
from support.pictures import picture, wrong_images
from support.toy_images import (
    PLACEHOLDER,
    VIDEO,
    ImageToyEngine,
    ToyImageProcessor,
    seen_by,
    toy_image_registry,
    write_image_checkpoint,
)
from support.toy_model import naive_answer, toy_registry, write_toy_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


# What a request with images gives


@st.composite
def image_jobs(draw: st.DrawFn) -> list[tuple[MultimodalPrompt, SamplingParams]]:
    """Requests with up to three images; few different ones, so that requests share them."""
    jobs = []
    for _ in range(draw(st.integers(1, 5))):
        tokens = draw(st.sampled_from([[], [7] * 4, [7] * 5]))
        images: list[Image.Image] = []
        for _ in range(draw(st.integers(0, 3))):
            width, height = draw(st.sampled_from([(8, 8), (16, 8), (9, 17)]))
            images.append(picture(width, height, draw(st.integers(0, 1))))
            tail = st.lists(st.integers(97, 99), max_size=3)
            tokens = [*tokens, PLACEHOLDER, *draw(tail)]
        prompt = MultimodalPrompt(prompt=[*tokens, 97], images=images)
        jobs.append((prompt, draw(params(max_tokens=10))))
    return jobs


def check_mixture(work: list[Any], engine: ImageToyEngine) -> None:
    """Every request gets its naive answer, at once and again with every prefix cached."""
    for _ in range(2):
        requests = [engine.add(prompt, options) for prompt, options in work]  # type: ignore[arg-type]
        placed = [list(request.tokens) for request in requests]
        while engine.engine.has_work:
            engine.engine.step()
        engine.check_idle()
        for request, tokens, (_, options) in zip(requests, placed, work, strict=True):
            seen = seen_by(tokens, request.images)
            wanted = naive_answer(tokens, options, max_seq_len=MAX_SEQ_LEN, seen=seen)
            output = request.outbox[-1].output
            assert output is not None
            assert (list(output.token_ids), output.text, output.finish_reason) == wanted
            assert list(output.prompt_token_ids) == tokens


@settings(max_examples=50)
@given(work=image_jobs(), size=sizes())
def test_every_mixture_of_images_and_text_gives_each_its_naive_answer(
    work: list[Any], size: dict[str, Any]
) -> None:
    check_mixture(work, ImageToyEngine(**size))


@settings(max_examples=25)
@given(work=image_jobs(), size=sizes(), shifted=st.booleans(), wrong=st.sampled_from([0, 2, 3]))
def test_a_drafter_changes_no_text_with_images(
    work: list[Any], size: dict[str, Any], shifted: bool, wrong: int
) -> None:
    """One that reads tokens, blind to images, and one that reads the target's features."""
    proposer = (ToyShiftedDraft if shifted else ToyDraft)(wrong_one_in=wrong)
    check_mixture(work, ImageToyEngine(**size, drafting=drafting(proposer)))
    # The other one compares its rows with features, which of images are not hashes of tokens.
    assert shifted or proposer.broken == 0


def test_pools_so_small_that_images_are_preempted() -> None:
    engine = ImageToyEngine(
        num_pages=12, page_size=4, max_batch_tokens=3, max_batch_size=4, max_seq_len=MAX_SEQ_LEN
    )
    prompt = MultimodalPrompt(
        prompt=[PLACEHOLDER, 97, PLACEHOLDER], images=[picture(24, 16, 1)] * 2
    )
    long = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    check_mixture([(prompt, long)] * 4, engine)
    assert engine.scheduler.num_preemptions > 0


def test_images_share_pages_only_with_equal_ones() -> None:
    """Pitfall 7: a page's content is a function of its key, and the key holds the image."""
    engine = ImageToyEngine(page_size=4, max_batch_tokens=64, num_pages=64)
    prompt = [7, 7, PLACEHOLDER, *b"abcdefg"]
    one, other = picture(16, 16, 0), picture(16, 16, 1)
    found = []
    for image in (one, other, one, one.copy(), other):
        request = engine.add(MultimodalPrompt(prompt=prompt, images=[image]), GREEDY)  # type: ignore[arg-type]
        engine.engine.step()
        found.append(len(request.tokens) - sum(engine.model.passes[-1]) - 1)
        while engine.engine.has_work:
            engine.engine.step()
    # 13 tokens: three full pages, of which the first already holds two rows of the image
    assert found == [0, 0, 12, 12, 12]


def test_a_key_without_the_image_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def tokens_only(self: RequestContext, start: int, stop: int) -> list[int]:
        return self.tokens[start:stop]

    monkeypatch.setattr(RequestContext, "keys", tokens_only)
    jobs = [
        (MultimodalPrompt(prompt=[PLACEHOLDER, *b"abcde"], images=[picture(16, 16, seed)]), GREEDY)
        for seed in (0, 1)
    ]
    with pytest.raises(AssertionError):
        check_mixture(jobs, ImageToyEngine(max_batch_size=1, max_seq_len=MAX_SEQ_LEN))


def test_keys_are_hashes_in_an_images_rows_and_ids_elsewhere() -> None:
    features = ImageFeatures(pixel_values=torch.zeros(2, 1), grid_thw=(1, 1, 2))
    image = PlacedImage(features=features, digest=digest_of(features), start=2, num_tokens=2)
    context = RequestContext(request_id="a", tokens=[5, 6, 35, 35, 7], images=(image,))
    assert context.keys(0, 5) == [5, 6, image.key, image.key, 7]
    assert context.keys(3, 9) == [image.key, 7]
    assert context.keys(3, 3) == []
    assert image.key >= 1 << 256


def test_the_hash_is_of_what_the_tower_reads() -> None:
    pixels = torch.arange(8.0).view(4, 2)
    one = ImageFeatures(pixel_values=pixels, grid_thw=(1, 2, 2))
    assert digest_of(one) == digest_of(ImageFeatures(pixel_values=pixels + 0, grid_thw=(1, 2, 2)))
    others = [
        ImageFeatures(pixel_values=pixels, grid_thw=(1, 1, 4)),
        ImageFeatures(pixel_values=pixels.flip(0), grid_thw=(1, 2, 2)),
        ImageFeatures(pixel_values=pixels.view(2, 4), grid_thw=(1, 2, 2)),
        ImageFeatures(pixel_values=pixels.bfloat16(), grid_thw=(1, 2, 2)),
    ]
    assert len({digest_of(one), *map(digest_of, others)}) == 5


# The ways in


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write_image_checkpoint(tmp_path_factory.mktemp("seeing"))
    with LLM(str(folder), registry=toy_image_registry()) as found:
        yield found


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write_toy_checkpoint(tmp_path_factory.mktemp("blind"))
    with LLM(str(folder), registry=toy_registry()) as found:
        yield found


def test_an_image_may_be_a_path_a_pil_image_or_preprocessed(llm: LLM, tmp_path: Path) -> None:
    image = picture(20, 9)
    image.save(tmp_path / "it.png")
    pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
    features = ToyImageProcessor().preprocess(pixels)
    mapping = {"pixel_values": features.pixel_values, "image_grid_thw": torch.tensor([[1, 2, 3]])}
    forms: list[Any] = [str(tmp_path / "it.png"), tmp_path / "it.png", image, features, mapping]
    prompts = [{"prompt": "see # here", "images": [form]} for form in forms]
    outputs = llm.generate(prompts, GREEDY)
    assert len({tuple(output.token_ids) for output in outputs}) == 1
    assert all(output.prompt_token_ids.count(PLACEHOLDER) == 6 for output in outputs)
    record = MultimodalPrompt(prompt="see # here", images=[image])
    assert llm.generate(record, GREEDY)[0].token_ids == outputs[0].token_ids
    assert [d.output for d in llm.stream(record, GREEDY)][-1].token_ids == outputs[0].token_ids  # type: ignore[union-attr]
    assert llm.score(record).shape[0] == len(outputs[0].prompt_token_ids)


def test_a_photo_is_turned_as_its_file_says(tmp_path: Path) -> None:
    image = picture(16, 8)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "turned.png", exif=exif)
    pixels = image_files.read_pixels(tmp_path / "turned.png", "it")
    upright = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    assert pixels.shape == (3, 16, 8)
    assert torch.equal(pixels, torch.from_numpy(upright.transpose(2, 0, 1).copy()))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK"])
def test_other_modes_become_red_green_and_blue(mode: str) -> None:
    image = picture(8, 8).convert(mode)
    wanted = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert torch.equal(image_files.read_pixels(image, "it"), torch.from_numpy(wanted.copy()))


NAMES = (
    *("missing", "folder", "pipe", "address", "cut", "noise", "video", "frames", "empty", "large"),
    *("huge", "deep", "kind", "grid", "no grid", "null grid", "word grid", "flag grid"),
    *("float grid", "two grids", "clip", "infinite", "whole", "bits", "words", "tower"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_image_is_refused_and_the_others_run(name: str, llm: LLM, tmp_path: Path) -> None:
    wrong = wrong_images(tmp_path)
    assert set(wrong) == set(NAMES)
    image, said = wrong[name]
    bad = {"prompt": "see #", "images": [image]}
    good = {"prompt": "see #", "images": [picture(8, 16)]}
    with pytest.raises(RequestError) as refusal:
        llm.generate(bad, GREEDY)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    alone = [llm.generate(prompt, GREEDY)[0].token_ids for prompt in (good, "text")]
    outputs = llm.generate([good, bad, "text"], GREEDY)
    assert [output.finish_reason for output in outputs] == ["length", "error", "length"]
    assert said in str(outputs[1].error)
    assert [outputs[0].token_ids, outputs[2].token_ids] == alone


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ({"prompt": "a # b", "images": []}, "1 image placeholder (#) and 0 images"),
        ({"prompt": "a # b"}, "1 image placeholder (#) and 0 images"),
        ("a # b", "1 image placeholder (#) and 0 images"),
        ({"prompt": "a b", "images": ["x.png"]}, "0 image placeholders (#) and 1 image"),
        ({"prompt": "##", "images": ["x.png"]}, "2 image placeholders (#) and 1 image"),
        ({"prompt": "#", "images": ["x", "y"]}, "1 image placeholder (#) and 2 images"),
        ({"prompt": [1, VIDEO], "images": []}, "a placeholder for video (%)"),
        ({"prompt": "a", "videos": ["x.mp4"]}, "videos, which is not served"),
        ({"prompt": "a", "image": ["x.png"]}, "unknown field 'image' (did you mean images?)"),
        ({"images": ["x.png"]}, "no 'prompt'"),
        ({"prompt": "#", "images": "x.png"}, "images is str; wanted a list"),
        ({"prompt": {"prompt": "#"}, "images": []}, "the prompt of a record is dict"),
        ({"prompt": "#" * 70, "images": ["x.png"] * 70}, "wanted at most 64"),
        ({"prompt": "#", "images": [picture(80, 80)]}, "the prompt has 100 tokens"),
    ],
)
def test_a_wrong_prompt_is_refused(prompt: Any, said: str, llm: LLM) -> None:
    with pytest.raises(RequestError) as refusal:
        llm.generate(prompt, GREEDY)
    assert said in str(refusal.value)
    outputs = llm.generate([prompt, "fine"], GREEDY)
    assert [output.finish_reason for output in outputs] == ["error", "length"]


def test_a_text_model_refuses_images_and_keeps_the_sign(blind: LLM) -> None:
    with pytest.raises(RequestError, match="got 2 images and ToyHashModel serves text only"):
        blind.generate({"prompt": "a ##", "images": ["x.png", "y.png"]}, GREEDY)
    plain, record = blind.generate(["a # b", {"prompt": "a # b", "images": []}], GREEDY)
    assert plain.token_ids == record.token_ids
    with pytest.raises(RequestError, match="part of type 'image' and ToyHashModel serves text"):
        blind.chat_prompt([{"role": "user", "content": [{"type": "image"}]}])


def test_parts_of_messages_are_refused_by_name(llm: LLM) -> None:
    for kind in ("video", "video_url", "input_audio"):
        with pytest.raises(RequestError, match=f"part of type '{kind}'.*serves text and image"):
            llm.chat_prompt([{"role": "user", "content": [{"type": kind}]}])


@pytest.mark.parametrize(
    ("messages", "images", "said"),
    [
        ("x", None, "images is NoneType; wanted a list of images"),
        ("x", 5, "images is int; wanted a list of images"),
        ("x", "a.png", "images is str; wanted a list of images"),
        (5, ["a.png"], "messages is int; wanted a user's message"),
        (None, [], "messages is NoneType; wanted a user's message"),
    ],
)
def test_a_chat_of_another_kind_is_refused(messages: Any, images: Any, said: str, llm: LLM) -> None:
    with pytest.raises(RequestError, match=said):
        llm.image_chat_prompt(messages, images)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 1)])
def test_the_smallest_pictures_are_read_without_a_warning(size: tuple[int, int]) -> None:
    """torch warns, once a process, of memory that is not to be written to."""
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "from PIL import Image; from pilotfish.multimodal.files import read_pixels\n"
        f"read_pixels(Image.new('RGB', {size}), 'it').add_(1)"
    )
    done = forked.run("-c", code)
    assert done.returncode == 0, done.stderr


def test_without_pillow_the_extra_is_named(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError, match=r"pip install 'pilotfish\[images\]'"):
        llm.generate({"prompt": "#", "images": ["x.png"]}, GREEDY)
    done = llm.generate(
        {"prompt": "#", "images": [{"pixel_values": torch.ones(4, 1), "grid_thw": [1, 2, 2]}]},
        GREEDY,
    )
    assert done[0].finish_reason == "length"


# Contracts and memory


def test_a_spec_with_images_names_a_processor() -> None:
    fields: dict[str, Any] = {"names": ("A",), "config": "m:C", "model": "m:M"}
    with pytest.raises(PluginError, match="'image' among the modalities and an image_processor"):
        ArchitectureSpec(**fields, modalities={"text", "image"})
    with pytest.raises(PluginError, match="'image' among the modalities and an image_processor"):
        ArchitectureSpec(**fields, image_processor="m:P")


def test_the_memory_plan_states_what_images_take(llm: LLM, blind: LLM) -> None:
    plan: MemoryPlan = llm.memory_plan
    assert plan.images == {"embeddings kept": 256 << 20, "tower": 1000 + (64 + 64) * 4}
    parts = (*plan.weights.values(), *plan.state.values(), *plan.images.values())
    assert plan.total == plan.activations + sum(parts)
    assert plan.to_json()["image_bytes"] == plan.images
    assert "images (embeddings kept): 256 MiB" in str(plan)
    assert blind.memory_plan.images == {}
    with pytest.raises(ConfigError, match="image_bytes is -1"):
        CacheConfig(image_bytes=-1)


@given(
    budget=st.integers(0, 60),
    puts=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), max_size=30),
)
def test_kept_embeddings_stay_within_the_budget(budget: int, puts: list[tuple[int, int]]) -> None:
    """Against a list of what was used last: the youngest that fit, and always the latest values."""
    cache, model = EmbeddingCache(budget), dict[bytes, torch.Tensor]()
    for number, (name, rows) in enumerate(puts):
        digest = bytes([name])
        found = cache.get(digest)
        assert (found is None) == (digest not in model)
        if found is not None:
            assert torch.equal(found, model[digest])
            model[digest] = model.pop(digest)
            continue
        new = torch.full((rows, 1), float(number))
        cache.put(digest, new)
        if rows * 4 <= budget:
            model[digest] = new
            while sum(4 * len(kept) for kept in model.values()) > budget:
                del model[next(iter(model))]
        assert cache.num_bytes == sum(4 * len(kept) for kept in model.values()) <= budget
        assert len(cache) == len(model)
    cache.clear()
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_a_drafter_that_reads_features_is_right_beside_images() -> None:
    engine = ImageToyEngine(max_batch_tokens=64, drafting=drafting(ToyShiftedDraft()))
    prompt = MultimodalPrompt(prompt=[PLACEHOLDER, 97], images=[picture(8, 8)])
    [output] = engine.run([(prompt, GREEDY)])  # type: ignore[list-item]
    assert output.speculative is not None
    assert output.speculative["accepted"] == output.speculative["drafted"] > 0
