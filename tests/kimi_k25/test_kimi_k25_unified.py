"""Kimi K2.5 and its DFlash draft as one model: steps that the caller runs, text and images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from kimi_k25.towers import image
from pilotfish import LLM, CacheConfig, SamplingParams, SpeculativeConfig
from pilotfish.batch import PlacedImage, RequestContext
from pilotfish.config import PipelineConfig, RuntimeConfig
from pilotfish.errors import ConfigError, RouteError
from pilotfish.kernels import KernelBackend
from pilotfish.multimodal.admission import ImageAdmission
from pilotfish.state import StateManager
from pilotfish.weights import open_checkpoint
from pilotfish_kimi_k25.unified import (
    UnifiedDflashKimiK25Config,
    UnifiedDflashKimiK25Inputs,
    UnifiedDflashKimiK25Model,
)
from speculation.pairs import Shelf, registry

DFLASH = SpeculativeConfig(method="dflash", width=3)
BACKEND = KernelBackend()
SEED = 7


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("unified"), registry())


@attrs.frozen
class Pair:
    """Both checkpoints, and prompts of every kind with what plain decoding makes of them."""

    target: Path
    draft: Path
    prompts: list[dict[str, Any]]

    def options(self, speculative: SpeculativeConfig = DFLASH) -> PipelineConfig:
        return PipelineConfig(
            model=open_checkpoint(str(self.target)).model_config(),
            draft_model=open_checkpoint(str(self.draft)).model_config(),
            runtime=RuntimeConfig(dtype="float32"),
            cache=CacheConfig(),
            speculative=speculative,
        )

    def config(self, speculative: SpeculativeConfig = DFLASH) -> UnifiedDflashKimiK25Config:
        one, two = open_checkpoint(str(self.target)), open_checkpoint(str(self.draft))
        return UnifiedDflashKimiK25Config.initialize(self.options(speculative)).finalize(
            one.huggingface_config, one.weights().infos, two.huggingface_config, two.weights().infos
        )

    def model(self, speculative: SpeculativeConfig = DFLASH) -> UnifiedDflashKimiK25Model:
        model = UnifiedDflashKimiK25Model(
            self.options(speculative), self.config(speculative), BACKEND, device=torch.device("cpu")
        )
        one, two = open_checkpoint(str(self.target)), open_checkpoint(str(self.draft))
        model.load_model(one.weights(), two.weights())
        return model

    def placed(self, model: UnifiedDflashKimiK25Model) -> list[tuple[list[int], Any]]:
        """Each prompt's ids with its images in their places."""
        admission = ImageAdmission(
            architecture="Kimi",
            processor=model.config.target.image_processor,  # type: ignore[attr-defined]
            max_seq_len=512,
        )
        return [admission.place(one["prompt"], one["images"]) for one in self.prompts]

    def plain(self, temperature: float, count: int) -> list[list[int]]:
        params = SamplingParams(
            temperature=temperature, seed=SEED, max_tokens=count, ignore_eos=True
        )
        with LLM(str(self.target), dtype="float32") as llm:
            return [list(output.token_ids) for output in llm.generate(self.prompts, params)]


@pytest.fixture(scope="module")
def pair(shelf: Shelf) -> Pair:
    target = shelf.target("KimiK25ForConditionalGeneration", "whole")
    draft = shelf.draft("dflash")
    assert draft is not None
    with LLM(str(target), dtype="float32") as llm:
        processor = llm.engine.runner.model.config.image_processor
        a, b = (processor.preprocess(image(*size)) for size in [(60, 40), (30, 70)])
        token = processor.placeholder_token_id
    return Pair(
        target,
        draft,
        [
            {"prompt": [3, 4, token, 5, token, 6, 7], "images": [a, b]},
            {"prompt": [1, 2, 3, 4, 5, 6, 7, 8, 9], "images": []},
            {"prompt": [token, 9], "images": [b]},
        ],
    )


