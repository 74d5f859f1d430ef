"""The kit says what it does not know: without an oracle, or with one that errs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file

from pilotfish import load_registry
from pilotfish.bench.measure import in_words
from pilotfish.cli import main
from pilotfish.cli.verify_pace import COSTS, Pace
from pilotfish.errors import ConfigError, UserError
from pilotfish.layers.attention import Attention
from pilotfish.models.decoder_model import DecoderModel
from pilotfish.plugin_specs import Plugin
from pilotfish.protocols import NO_LIMIT
from pilotfish.registry import Registry
from pilotfish.testing import (
    PROMISES,
    Oracle,
    Subject,
    TransformersOracle,
    check,
    promise_named,
    promises_named,
    save_tiny,
    save_with_transformers,
    tiny_subjects,
)
from pilotfish.testing.checkpoints import shrunk, tiny_config, with_more_heads
from pilotfish.testing.promises.options import _unheard_of, other_options
from pilotfish.weights.formats.safetensors import SINGLE_FILE

pytest_plugins = ["pytester"]

PARITY, GREEDY = "parity with the oracle", "greedy tokens are the oracle's"


@pytest.fixture(scope="module")
def llama() -> Iterator[Subject]:
    opened = tiny_subjects("LlamaForCausalLM", load_registry(), dtypes=("float32",), only=["plain"])
    with opened as (subject,):
        yield subject


def asking(subject: Subject, oracle: Any) -> Subject:
    """The subject with another oracle."""
    return attrs.evolve(subject, models={}, oracle=oracle)


# Verdicts


def verify(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str, list[str]]:
    code = main(["verify", "--architecture", "GraniteForCausalLM", *flags])
    out, err = capsys.readouterr()
    return code, out, err.splitlines()


def test_without_an_oracle_no_run_says_that_every_promise_is_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, dtype: str, attention: str) -> Any:
        raise ValueError("no such model")

    monkeypatch.setattr(TransformersOracle, "_loaded", refuse)
    code, out, err = verify(capsys, "--promise", PARITY, "--promise", "batch equals singles")
    assert code == 3
    assert out.startswith(f"not known      {PARITY}")
    assert "transformers cannot load it (no such model)" in out
    assert err[-1] == (
        "no promise is broken, but not of all it is known that they are kept: 1 not known, 1 ok"
    )


def test_where_no_promise_says_anything_none_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = verify(capsys, "--promise", "images matter")
    assert code == 3
    assert err[-1] == "no promise says anything here: 1 not applicable"


def test_a_promise_is_named_before_it_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfish.testing.check", lambda *_: (_ for _ in ()).throw(MemoryError()))
    code, out, err = verify(capsys, "--promise", "images matter")
    assert (code, out) == (1, "")
    assert err[:2] == ["1 promise: about 1 s on two cores", "checking 1 of 1: images matter"]


def test_the_time_that_is_left_is_told_from_what_was_measured() -> None:
    seconds = iter([0.0, 0.0, 10.0, 30.0])
    names = ["parity with the oracle", "rows are their own at real widths", "no such promise"]
    pace = Pace(names, is_tiny=False, clock=lambda: next(seconds))
    assert pace.before().startswith("3 promises: about 2 min on two cores for a model of 135")
    first, second, third = map(pace.begin, names)
    assert first == "checking 1 of 3: parity with the oracle"
    share = (COSTS[names[1]] + 0.05) / COSTS[names[0]]
    assert second == f"checking 2 of 3: {names[1]} ({in_words(10 * share)} left)"
    assert third == "checking 3 of 3: no such promise (about 1 s left)"
    assert set(COSTS) <= {promise.name for promise in PROMISES}


def test_promises_are_asked_for_by_patterns(capsys: pytest.CaptureFixture[str]) -> None:
    assert {p.name for p in promises_named("*warm*")} == {
        "warm prefix equals cold",
        "a warm prefix drafts as a cold one",
    }
    assert all(promise.needs_drafter for promise in promises_named("drafts"))
    assert len(promises_named("drafts")) == 7
    with pytest.raises(UserError, match=r"no promise fits '\*zebra\*'"):
        promises_named("*zebra*")
    code, _, err = verify(capsys, "--promise", "drafts")
    assert code == 2
    assert "is about a drafter and none was given; wanted --speculative METHOD" in err[-1]


def test_in_pytest_what_is_not_known_fails(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from pilotfish.testing import NotKnown, TransformersOracle

        @pytest.fixture(autouse=True)
        def nothing(monkeypatch):
            def refuse(self, dtype, attention):
                raise NotKnown("nobody to ask")
            monkeypatch.setattr(TransformersOracle, "_loaded", refuse)

        @pytest.mark.pilotfish("GraniteForCausalLM", promises=["parity*"], dtypes=["float32"])
        def test_parity(promise):
            promise.keep()

        @pytest.mark.pilotfish("GraniteForCausalLM", promises=["drafts"], dtypes=["float32"],
            speculative="ngram")
        def test_drafts(promise):
            promise.keep()
        """
    )
    done = pytester.runpytest_inprocess()
    done.assert_outcomes(failed=1, passed=7)
    done.stdout.fnmatch_lines(["*parity with the oracle is not known to be kept: *nobody to ask*"])


