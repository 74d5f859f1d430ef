"""The pair as one model: steps that the caller runs, and the memory that outlives them."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import attrs
import pytest
import torch

from eagle.conftest import Pair
from eagle.driver import BACKEND, pipeline
from pilotfish import LLM, SamplingParams
from pilotfish.batch import RequestContext
from pilotfish.config import SpeculativeConfig
from pilotfish.errors import ConfigError
from pilotfish.speculation.acceptance import ResidualAcceptance, VerifyRequest
from pilotfish.state import StateManager
from pilotfish.weights import open_checkpoint
from pilotfish_eagle.inputs import PersistentInputBuffers, UnifiedEagleLlama3Inputs
from pilotfish_eagle.unified import UnifiedEagleLlama3Config, UnifiedEagleLlama3Model

PROMPTS = {"a": [5, 17, 3, 80, 41, 9, 22, 60, 2], "b": [64], "c": [30, 31, 2, 77]}
WIDTH = 3


EAGLE = SpeculativeConfig(method="eagle", width=WIDTH)


def load(
    target: Path, draft: Path, speculative: SpeculativeConfig = EAGLE
) -> UnifiedEagleLlama3Model:
    options = attrs.evolve(pipeline(target, draft), speculative=speculative)
    one, two = open_checkpoint(str(target)), open_checkpoint(str(draft))
    config = UnifiedEagleLlama3Config.initialize(options).finalize(
        one.huggingface_config, one.weights().infos, two.huggingface_config, two.weights().infos
    )
    model = UnifiedEagleLlama3Model(options, config, BACKEND, device=torch.device("cpu"))
    model.load_model(one.weights(), two.weights())
    return model


class Steps:
    """Runs the pair over a StateManager, all requests in every step."""

    def __init__(
        self,
        model: UnifiedEagleLlama3Model,
        temperature: float,
        chunk: int,
        thinking: frozenset[str] = frozenset(),
        keeps_probs: bool = False,
    ) -> None:
        self.model, self.temperature, self.chunk = model, temperature, chunk
        self.thinking = thinking
        self.keeps_probs = keeps_probs
        self.probs: dict[str, torch.Tensor | None] = dict.fromkeys(PROMPTS)
        self.states = StateManager(
            model.state, num_pages=64, page_size_tokens=4, prefix_caching=False, poison=True
        )
        self.contexts = {
            name: RequestContext(request_id=name, tokens=list(prompt))
            for name, prompt in PROMPTS.items()
        }
        for name in PROMPTS:
            self.states.claim(name)
        self.drafts: dict[str, tuple[int, ...]] = dict.fromkeys(PROMPTS, ())
        self.num_accepted = self.num_drafted = 0

    def run(self, names: list[str]) -> None:
        """Groups of equal draft length, since a batch has one G."""
        for length in sorted({len(self.drafts[name]) for name in names}):
            self._step([name for name in names if len(self.drafts[name]) == length], length)

    def _step(self, names: list[str], length: int) -> None:
        batch = [self.contexts[name] for name in names]
        for context in batch:
            left = len(context.tokens) - context.num_computed
            context.num_scheduled = min(left, self.chunk)
            rows = context.scheduled_tokens + list(self.drafts[context.request_id])
            self.states.reserve(context.request_id, rows, scratch=WIDTH - 1)
        wants = [int(c.num_computed + c.num_scheduled == len(c.tokens)) for c in batch]
        fields = {
            "draft_kv_blocks": self.states.paged_cache("draft").blocks,
            "temperature": torch.full((len(batch),), self.temperature),
            "seed": torch.arange(len(batch)) * 0 + 7,
            "in_thinking_phase": torch.tensor([name in self.thinking for name in names]),
            "draft_tokens": torch.tensor([self.drafts[n] for n in names]) if length else None,
        }
        if length and self.keeps_probs:
            probs = [self.probs[name] for name in names]
            fields["draft_probs"] = torch.stack([one for one in probs if one is not None])
        counts = [context.num_scheduled + length for context in batch]
        kv = self.states.kv_inputs(names, counts)
        inputs = self.model.prepare_initial_token_inputs([batch], kv, wants, **fields)
        outputs = self.model.execute(inputs)
        for place, context in enumerate(batch):
            self.states.commit(context.request_id, outputs.num_committed[place])
            context.num_computed += outputs.num_committed[place]
            context.tokens += outputs.tokens[place]
            self.drafts[context.request_id] = outputs.next_draft_tokens[place]
            self.probs[context.request_id] = outputs.next_draft_probs[place]
            self.num_accepted += outputs.num_accepted[place]
            self.num_drafted += length


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("case", ["eagle1", "eagle3"])
def test_steps_give_the_text_of_plain_decoding(pair: Pair, case: str, temperature: float) -> None:
    target, draft = pair(case)
    steps = Steps(load(target, draft), temperature, chunk=4)
    names = list(PROMPTS)
    for _ in range(14):
        steps.run(names)
    plain = LLM(str(target), dtype="float32")
    asked = SamplingParams(temperature=temperature, seed=7, max_tokens=11)
    for name, out in zip(names, plain.generate(list(PROMPTS.values()), asked), strict=True):
        answer = steps.contexts[name].tokens[len(PROMPTS[name]) :]
        assert answer[:11] == list(out.token_ids)
    assert steps.num_drafted > 60


def test_relaxed_steps_relax_where_the_inputs_say_that_the_request_thinks(pair: Pair) -> None:
    """With a slack that lets every draft pass, all of those of the thinking request do."""
    target, draft = pair("eagle1")
    options = attrs.evolve(
        EAGLE, acceptance="relaxed", thinking_tokens=(1, 3), relaxed_top=1000, relaxed_slack=1.0
    )
    steps = Steps(load(target, draft, options), 1.0, chunk=64, thinking=frozenset({"b"}))
    names = list(PROMPTS)
    for _ in range(8):
        steps.run(names)
    plain = LLM(str(target), dtype="float32")
    asked = SamplingParams(temperature=1.0, seed=7, max_tokens=8)
    for name, out in zip(names, plain.generate(list(PROMPTS.values()), asked), strict=True):
        answer = steps.contexts[name].tokens[len(PROMPTS[name]) :]
        assert (answer[:8] == list(out.token_ids)) == (name != "b")
    assert len(steps.contexts["b"].tokens) == len(PROMPTS["b"]) + 1 + 7 * (WIDTH + 1)


def test_drafts_are_those_of_the_engine(pair: Pair) -> None:
    """Accepts of the unified steps and of `LLM` on the same requests are the same."""
    target, draft = pair("eagle1")
    steps = Steps(load(target, draft), 1.0, chunk=64)
    names = list(PROMPTS)
    lengths = [sum(len(steps.contexts[name].tokens) for name in names)]
    for _ in range(8):
        steps.run(names)
        lengths.append(sum(len(steps.contexts[name].tokens) for name in names))
    assert all(b >= a + len(names) for a, b in pairwise(lengths))
    assert steps.num_accepted == lengths[-1] - lengths[0] - 8 * len(names)
    spec = SpeculativeConfig(method="eagle", width=WIDTH)
    eagle = LLM(str(target), draft=str(draft), speculative=spec, dtype="float32")
    answers = [len(steps.contexts[name].tokens) - len(PROMPTS[name]) for name in names]
    asked = [SamplingParams(temperature=1.0, seed=7, max_tokens=count) for count in answers]
    outputs = eagle.generate(list(PROMPTS.values()), asked)
    for name, out in zip(names, outputs, strict=True):
        assert steps.contexts[name].tokens[len(PROMPTS[name]) :] == list(out.token_ids)


def test_next_inputs_are_one_newest_token_and_its_drafts(pair: Pair) -> None:
    model = load(*pair("eagle3"))
    context = RequestContext(request_id="a", tokens=[5, 6, 7], num_scheduled=2)
    first = model.prepare_initial_token_inputs([[context]], None, 0)
    assert first.following_tokens is not None
    assert first.following_tokens.tolist() == [7]
    drafts = torch.tensor([[1, 2]])
    after = model.prepare_next_token_inputs(torch.tensor([9]), first, None, drafts)
    assert after.tokens.tolist() == [9]
    assert after.input_row_offsets.tolist() == [0, 1]
    assert after.return_n_logits.tolist() == [1]
    assert (after.num_drafted, after.following_tokens) == (2, None)
    two = model.prepare_initial_token_inputs([[context], [context]], None, 0)
    assert two.data_parallel_splits is not None
    assert two.data_parallel_splits.tolist() == [0, 1, 2]
    assert two.tokens.tolist() == 2 * first.tokens.tolist()
    with pytest.raises(ValueError, match="kv_cache_inputs"):
        model.execute(after)


def test_config_is_that_of_both(pair: Pair) -> None:
    target, draft = pair("eagle3")
    options = pipeline(target, draft)
    config = UnifiedEagleLlama3Config.initialize(options)
    assert config.get_kv_params() == config.target.get_kv_params()
    assert [spec.name for spec in config.get_state_specs()] == ["kv", "draft"]
    assert config.get_max_seq_len() == 128
    assert config.width == 3
    hf = options.model.huggingface_config
    assert UnifiedEagleLlama3Model.calculate_max_seq_len(options, hf) == 128
    model = load(target, draft)
    assert model.get_kv_params() == config.get_kv_params()
    assert model.state == config.get_state_specs()
    with pytest.raises(ConfigError, match="wanted 'LlamaForCausalLM'"):
        UnifiedEagleLlama3Config.initialize(
            options, attrs.evolve(options.model, huggingface_config=SimpleConfig())
        )


class SimpleConfig:
    architectures = ("Qwen3ForCausalLM",)


def test_persistent_buffers_hold_the_largest_batch() -> None:
    held = PersistentInputBuffers.alloc(3, 20, "cpu")
    assert (held.tokens.shape, held.tokens.dtype) == ((20,), torch.int64)
    assert (held.input_row_offsets.shape, held.input_row_offsets.dtype) == ((4,), torch.int32)
    assert not held.tokens.any()
    assert held.buffers == (held.tokens, held.input_row_offsets)
    with pytest.raises(ValueError, match="max_batch_size is 0"):
        PersistentInputBuffers.alloc(0, 20, "cpu")


def inputs(**fields: object) -> UnifiedEagleLlama3Inputs:
    return UnifiedEagleLlama3Inputs(
        tokens=torch.tensor([1, 2, 3]),
        input_row_offsets=torch.tensor([0, 2, 3], dtype=torch.int32),
        return_n_logits=torch.tensor([1]),
        **fields,  # type: ignore[arg-type]
    )


def test_buffers_are_the_tensors_in_declared_order() -> None:
    blocks = (torch.zeros(1), torch.ones(1))
    tail = [torch.full((2,), float(i)) for i in range(7)]
    names = ("seed", "temperature", "top_k", "max_k", "top_p", "min_top_p", "in_thinking_phase")
    drafts = torch.tensor([[4], [5]])
    made = inputs(
        draft_tokens=drafts, draft_kv_blocks=blocks, **dict(zip(names, tail, strict=True))
    )
    head = (made.tokens, made.input_row_offsets, made.return_n_logits)
    wanted = (*head, drafts, *blocks, *tail)
    assert len(made.buffers) == len(wanted)
    assert all(a is b for a, b in zip(made.buffers, wanted, strict=True))


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="a row a request"):
        inputs(draft_tokens=torch.tensor([[1, 2]]))
    assert inputs().num_drafted == 0


def test_residual_steps_judge_by_the_laws_that_the_drafts_were_drawn_from(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = attrs.evolve(EAGLE, acceptance="residual")
    model = load(*pair("eagle1"), options)
    seen: list[torch.Tensor | None] = []
    real = ResidualAcceptance.judge

    def judge(self: ResidualAcceptance, logits: torch.Tensor, request: VerifyRequest) -> list[int]:
        seen.append(request.draft.probs)
        return real(self, logits, request)

    monkeypatch.setattr(ResidualAcceptance, "judge", judge)
    steps = Steps(model, 1.0, chunk=64, keeps_probs=True)
    for _ in range(4):
        steps.run(list(PROMPTS))
    probs = [one for one in seen if one is not None]
    assert len(probs) == len(seen) > 6
    for one in probs:
        assert one.shape[0] == WIDTH
        assert one.max() < 1.0  # no certain drafts
        torch.testing.assert_close(one.sum(-1), torch.ones(WIDTH))


def test_following_tokens_are_wanted_where_the_draft_reads_them(pair: Pair) -> None:
    steps = Steps(load(*pair("eagle1")), 0.0, chunk=4)
    context = steps.contexts["a"]
    context.num_scheduled = 4
    steps.states.reserve("a", context.scheduled_tokens, scratch=WIDTH - 1)
    inputs = steps.model.prepare_initial_token_inputs(
        [[context]],
        steps.states.kv_inputs(["a"], [4]),
        0,
        draft_kv_blocks=steps.states.paged_cache("draft").blocks,
    )
    with pytest.raises(ValueError, match="following_tokens is not given"):
        steps.model.execute(attrs.evolve(inputs, following_tokens=None))


def test_positions_that_depend_on_the_length_of_the_text_are_refused(
    pair: Pair, tmp_path: Path
) -> None:
    target, draft = pair("eagle1")
    shutil.copytree(target, tmp_path / "dynamic")
    file = tmp_path / "dynamic" / "config.json"
    options = {**json.loads(file.read_text())}
    options["rope_parameters"] = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 8.0}
    file.write_text(json.dumps(options))
    with pytest.raises(ConfigError, match="depend on the length of the text"):
        load(tmp_path / "dynamic", draft)
