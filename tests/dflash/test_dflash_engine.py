"""DFlash drafts in the engine: the text of plain decoding, whatever comes between."""

from __future__ import annotations

import json
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from dflash.checkpoints import (
    CASES,
    INSIDE,
    LAYER,
    LAYERS,
    MASK,
    VOCAB,
    DraftCase,
    draft_config,
    draft_tensors,
    write_draft,
)
from dflash.conftest import Pair
from pilotfish import LLM, CacheConfig, RequestOutput, SamplingParams, SpeculativeConfig
from pilotfish.cli import main
from pilotfish.errors import RouteError
from pilotfish.protocols import PipelineModel
from pilotfish.speculation import BlockRows, DraftBatch, Proposal
from pilotfish.speculation.acceptance import VerifyRequest
from pilotfish_dflash.model import DFlashLlama3Model

PROMPTS = [[1, 2, 3], [5], [7] * 20, [9, 8, 7, 6], [3] * 11, list(range(30, 47))]
CUT: dict[str, Any] = {"top_k": 12, "top_p": 0.9, "repetition_penalty": 1.2}


def params(temperature: float, **options: Any) -> list[SamplingParams]:
    options.setdefault("max_tokens", 20)
    return [
        SamplingParams(temperature=temperature, seed=number, **options)
        for number in range(len(PROMPTS))
    ]


def texts(llm: LLM, asked: list[SamplingParams]) -> list[tuple[list[int], str]]:
    return [(list(out.token_ids), out.finish_reason) for out in llm.generate(PROMPTS, asked)]


def counts(out: RequestOutput) -> tuple[int, int]:
    assert out.speculative is not None
    return out.speculative["drafted"], out.speculative["accepted"]


def dflash(width: Any, **options: Any) -> SpeculativeConfig:
    return SpeculativeConfig(method="dflash", width=width, **options)


@pytest.mark.parametrize(
    ("case", "dtype"), [("mixed", "bfloat16"), ("plain", "float32"), ("speculators", "bfloat16")]
)
def test_the_text_is_that_of_plain_decoding(pair: Pair, case: str, dtype: str) -> None:
    """Greedy and sampled, with and without truncation, ragged batches, chunked prompts, few pages,
    a verify width that changes with the batch and is below the block's."""
    target, draft = pair(case)
    tight = CacheConfig(page_size_tokens=4, num_pages=44)
    sizes: dict[str, Any] = {"dtype": dtype, "cache": tight, "max_batch_tokens": 14}
    plain = LLM(str(target), max_batch_size=4, **sizes)
    spec = dflash({1: 5, 2: 3, 3: 1, 4: 2})
    ours = LLM(str(target), draft=str(draft), speculative=spec, max_batch_size=4, **sizes)
    for temperature, options in ((0.0, {}), (0.7, {}), (0.7, CUT)):
        asked = params(temperature, **options)
        assert texts(ours, asked) == texts(plain, asked)
        for out in ours.generate(PROMPTS[:2], asked[:2]):
            assert counts(out)[0] > 10


def test_requests_are_preempted_and_nobody_sees_it(pair: Pair) -> None:
    target, draft = pair("mixed")
    asked = params(0.7, max_tokens=30)
    wanted = texts(LLM(str(target)), asked)
    cache = CacheConfig(page_size_tokens=2, num_pages=40)
    ours = LLM(str(target), draft=str(draft), speculative=dflash(4), cache=cache)
    released: list[str] = []
    real = ours.proposer.release  # type: ignore[union-attr]

    def spy(request_id: str) -> None:
        released.append(request_id)
        real(request_id)

    ours.proposer.release = spy  # type: ignore[method-assign, union-attr]
    assert texts(ours, asked) == wanted
    assert len(released) > len(PROMPTS)  # a request that finishes is released once


def test_a_text_goes_on_past_the_drafts_last_position(pair: Pair, tmp_path: Path) -> None:
    target, _ = pair("plain")
    case = DraftCase(options={"max_position_embeddings": 12})
    write_draft(tmp_path / "short", draft_config(case), draft_tensors(case))
    plain = LLM(str(target))
    ours = LLM(str(target), draft=str(tmp_path / "short"), speculative=dflash(3))
    asked = params(0.0, max_tokens=30)
    assert texts(ours, asked) == texts(plain, asked)
    drafted = [counts(out)[0] for out in ours.generate(PROMPTS, asked)]
    assert drafted[2] == drafted[5] == 0  # prompts past the limit
    assert 0 < drafted[0] < 30
    assert drafted[0] < drafted[1]


