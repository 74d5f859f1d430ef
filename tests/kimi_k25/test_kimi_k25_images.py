"""Kimi K2.5 with images: transformers' logits and tokens, however passes, pages and drafts cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from kimi_k25.towers import IMAGE, VIDEO, hf_config, hf_model, image, save_published
from pilotfish import LLM, CacheConfig, SamplingParams
from pilotfish.errors import CapacityError, RequestError
from pilotfish.multimodal.model import ImageInputs
from pilotfish.protocols import ImageFeatures
from pilotfish.testing.compare import want_near
from pilotfish.testing.transformers_oracle import _Widened
from pilotfish_kimi_k25.model import KimiK25Model
from pilotfish_kimi_k25.vision.processor import KimiImageProcessor
from speculation.pairs import Shelf, registry

YARN = {
    **{"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0},
    **{"original_max_position_embeddings": 128, "mscale": 0.8, "mscale_all_dim": 1.2},
}
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "dense, queries of the row": ({}, {"q_lora_rank": None, "first_k_dense_replace": 2}),
    "one group, all experts, yarn": (
        {"merge_kernel_size": [1, 2]},
        {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 0, "rope_parameters": YARN},
    ),
}
FORBIDDEN = {IMAGE: -1e4, VIDEO: -1e4}
"""transformers embeds a sampled placeholder as token 0; ours is a token like any other."""
GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, logit_bias=FORBIDDEN)
SIZES = [(16, 16), (40, 24), (7, 50)]

Prompt = tuple[list[int], list[ImageFeatures]]


@attrs.frozen(kw_only=True)
class Case:
    """transformers' model, its checkpoint, and prompts of every kind."""

    model: Any
    folder: Path
    prompts: list[Prompt]

    def llm(self, dtype: str = "float32", **options: Any) -> LLM:
        options.setdefault("cache", CacheConfig(page_size_tokens=4, num_pages=96))
        return LLM(str(self.folder), dtype=dtype, **options)

    def expanded(self, prompt: Prompt) -> tuple[torch.Tensor, dict[str, Any]]:
        """What transformers takes."""
        tokens, images = prompt
        down, across = self.model.config.vision_config.merge_kernel_size
        ids: list[int] = []
        left = iter(images)
        for token in tokens:
            count = 1
            if token == IMAGE:
                _, rows, columns = next(left).grid_thw
                count = rows * columns // (down * across)
            ids += [token] * count
        if not images:
            return torch.tensor([ids]), {}
        pixels = torch.cat([one.pixel_values for one in images])
        grids = torch.tensor([one.grid_thw for one in images])
        return torch.tensor([ids]), {"pixel_values": pixels, "image_grid_thw": grids}

    @torch.inference_mode()
    def theirs(self, prompt: Prompt, *, exact: bool) -> torch.Tensor:
        import copy

        ids, fields = self.expanded(prompt)
        if not exact:
            logits: torch.Tensor = self.model(ids, **fields).logits[0]
            return logits
        if fields:
            fields["pixel_values"] = fields["pixel_values"].double()
        with _Widened():
            logits = copy.deepcopy(self.model).double()(ids, **fields).logits[0]
        return logits

    @torch.inference_mode()
    def answer(self, prompt: Prompt, count: int) -> list[int]:
        ids, fields = self.expanded(prompt)
        found = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **fields,
            max_new_tokens=count,
            do_sample=False,
            suppress_tokens=list(FORBIDDEN),
        )
        tokens: list[int] = found[0, ids.shape[1] :].tolist()
        return tokens


Cases = Callable[..., Case]


def record(prompt: Prompt) -> dict[str, Any]:
    return {"prompt": prompt[0], "images": prompt[1]}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    made: dict[tuple[str, float], Case] = {}

    def make(name: str, gain: float = 1.7) -> Case:
        if (name, gain) not in made:
            config = hf_config(*SHAPES[name])
            model = hf_model(config, gain=gain)
            model.set_experts_implementation("eager")
            folder = save_published(model, tmp_path_factory.mktemp("kimi"))
            with LLM(str(folder), dtype="float32") as llm:
                processor = llm.engine.runner.model.config.image_processor
            assert isinstance(processor, KimiImageProcessor)
            a, b, c = (processor.preprocess(image(*size)) for size in SIZES)
            made[name, gain] = Case(
                model=model,
                folder=folder,
                prompts=[
                    ([3, 4, IMAGE, 5, IMAGE, 6, 7], [a, b]),
                    ([1, 2, 3], []),
                    ([IMAGE, 9], [c]),
                    ([8, IMAGE, IMAGE, IMAGE], [b, c, b]),
                ],
            )
        return made[name, gain]

    return make


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_transformers(name: str, cases: Cases) -> None:
    """Text, image and both; chunks that cut images; no further off than twice eager torch."""
    case = cases(name, gain=1.0)
    prompts = [*case.prompts, ([*range(10, 40)], [])]
    with case.llm(max_batch_tokens=11) as llm:
        ours = torch.cat(llm.score_many([record(prompt) for prompt in prompts]))
    exact, eager = (
        torch.cat([case.theirs(prompt, exact=kind) for prompt in prompts]) for kind in (True, False)
    )
    want_near(ours, exact, eager, "logits")