# Oracles


class Contrary(Oracle):
    """Another oracle's answers, one of them wrong."""

    def __init__(self, real: Oracle, wrong: str) -> None:
        self.real, self.wrong = real, wrong

    def exact(self, tokens: Sequence[int], dtype: str) -> torch.Tensor:
        return self.real.exact(tokens, dtype)

    def eager(self, tokens: Sequence[int], dtype: str) -> torch.Tensor:
        found = self.real.eager(tokens, dtype)
        return found * 1.3 if self.wrong == "eager" else found

    def generate(self, tokens: Sequence[int], count: int) -> list[int]:
        found = self.real.generate(tokens, count)
        return [(token + 1) % 96 for token in found] if self.wrong == "generate" else found


@pytest.mark.parametrize(
    ("wrong", "promise", "said"),
    [
        ("eager", PARITY, "its `eager` logits in float32 are off by"),
        ("eager", "the arithmetics agree", "its `eager` logits"),
        ("eager", "options are read or refused", "its `eager` logits"),
        ("generate", GREEDY, "mend the oracle's `generate`"),
    ],
)
def test_an_oracle_that_contradicts_itself_is_no_measure(
    llama: Subject, wrong: str, promise: str, said: str
) -> None:
    odd = asking(llama, Contrary(llama.oracle, wrong))
    result = check(promise_named(promise), odd)
    assert result.status == "not known"
    assert "the oracle contradicts itself" in result.said
    assert said in result.said
    fine = asking(llama, Contrary(llama.oracle, ""))
    assert check(promise_named(promise), fine).status == "ok"


def test_an_oracle_that_does_not_answer_is_named(llama: Subject) -> None:
    silent = asking(llama, Contrary(llama.oracle, ""))
    result = check(promise_named("boundaries are the oracle's"), silent)
    said = "the `hidden_states` of the oracle, Contrary, gives none"
    assert (result.status, result.said) == ("not known", said)


def test_a_wrong_model_is_told_from_a_wrong_option(
    llama: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DecoderModel, "execute", scaled(DecoderModel.execute))
    result = check(promise_named("options are read or refused"), asking(llama, llama.oracle))
    assert result.status == "FAILED"
    assert result.said.startswith("got logits with no option changed")