class Steps:
    """Runs the pair over a StateManager, all requests in every step."""

    def __init__(
        self,
        model: UnifiedDflashKimiK25Model,
        prompts: Sequence[tuple[list[int], tuple[PlacedImage, ...]]],
        temperature: float,
        chunk: int,
        **fields: Any,
    ) -> None:
        self.model, self.temperature, self.chunk, self.fields = model, temperature, chunk, fields
        self.lengths = [len(tokens) for tokens, _ in prompts]
        self.states = StateManager(
            model.state, num_pages=96, page_size_tokens=4, prefix_caching=False, poison=True
        )
        self.contexts = [
            RequestContext(request_id=str(i), tokens=list(tokens), images=images)
            for i, (tokens, images) in enumerate(prompts)
        ]
        for context in self.contexts:
            self.states.claim(context.request_id)
        self.drafts: list[tuple[int, ...]] = [()] * len(prompts)
        self.num_drafted = self.num_accepted = 0

    def run(self) -> None:
        """Groups of equal draft length, since a batch has one G."""
        for length in sorted(set(map(len, self.drafts))):
            self._step([i for i, drafts in enumerate(self.drafts) if len(drafts) == length], length)

    def _step(self, places: list[int], length: int) -> None:
        batch = [self.contexts[i] for i in places]
        for place, context in zip(places, batch, strict=True):
            left = len(context.tokens) - context.num_computed
            context.num_scheduled = min(left, self.chunk)
            rows = context.scheduled_tokens + list(self.drafts[place])
            self.states.reserve(context.request_id, rows, scratch=4)
        wants = [int(c.num_computed + c.num_scheduled == len(c.tokens)) for c in batch]
        fields = {
            "draft_kv_blocks": self.states.paged_cache("draft").blocks,
            "temperature": torch.full((len(batch),), self.temperature),
            "seed": torch.full((len(batch),), SEED),
            "draft_tokens": torch.tensor([self.drafts[i] for i in places]) if length else None,
        }
        for name, make in self.fields.items():
            fields[name] = make(sum(wants) * (length + 1))
        counts = [context.num_scheduled + length for context in batch]
        kv = self.states.kv_inputs([context.request_id for context in batch], counts)
        outputs = self.model.execute(
            self.model.prepare_initial_token_inputs([batch], kv, wants, **fields)
        )
        for i, (place, context) in enumerate(zip(places, batch, strict=True)):
            self.states.commit(context.request_id, outputs.num_committed[i])
            context.num_computed += outputs.num_committed[i]
            context.tokens += outputs.tokens[i]
            self.drafts[place] = outputs.next_draft_tokens[i]
            self.num_accepted += outputs.num_accepted[i]
            self.num_drafted += length

    def answers(self) -> list[list[int]]:
        return [c.tokens[n:] for c, n in zip(self.contexts, self.lengths, strict=True)]


@pytest.mark.parametrize("chunk", [5, 64])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_steps_with_images_give_the_text_of_plain_decoding(
    pair: Pair, temperature: float, chunk: int
) -> None:
    """Chunks of 5 rows cut the images; drafts of other requests stand between a batch's rows."""
    model = pair.model()
    steps = Steps(model, pair.placed(model), temperature, chunk)
    while min(map(len, steps.answers())) < 10:
        steps.run()
    wanted = pair.plain(temperature, 10)
    assert [answer[:10] for answer in steps.answers()] == wanted
    assert steps.num_drafted > 30


def test_pixels_may_be_given_instead_of_embeddings(pair: Pair) -> None:
    """Whole images as fields of the inputs, in the second of two requests."""
    model = pair.model()
    placed = pair.placed(model)
    (text, _), (tokens, images) = placed[1], placed[0]
    contexts = [
        RequestContext(request_id="0", tokens=text, num_scheduled=len(text)),
        RequestContext(request_id="1", tokens=tokens, num_scheduled=len(tokens)),
    ]
    states = StateManager(model.state, num_pages=96, page_size_tokens=4, prefix_caching=False)
    for context in contexts:
        states.claim(context.request_id)
        states.reserve(context.request_id, context.tokens, scratch=4)
    rows = [len(text) + row for one in images for row in range(one.start, one.stop)]
    kv = states.kv_inputs(["0", "1"], [len(text), len(tokens)])
    made = model.prepare_initial_token_inputs(
        [contexts],
        kv,
        1,
        draft_kv_blocks=states.paged_cache("draft").blocks,
        image_token_indices=torch.tensor(rows),
        pixel_values=torch.cat([one.features.pixel_values for one in images]),
        grid_thws=torch.tensor([one.features.grid_thw for one in images]),
    )
    outputs = model.execute(made)
    assert isinstance(made, UnifiedDflashKimiK25Inputs)
    assert made.host_input_row_offsets == (0, len(text), len(text) + len(tokens))
    assert made.batch_context_lengths == (0, 0)
    wanted = pair.plain(0.0, 1)
    assert [list(one) for one in outputs.tokens] == [wanted[1], wanted[0]]
    after = model.prepare_next_token_inputs(torch.tensor([5, 6]), made)
    assert isinstance(after, UnifiedDflashKimiK25Inputs)
    assert after.image_token_indices is None
    assert after.pixel_values is None
    with pytest.raises(ValueError, match="kv_cache_inputs is None"):
        _ = after.batch_context_lengths