@pytest.mark.parametrize("case", ["plain", "mixed", "longrope"])
def test_a_prefix_hit_drafts_what_a_cold_prompt_does(pair: Pair, case: str) -> None:
    """Tokens and accepts, for prompts that share pages in full, in part and not at all; with
    longrope also for a prompt whose angles another's pages do not have."""
    target, draft = pair(case)
    shared = [11, 40, 3, 77, 25, 60, 8, 19, 33]
    longer = [*shared, *range(50, 58)]
    prompts = [shared, [*shared, 5], [*shared[:8], 6, 7], shared[:4], [1, *shared], longer]
    asked = [SamplingParams(temperature=0.7, seed=n, max_tokens=12) for n in range(6)]
    found = []
    for caching in (False, True):
        cache = CacheConfig(page_size_tokens=4, num_pages=64, prefix_caching=caching)
        ours = LLM(
            str(target), draft=str(draft), speculative=dflash(3), cache=cache, max_batch_size=1
        )
        for _ in range(1 + caching):
            outs = ours.generate(prompts, asked)
            found.append([(list(out.token_ids), counts(out)) for out in outs])
    assert found[0] == found[1] == found[2]
    assert sum(accepted for _, (_, accepted) in found[0]) > 3


def test_any_chunking_drafts_what_one_chunk_does(pair: Pair) -> None:
    """Rows of chunks that are not the last are taken in, and nothing is drafted on them."""
    target, draft = pair("sliding")
    asked = params(0.0, max_tokens=12)
    found = []
    for most in (64, 7, 5):
        ours = LLM(
            str(target),
            draft=str(draft),
            speculative=dflash(4),
            max_batch_tokens=most,
            max_batch_size=1,
        )
        outs = ours.generate(PROMPTS, asked)
        found.append([(list(out.token_ids), counts(out)) for out in outs])
    assert found[0] == found[1] == found[2]


def test_features_live_for_one_chunk(pair: Pair) -> None:
    """The bound of the memory plan: taps of at most max_batch_tokens rows, once, for one step."""
    target, draft = pair("plain")
    most = 16
    ours = LLM(str(target), draft=str(draft), speculative=dflash(2), max_batch_tokens=most)
    proposer: Any = ours.proposer
    real = proposer.propose
    alive: list[weakref.ref[torch.Tensor]] = []
    sizes: list[int] = []

    def spy(batch: DraftBatch) -> Sequence[Proposal]:
        assert batch.features is not None
        assert sum(ref() is not None for ref in alive) == 0
        alive.append(weakref.ref(batch.features))
        sizes.append(batch.features.numel() * batch.features.element_size())
        found: Sequence[Proposal] = real(batch)
        return found

    proposer.propose = spy
    ours.generate([[9] * 100], SamplingParams(temperature=0, max_tokens=8))
    bound = most * len(CASES["plain"].aux_hidden_state_layers) * LAYER["hidden_size"] * 4
    assert len(sizes) > 7
    assert max(sizes) == bound
    without = LLM(str(target), max_batch_tokens=most).memory_plan.activations
    logits = 3 * 4 * VOCAB * min(16 * 2, most)  # a block's, of 16 requests
    assert ours.memory_plan.activations - without == 2 * bound + logits
    assert all(ref() is None for ref in alive)


def test_what_is_drafted_at_once_stays_within_a_pass(pair: Pair) -> None:
    """Rows of blocks and of logits, and what the next pass verifies, for twelve requests."""
    target, draft = pair("plain")
    asked = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    for most, width in ((40, 2), (64, 4), (512, 7)):
        sizes: dict[str, Any] = {"max_batch_tokens": most, "max_batch_size": 12}
        ours = LLM(str(target), draft=str(draft), speculative=dflash(15), **sizes)
        proposer: Any = ours.proposer
        blocks: list[tuple[int, int]] = []
        real = proposer.forward

        def spy(rows: BlockRows, blocks: Any = blocks, real: Any = real) -> torch.Tensor:
            blocks.append((len(rows.tokens), len(rows.wanted_rows)))
            found: torch.Tensor = real(rows)
            return found

        proposer.forward = spy
        ours.generate([[i + 1, i + 2] for i in range(12)], asked)
        assert max(blocks) == (12 * (width + 1), 12 * width)
        assert max(blocks)[0] <= most  # 7 are what an answer of nine has room for


def test_a_chunk_of_a_prompt_asks_no_policy_for_a_width(pair: Pair) -> None:
    """Three looks at a width would be spent on passes that draft nothing."""
    target, draft = pair("plain")
    spec = dflash("adaptive")
    ours = LLM(str(target), draft=str(draft), speculative=spec, max_batch_tokens=16)
    speculation = ours.engine.runner.speculation
    assert speculation is not None
    policy: Any = speculation.policy
    asked: list[int] = []
    real = policy.choose

    def spy(num_requests: int) -> int:
        asked.append(num_requests)
        return int(real(num_requests))

    policy.choose = spy
    ours.generate([[9] * 100], SamplingParams(temperature=0, max_tokens=4))
    assert asked
    assert set(asked) == {1}