def scaled(real: Any) -> Any:
    def execute(self: Any, inputs: Any) -> Any:
        outputs = real(self, inputs)
        return attrs.evolve(outputs, logits=outputs.logits * 1.1)

    return execute


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        # Eager attention alone; a norm and a body of other names; no embedding in hidden states.
        ("GPTJForCausalLM", {"n_embd": 64, "n_head": 4, "n_layer": 2, "rotary_dim": 8}),
        ("GPTNeoXForCausalLM", {}),
        (
            "Mamba2ForCausalLM",
            {"num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 2, "chunk_size": 8},
        ),
        ("GptOssForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}),
    ],
)
def test_transformers_is_asked_whatever_the_class(
    architecture: str, options: dict[str, Any], tmp_path: Path
) -> None:
    save_with_transformers(tiny_config(architecture, options), tmp_path)
    oracle = TransformersOracle(tmp_path)
    tokens = [5, 17, 42, 9, 11]
    exact, eager = oracle.exact(tokens, "float32"), oracle.eager(tokens, "float32")
    assert float((exact - eager).abs().max()) < 1e-3 * float(exact.abs().max())
    states = oracle.hidden_states(tokens, "float32")
    assert [list(state.shape) for state in states] == [[5, 64]] * 3
    weights = load_file(tmp_path / SINGLE_FILE)
    embedding = next(w for n, w in weights.items() if re.search("embed_(in|tok)|embeddings|wte", n))
    assert torch.allclose(states[0].float(), embedding[tokens], atol=1e-6)


def test_the_oracle_has_the_numbers_of_the_file(tmp_path: Path) -> None:
    """transformers scales what it loads, by an option for training."""
    options = {"num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 2, "chunk_size": 8}
    save_with_transformers(
        tiny_config("Mamba2ForCausalLM", {**options, "rescale_prenorm_residual": True}), tmp_path
    )
    stored = load_file(tmp_path / SINGLE_FILE)
    name = "backbone.layers.0.mixer.out_proj.weight"
    assert torch.equal(
        dict(TransformersOracle(tmp_path).load("float32").named_parameters())[name], stored[name]
    )


def test_tensors_that_a_rule_lets_lie_are_not_missed(tmp_path: Path) -> None:
    """A DeepSeek-V3 checkpoint with its layer for drafting, as it is published."""
    registry = load_registry()
    path = save_tiny("DeepseekV3ForCausalLM", "latent queries", tmp_path, registry)
    config = json.loads((path / "config.json").read_text())
    layer = config["num_hidden_layers"]
    tensors = load_file(path / SINGLE_FILE)
    tensors[f"model.layers.{layer}.eh_proj.weight"] = torch.randn(64, 128)
    tensors[f"model.layers.{layer}.enorm.weight"] = torch.ones(64)
    # Experts, which transformers joins, so that its names are not the file's.
    last = f"model.layers.{layer - 1}."
    experts = [name for name in tensors if name.startswith(last + "mlp.experts.")]
    assert experts
    for name in experts:
        tensors[f"model.layers.{layer}." + name.removeprefix(last)] = tensors[name].clone()
    save_file(tensors, path / SINGLE_FILE, metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 1}))
    names = ["weights are strict", "parameters are known early", PARITY, "every tensor counts"]
    with Subject(
        name="with MTP", model=str(path), registry=registry, dtypes=("float32",), num_threads=1
    ) as subject:
        found = {name: check(promise_named(name), subject) for name in names}
    assert {name: (r.status, r.said) for name, r in found.items() if r.status != "ok"} == {}


# What is tried


def without_examples(architecture: str) -> Registry:
    def bare(plugin: Plugin) -> Plugin:
        kept = (
            attrs.evolve(spec, examples=None) if architecture in spec.names else spec
            for spec in plugin.architectures
        )
        return attrs.evolve(plugin, architectures=tuple(kept))

    return Registry(plugins=tuple(map(bare, load_registry().plugins)))


def test_a_window_is_shorter_than_the_kits_texts_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = without_examples("MistralForCausalLM")
    promise = promise_named(PARITY)
    with tiny_subjects("MistralForCausalLM", registry, dtypes=("float32",)) as (subject,):
        assert check(promise, subject).status == "ok"
    real = Attention.__init__
    monkeypatch.setattr(
        Attention, "__init__", lambda self, *a, **o: real(self, *a, **{**o, "window": None})
    )
    with tiny_subjects("MistralForCausalLM", registry, dtypes=("float32",)) as (subject,):
        assert check(promise, subject).status == "FAILED"