@pytest.mark.parametrize("name", SHAPES)
def test_greedy_tokens_are_transformers(name: str, cases: Cases) -> None:
    """Alone, and in a batch of mixed kinds."""
    case = cases(name)
    wanted = [case.answer(prompt, 10) for prompt in case.prompts]
    assert len({tuple(tokens) for tokens in wanted}) == len(wanted)
    with case.llm(max_batch_tokens=13) as llm:
        together = llm.generate([record(prompt) for prompt in case.prompts], GREEDY)
        assert [list(output.token_ids) for output in together] == wanted
        for prompt, tokens in zip(case.prompts, wanted, strict=True):
            (alone,) = llm.generate(record(prompt), GREEDY)
            assert list(alone.token_ids) == tokens


MIXED = [
    SamplingParams(max_tokens=12, seed=seed, temperature=temperature, ignore_eos=True, logprobs=2)
    for seed, temperature in enumerate((0.0, 0.8, 1.2, 1.0))
]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def texts(request: pytest.FixtureRequest, cases: Cases) -> tuple[str, Any]:
    """What each prompt gives alone, in one chunk, with nothing shared."""
    dtype, case = request.param, cases("plain")
    cache = CacheConfig(page_size_tokens=4, num_pages=96, prefix_caching=False)
    found = []
    with case.llm(dtype, max_batch_tokens=256, cache=cache) as llm:
        for prompt, params in zip(case.prompts, MIXED, strict=True):
            found += answers(llm, [prompt], [params])
    return dtype, found


def answers(llm: LLM, prompts: Sequence[Prompt], params: Sequence[SamplingParams]) -> list[Any]:
    """Tokens and log probabilities."""
    outputs = llm.generate([record(prompt) for prompt in prompts], list(params))
    assert all(output.error is None for output in outputs)
    return [(tuple(output.token_ids), output.logprobs) for output in outputs]


@pytest.mark.parametrize(
    ("rows", "pages", "kept"),
    [(1, 96, 256 << 20), (5, 96, 0), (7, 40, 256 << 20), (64, 20, 4000), (3, 14, 0)],
)
def test_same_seed_same_text_however_it_is_cut(
    rows: int, pages: int, kept: int, texts: tuple[str, Any], cases: Cases
) -> None:
    """In a batch, in chunks through images, in tiny pools with preemption, with and without kept
    embeddings, cold and with every prefix cached.
    """
    dtype, wanted = texts
    case = cases("plain")
    cache = CacheConfig(page_size_tokens=4, num_pages=pages, image_bytes=kept)
    with case.llm(dtype, max_batch_tokens=rows, cache=cache) as llm:
        for _ in range(2):
            assert answers(llm, case.prompts, MIXED) == wanted
        if pages == 14:
            assert llm.num_preemptions > 0
        model = llm.engine.runner.model
        assert isinstance(model, KimiK25Model)
        assert model.image_embeddings.num_bytes <= kept