def test_masked_tokens_never_come(pair: Pair) -> None:
    """Only even ids may; the drafts know nothing of it."""
    model = pair.model()
    words = -(-model.config.target.vocab_size // 32)  # type: ignore[attr-defined]

    def even(num_rows: int) -> torch.Tensor:
        return torch.full((num_rows, words), 0x55555555, dtype=torch.int32)

    steps = Steps(model, pair.placed(model), 1.0, 64, token_bitmasks=even)
    for _ in range(5):
        steps.run()
    tokens = [token for answer in steps.answers() for token in answer]
    assert len(tokens) >= 15
    assert all(token % 2 == 0 for token in tokens)


def test_relaxed_acceptance_holds_where_a_request_thinks(pair: Pair) -> None:
    """With a slack that lets every draft pass, all drafts of a thinking batch do."""
    options = attrs.evolve(
        DFLASH, acceptance="relaxed", thinking_tokens=(1, 3), relaxed_top=1000, relaxed_slack=1.0
    )
    model = pair.model(options)
    text = pair.placed(model)[1:2]
    thinking = Steps(
        model, text, 1.0, 64, in_thinking_phase=lambda _: torch.ones(1, dtype=torch.bool)
    )
    silent = Steps(model, text, 1.0, 64)
    for _ in range(6):
        thinking.run()
        silent.run()
    assert thinking.num_accepted == thinking.num_drafted == 5 * 3
    assert silent.num_accepted < silent.num_drafted
    assert silent.answers()[0][:6] == pair.plain(1.0, 6)[1]


def test_the_config_is_that_of_both(pair: Pair) -> None:
    config = pair.config()
    assert config.block_size == config.resolve_block_size(default=9) == 5
    assert config.target_layer_ids == tuple(tap - 1 for tap in config.draft.aux_hidden_state_layers)
    assert config.mask_token_id == config.draft.mask_token_id
    assert config.speculative_config is DFLASH
    assert config.get_kv_params() == config.target.get_kv_params()
    assert config.get_max_seq_len() == config.target.get_max_seq_len()
    assert [spec.name for spec in config.get_state_specs()] == ["kv", "draft"]
    latent, draft = config.get_state_specs()
    assert latent.row_shape != draft.row_shape  # each paged cache its own geometry
    model = pair.model()
    assert model.get_kv_params() == config.get_kv_params()
    hf = pair.options().model.huggingface_config
    assert model.calculate_max_seq_len(pair.options(), hf) == config.get_max_seq_len()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"block_size": 1, "samples_anchor": True}, "block_size is 1; wanted at least 2"),
        ({"target_vocab_size": 10**7, "mask_token_id": 10**6}, "mask_token_id is 1000000 and the"),
        ({"aux_hidden_state_layers": ()}, r"target_layer_ids is \[\]; wanted one or more"),
        ({"aux_hidden_state_layers": (99,)}, r"target_layer_ids is \[98\]; wanted one or more"),
        ({"target_hidden_size": 8}, "made for a target of width 8; this one is"),
    ],
)
def test_dflash_fields_that_do_not_fit_are_named(
    pair: Pair, fields: dict[str, Any], said: str
) -> None:
    config = pair.config()

    def refused() -> None:
        draft = attrs.evolve(config.draft, **fields)
        attrs.evolve(config, draft=draft).validate_dflash_fields()

    with pytest.raises(ConfigError, match=said):
        refused()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": {1: 2}}, "width is the schedule {1: 2}; wanted a number"),
        ({"width": 11}, "width is 11 and the draft was made for at most 4"),
        ({"method": "ngram"}, "the method is 'ngram'; wanted 'dflash'"),
    ],
)
def test_options_that_a_step_cannot_keep_are_refused(
    pair: Pair, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        pair.config(attrs.evolve(DFLASH, **options))


def test_both_have_one_dtype_where_the_user_names_none(pair: Pair) -> None:
    options = attrs.evolve(pair.options(), runtime=RuntimeConfig())
    config = UnifiedDflashKimiK25Config.initialize(options)
    assert config.target.dtype == config.draft.dtype == "float32"  # type: ignore[attr-defined]


def test_pages_for_the_draft_are_wanted_of_every_request(pair: Pair) -> None:
    """A request without scratch pages beside one whose table is longer."""
    model = pair.model()
    states = StateManager(model.state, num_pages=96, page_size_tokens=4, prefix_caching=False)
    contexts = [
        RequestContext(request_id="a", tokens=[3] * 20, num_scheduled=20),
        RequestContext(request_id="b", tokens=[5] * 4, num_scheduled=4),
    ]
    for context, scratch in zip(contexts, (4, 0), strict=True):
        states.claim(context.request_id)
        states.reserve(context.request_id, context.tokens, scratch=scratch)
    kv = states.kv_inputs(["a", "b"], [20, 4])
    fields = {"draft_kv_blocks": states.paged_cache("draft").blocks}
    inputs = model.prepare_initial_token_inputs([contexts], kv, 1, **fields)
    with pytest.raises(ValueError, match="of request 1, whose pages end at 4; wanted pages"):
        model.execute(inputs)


def test_another_target_or_draft_is_refused(pair: Pair, shelf: Shelf) -> None:
    llama = open_checkpoint(str(shelf.target("LlamaForCausalLM", "plain"))).model_config()
    with pytest.raises(ConfigError, match="'LlamaForCausalLM'; wanted 'KimiK25For"):
        UnifiedDflashKimiK25Config.initialize(pair.options(), llama)
    eagle = open_checkpoint(str(shelf.draft("eagle-3"))).model_config()
    with pytest.raises(RouteError, match="dflash"):
        UnifiedDflashKimiK25Config.initialize(attrs.evolve(pair.options(), draft_model=eagle))