def constant(folder: Path, token: int = 7) -> Path:
    """A target that says one token for ever: its blocks add nothing, its head knows one row."""
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        **{"vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 64},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": LAYERS},
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[token] = 1
        model.model.embed_tokens.weight.abs_()
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("anchor", [False, True])
def test_a_perfect_draft_is_accepted_whole(tmp_path: Path, anchor: bool) -> None:
    """Every step commits the whole block and the bonus, to the last one that has room."""
    target = constant(tmp_path / "target")
    case = CASES["speculators-anchor"] if anchor else DraftCase(inside={**INSIDE, "block_size": 5})
    tensors = draft_tensors(case)
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()
    write_draft(tmp_path / "draft", draft_config(case), tensors)
    ours = LLM(str(target), draft=str(tmp_path / "draft"), speculative=dflash(4))
    asked = params(0.0, max_tokens=26)
    assert texts(ours, asked) == texts(LLM(str(target)), asked)
    for out in ours.generate(PROMPTS, asked):
        assert counts(out) == (20, 20)
        assert out.speculative is not None
        assert out.speculative["mean_committed_per_step"] == 5.0


@pytest.mark.parametrize("factor", [float("nan"), 1e30])
def test_a_draft_that_computes_no_numbers_is_named_once(
    pair: Pair, tmp_path: Path, factor: float
) -> None:
    """Nothing is drafted for ever, and the text is right: without a word nobody would know."""
    tensors = {name: tensor * factor for name, tensor in draft_tensors(CASES["plain"]).items()}
    path = tmp_path / "broken"
    write_draft(path, draft_config(CASES["plain"]), tensors)
    target, whole = pair("plain")
    asked = params(0.7, max_tokens=8)
    ours = LLM(str(target), draft=str(path), speculative=dflash(4))
    with pytest.warns(RuntimeWarning, match=f"the draft {path} computed numbers that are not fin"):
        outputs = ours.generate(PROMPTS, asked)
    assert [out.token_ids for out in outputs] == [ids for ids, _ in texts(LLM(str(target)), asked)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.generate(PROMPTS, asked)
        LLM(str(target), draft=str(whole), speculative=dflash(4)).generate(PROMPTS, asked)


def test_residual_acceptance_takes_laws_of_the_target_vocabulary(pair: Pair) -> None:
    target, draft = pair("speculators-small")
    spec = dflash(3, acceptance="residual")
    ours = LLM(str(target), draft=str(draft), speculative=spec)
    runner: Any = ours.engine.runner
    real = runner.speculation.acceptance.decide
    seen: list[VerifyRequest] = []

    def spy(logits: torch.Tensor, requests: list[VerifyRequest]) -> Any:
        seen.extend(one for one in requests if one.drafts)
        return real(logits, requests)

    runner.speculation.acceptance.decide = spy
    for out in ours.generate(PROMPTS, params(1.0)):
        assert len(out.token_ids) == 20
        assert counts(out)[0] > 10
    assert len(seen) > 10
    unknown = ~draft_tensors(CASES["speculators-small"])["t2d"]
    for one in seen:
        assert one.draft.probs is not None
        assert one.draft.probs.shape == (len(one.drafts), VOCAB)
        ones = torch.ones(len(one.drafts), dtype=one.draft.probs.dtype)
        torch.testing.assert_close(one.draft.probs.sum(-1), ones)
        assert not one.draft.probs[:, unknown].any()
        assert (one.draft.probs[range(len(one.drafts)), list(one.drafts)] > 0).all()


TARGETS: dict[str, dict[str, Any]] = {
    "Qwen3": {"head_dim": 16},
    "Granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5},
    "Lfm2": {
        "layer_types": ["conv", "full_attention", "conv", "conv", "full_attention", "conv", "conv"],
        "block_auto_adjust_ff_dim": False,
    },
}


@pytest.mark.parametrize("family", TARGETS)
def test_drafts_run_on_targets_that_know_nothing_of_them(
    pair: Pair, tmp_path: Path, family: str
) -> None:
    """Other families, one of them with a state that is no keys and values and is rolled back."""
    _, draft = pair("mixed")
    torch.manual_seed(4)
    config = getattr(transformers, f"{family}Config")(
        **{
            **{"vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 64},
            **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": LAYERS},
            **{"max_position_embeddings": 128, "initializer_range": 0.2, **TARGETS[family]},
        },
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    )
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(tmp_path / "target")
    sizes: dict[str, Any] = {"max_batch_size": 3, "max_batch_tokens": 16, "dtype": "float32"}
    ours = LLM(str(tmp_path / "target"), draft=str(draft), speculative=dflash(4), **sizes)
    plain = LLM(str(tmp_path / "target"), **sizes)
    for temperature in (0.0, 0.7):
        asked = params(temperature, max_tokens=12)
        assert texts(ours, asked) == texts(plain, asked)


def test_the_targets_multipliers_are_in_what_it_lends(pair: Pair, tmp_path: Path) -> None:
    """Granite scales embedding and logits; a draft that gives factors means the plain ones."""
    _, draft = pair("plain")
    config = transformers.GraniteConfig(
        **{"vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 64},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": LAYERS},
        **{"embedding_multiplier": 4.0, "logits_scaling": 2.0},
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    )
    model = transformers.GraniteForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "target")
    tokens, hidden = torch.tensor([3, MASK]), torch.randn(2, 48)
    plain_rows = model.model.embed_tokens(tokens).detach()
    plain_logits = (hidden @ model.lm_head.weight.T).detach()
    case = DraftCase(inside={**INSIDE, "input_embedding_scale": 3.0, "output_multiplier": 0.5})
    write_draft(tmp_path / "scaled", draft_config(case), draft_tensors(case))
    for path, embedding, logits in ((draft, 4.0, 0.5), (tmp_path / "scaled", 3.0, 0.5)):
        ours = LLM(
            str(tmp_path / "target"), draft=str(path), speculative=dflash(3), dtype="float32"
        )
        proposer: Any = ours.proposer
        torch.testing.assert_close(proposer.embed(tokens), plain_rows * embedding)
        torch.testing.assert_close(proposer.logits(hidden), plain_logits * logits)


# A draft is not a model


def test_a_draft_alone_is_refused_and_the_route_named(
    pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    _, draft = pair("plain")
    with pytest.raises(RouteError, match="--speculative dflash"):
        LLM(str(draft))
    assert main(["generate", str(draft), "--prompt", "hello"]) == 2
    said = capsys.readouterr().err
    assert "DFlashDraftModel" in said
    assert "--speculative dflash" in said


def test_every_use_of_a_draft_as_a_model_names_the_route() -> None:
    """All that the engine asks of a model, and any other name."""
    names = {*vars(PipelineModel), *PipelineModel.__annotations__}
    asked = {name for name in names if not name.startswith("_")} - {"config_class"}
    assert {"state", "execute", "release", "prepare_next_token_inputs", "config"} <= asked
    alone: Any = DFlashLlama3Model(None, device="cpu")
    for name in asked:
        with pytest.raises(RouteError, match="--speculative dflash"):
            getattr(alone, name)(None)
    unified: Any = DFlashLlama3Model
    with pytest.raises(RouteError, match="--speculative dflash"):
        unified.calculate_max_seq_len(None, None)


def test_inspect_shows_the_draft_without_reading_weights(
    pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    target, draft = pair("unsorted")
    flags = ["--draft", str(draft), "--speculative", "dflash", "--json"]
    assert main(["inspect", str(target), *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "[6, 1, 6, 0, 7]" in json.dumps(found)


@pytest.mark.parametrize("rows", [VOCAB - 5, VOCAB + 8])
def test_an_embedding_padded_to_another_size_drafts_alike(
    pair: Pair, tmp_path: Path, rows: int
) -> None:
    """What only the draft's padding has would be drafted always, if it counted."""
    target, _ = pair("plain")
    case = CASES["plain"]
    config = {**draft_config(case), "vocab_size": rows}
    tensors = dict(draft_tensors(case))
    torch.manual_seed(9)
    for name in ("embed_tokens.weight", "lm_head.weight"):
        made = torch.randn(VOCAB, LAYER["hidden_size"])
        more = torch.full((max(0, rows - VOCAB), LAYER["hidden_size"]), 50.0)
        tensors[name] = torch.cat([made, more])[:rows].contiguous()
    write_draft(tmp_path / "padded", config, tensors)
    for name in ("embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:VOCAB].contiguous()
    drafts = [tmp_path / "padded"]
    if rows > VOCAB:
        write_draft(tmp_path / "whole", draft_config(case), tensors)
        drafts.append(tmp_path / "whole")
    plain, usual = LLM(str(target)), params(0.0)
    ours = [LLM(str(target), draft=str(path), speculative=dflash(4)) for path in drafts]
    assert texts(ours[0], usual) == texts(plain, usual)
    counted = [[counts(out) for out in llm.generate(PROMPTS, usual)] for llm in ours]
    assert all(one == counted[0] for one in counted)
    odd = params(0.9, logit_bias={VOCAB - 1: 6.0})
    wanted = texts(plain, odd)
    assert any(VOCAB - 1 in ids for ids, _ in wanted)
    assert texts(ours[0], odd) == wanted