def test_an_image_is_encoded_once_where_it_is_kept(
    cases: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = KimiK25Model.encode_images

    def encode(self: KimiK25Model, images: Sequence[ImageFeatures]) -> list[torch.Tensor]:
        seen.append(len(images))
        return real(self, images)

    monkeypatch.setattr(KimiK25Model, "encode_images", encode)
    case = cases("plain")
    for kept, whole in ((256 << 20, True), (0, False)):
        seen.clear()
        cache = CacheConfig(page_size_tokens=4, prefix_caching=False, image_bytes=kept)
        with case.llm(max_batch_tokens=6, cache=cache) as llm:
            llm.generate([record(prompt) for prompt in case.prompts], GREEDY)
        if whole:
            assert sum(seen) == 3, "three different images, in six places and many chunks"
        else:
            assert sum(seen) > 6, "once for every chunk that has a row of it"


def test_images_of_one_pass_run_together_up_to_the_planned_patches(
    cases: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = cases("plain")
    with case.llm(max_batch_tokens=256) as llm:
        model = llm.engine.runner.model
        assert isinstance(model, KimiK25Model)
        seen: list[list[int]] = []
        real = KimiK25Model.encode_images

        def encode(self: KimiK25Model, images: Sequence[ImageFeatures]) -> list[torch.Tensor]:
            seen.append([one.pixel_values.shape[0] for one in images])
            return real(self, images)

        monkeypatch.setattr(KimiK25Model, "encode_images", encode)
        (a, b), (c,) = case.prompts[0][1], case.prompts[2][1]
        sizes = [one.pixel_values.shape[0] for one in (a, b, c)]
        wanted = llm.score(record(([IMAGE, IMAGE, IMAGE], [a, b, c])))
        assert seen == [sizes]
        seen.clear()
        model.image_embeddings.clear()
        memory = model.config.get_image_memory()
        less = attrs.evolve(memory, max_patches=sum(sizes[:2]))
        monkeypatch.setattr(type(model.config), "get_image_memory", lambda self: less)
        llm.forget_cached_prefixes()
        found = llm.score(record(([IMAGE, IMAGE, IMAGE], [a, b, c])))
        assert seen == [sizes[:2], sizes[2:]]
        assert torch.equal(found, wanted)


def test_the_same_text_with_another_image_is_no_prefix_hit(cases: Cases) -> None:
    case = cases("plain")
    a, b = case.prompts[3][1][0], case.prompts[3][1][1]
    other = ImageFeatures(pixel_values=a.pixel_values.flip(0), grid_thw=a.grid_thw)
    tokens = [3, IMAGE, *range(5, 20)]
    with case.llm(cache=CacheConfig(prefix_caching=False)) as llm:
        cold = [llm.generate(record((tokens, [one])), GREEDY)[0].token_ids for one in (a, other, b)]
    with case.llm() as llm:
        for _ in range(2):
            for one, wanted in zip((a, other, b), cold, strict=True):
                assert llm.generate(record((tokens, [one])), GREEDY)[0].token_ids == wanted
    assert len({tuple(found) for found in cold}) == 3


def test_inputs_take_pixels_or_embeddings(cases: Cases) -> None:
    """Whole images given as pixels give what their embeddings give, row by row."""
    case = cases("plain")
    with case.llm() as llm:
        model = llm.engine.runner.model
        assert isinstance(model, KimiK25Model)
        tokens, images = case.prompts[0]
        ids, fields = case.expanded((tokens, images))
        rows = (ids[0] == IMAGE).nonzero()[:, 0]
        base: dict[str, Any] = {
            "tokens": ids[0],
            "input_row_offsets": torch.tensor([0, ids.shape[1]], dtype=torch.int32),
            "return_n_logits": torch.ones(1, dtype=torch.int64),
            "image_token_indices": rows,
        }
        grids = fields["image_grid_thw"]
        pixels = {"pixel_values": fields["pixel_values"], "grid_thws": grids}
        with torch.inference_mode():
            embeddings = torch.cat(model.encode_images(images))
            one = model.inputs_class(**base, precomputed_image_embeddings=embeddings)
            two = model.inputs_class(**base, **pixels)
            found = [model.embed_inputs(inputs, ids[0]) for inputs in (one, two)]
        assert torch.equal(*found)
        assert torch.equal(found[0][rows], embeddings)
        text = torch.ones(ids.shape[1], dtype=torch.bool).index_fill(0, rows, False)
        assert torch.equal(found[0][text], model.embed(ids[0][text]))
        assert [b.shape for b in two.buffers] == [
            *(value.shape for value in base.values()),
            *(value.shape for value in pixels.values()),
        ]
        wrong = {**base, "image_token_indices": rows[1:]}
        with pytest.raises(ValueError, match="wanted the rows of whole images"):
            model.embed_inputs(model.inputs_class(**wrong, **pixels), ids[0])
        for fields in (
            {"pixel_values": pixels["pixel_values"]},
            {"precomputed_image_embeddings": embeddings[1:]},
            {"precomputed_image_embeddings": embeddings, **pixels},
            {},
        ):
            with pytest.raises(ValueError, match="wanted"):
                ImageInputs(**base, **fields)


# Refusals


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"), registry())


def test_what_the_tower_does_not_take_is_refused(cases: Cases) -> None:
    case = cases("plain")
    pixels = case.prompts[0][1][0].pixel_values
    wrong: list[tuple[Any, str]] = [
        ({"pixel_values": pixels[:6], "grid_thw": [1, 3, 2]}, "rows in multiples of 2"),
        ({"pixel_values": pixels[:, :1], "grid_thw": [1, 4, 4]}, "wanted [16, 3, 4, 4]"),
        ({"pixel_values": pixels, "grid_thw": [4, 2, 2]}, "4 frames, and video is not served"),
    ]
    with case.llm() as llm:
        for one, said in wrong:
            outputs = llm.generate([{"prompt": [IMAGE], "images": [one]}, [1, 2]], GREEDY)
            assert [output.finish_reason for output in outputs] == ["error", "length"]
            assert said in str(outputs[0].error)
        with pytest.raises(RequestError, match=r"1 image placeholder .* and 0 images"):
            llm.generate([1, IMAGE], GREEDY)


def test_a_text_checkpoint_of_the_family_refuses_images(shelf: Shelf) -> None:
    target = shelf.target("DeepseekV3ForCausalLM", "latent queries")
    with (
        shelf.llm(target, None, "float32") as llm,
        pytest.raises(RequestError, match="DeepseekV3ForCausalLM serves text only"),
    ):
        llm.generate({"prompt": [1], "images": ["x.png"]}, GREEDY)


def test_images_are_in_the_memory_plan(cases: Cases) -> None:
    case = cases("plain")
    with case.llm() as llm:
        memory = llm.engine.runner.model.config.get_image_memory()
        images = llm.memory_plan.images
        assert images["embeddings kept"] == 256 << 20
        assert memory.bytes_per_token == 32 * 4
        assert images["tower"] > memory.pass_bytes > 0
    with pytest.raises(
        CapacityError, match=r"images \(embeddings kept\) 2\.097e\+06 GiB.*lower image_bytes"
    ):
        case.llm(cache=CacheConfig(image_bytes=1 << 51))