def test_what_an_example_does_not_say_is_made_small() -> None:
    import transformers

    small = tiny_config("any", {})
    gemma = shrunk(transformers.Gemma3TextConfig, small)
    assert gemma["sliding_window"] == 9
    assert sorted(gemma["layer_types"]) == ["full_attention", "sliding_attention"]
    assert gemma["num_hidden_layers"] == 2
    oss = shrunk(transformers.GptOssConfig, small)
    assert oss["rope_parameters"]["original_max_position_embeddings"] == 16
    assert oss["rope_parameters"]["rope_type"] == "yarn"
    told = {**small, "sliding_window": 77, "layer_types": ["full_attention"] * 2}
    assert shrunk(transformers.Gemma3TextConfig, told)["sliding_window"] == 77
    assert shrunk(transformers.Gemma3TextConfig, told)["layer_types"] == ["full_attention"] * 2
    assert shrunk(transformers.LlamaConfig, small).keys() == {*small, "rope_parameters"}


def test_wide_sizes_may_be_told_in_words_of_the_authors_own() -> None:
    assert with_more_heads({"n_embd": 1024}, {}) == {"n_embd": 1024}
    assert with_more_heads({"hidden_size": 1000}, {}) == {
        "hidden_size": 992,
        "num_attention_heads": 62,
        "num_key_value_heads": 31,
    }


def test_an_example_that_there_is_not_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no example 'nope'; wanted one of plain, "):
        save_tiny("LlamaForCausalLM", "nope", tmp_path, load_registry())


def test_options_are_tried_at_any_depth() -> None:
    by_type = {"full": {"rope_type": "default", "rope_theta": 5.0}, "sliding": {"rope_theta": 7.0}}
    assert _unheard_of(by_type) == [
        {**by_type, "full": {"rope_type": "unheard-of", "rope_theta": 5.0, "factor": 2.0}},
        {**by_type, "sliding": {"rope_type": "unheard-of", "rope_theta": 7.0, "factor": 2.0}},
    ]

    class Config:
        def to_dict(self) -> dict[str, Any]:
            return {"rope_parameters": by_type, "unread": {"a": 1}}

    class Checkpoint:
        huggingface_config = Config()

    class Fake:
        dtype = "float32"
        checkpoint = Checkpoint()

        def prepared(self, dtype: str) -> Any:
            return self

    subject: Any = Fake()
    paths = [path for path, _ in other_options(subject)]
    assert list(dict.fromkeys(paths)) == [
        "rope_parameters.full.rope_theta",
        "rope_parameters.sliding.rope_theta",
    ]


def test_a_model_without_a_limit_refuses_none(
    llama: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    promise = promise_named("limits are refused")
    assert check(promise, llama).status == "ok"
    monkeypatch.setattr(Subject, "max_seq_len", NO_LIMIT)
    assert check(promise, llama).status == "not applicable"


def test_what_cannot_be_edited_is_not_known(llama: Subject, tmp_path: Path) -> None:
    whole = Path(llama.model)
    (tmp_path / "config.json").write_text((whole / "config.json").read_text())
    tensors, index = load_file(whole / SINGLE_FILE), {}
    for number, (name, tensor) in enumerate(tensors.items()):
        index[name] = f"part-{number}.safetensors"
        save_file({name: tensor}, tmp_path / index[name], metadata={"format": "pt"})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with Subject(
        name="in parts", model=str(tmp_path), registry=load_registry(), dtypes=("float32",)
    ) as subject:
        result = check(promise_named("options are read or refused"), subject)
    assert result.status == "not known"
    assert "no directory with model.safetensors" in result.said
