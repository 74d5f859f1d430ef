"""LLM from the outside: a checkpoint on disk, prompts in, outputs out."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.test_engine_faults import planted
from pilotfish import LLM, CacheConfig, SamplingParams, SpeculativeConfig
from pilotfish.engine import RequestOutput
from pilotfish.engine import llm as llm_module
from pilotfish.engine import progress as progress_module
from pilotfish.errors import (
    CapacityError,
    CheckpointError,
    ConfigError,
    PilotfishError,
    RequestError,
    RouteError,
)
from pilotfish.kernels.native import library
from pilotfish.loading.prepare import prepare_from_options
from pilotfish.sampling import Sampler
from support.toy_model import (
    EOS,
    VOCAB,
    ToyModel,
    context_hash,
    logits_of,
    naive_answer,
    toy_registry,
    write_toy_checkpoint,
)

pytestmark = pytest.mark.usefixtures("one_thread")

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_toy_checkpoint(tmp_path_factory.mktemp("toy")))


@pytest.fixture(scope="module")
def llm(checkpoint: str) -> Iterator[LLM]:
    with LLM(checkpoint, registry=toy_registry(), max_batch_tokens=8, max_batch_size=3) as made:
        yield made


@pytest.fixture(autouse=True)
def holds_nothing_afterwards(llm: LLM) -> Iterator[None]:
    yield
    assert llm._state is not None
    llm._state.check()
    assert llm._state.request_ids == ()
    assert not llm.engine.has_work


def naive(prompt: str, params: SamplingParams = GREEDY) -> list[int]:
    return naive_answer(list(prompt.encode()), params)[0]


def test_a_text_ids_and_lists_of_both_are_prompts(llm: LLM) -> None:
    [text] = llm.generate("abc", GREEDY)
    [ids] = llm.generate([97, 98, 99], GREEDY)
    mixed: list[str | list[int]] = ["abc", [97, 98, 99], "xyz"]
    both = llm.generate(mixed, GREEDY)
    assert text.token_ids == ids.token_ids == naive("abc")
    assert [output.token_ids for output in both] == [naive("abc"), naive("abc"), naive("xyz")]
    assert [output.index for output in both] == [0, 1, 2]
    assert both[0].prompt_token_ids == [97, 98, 99]
    assert llm.generate([], GREEDY) == []


def test_each_prompt_has_its_own_params(llm: LLM) -> None:
    params = [GREEDY, SamplingParams(seed=4, max_tokens=9), SamplingParams(seed=4, max_tokens=2)]
    prompts = ["abc", "hello", "hello"]
    outputs = llm.generate(prompts, params)
    assert [output.token_ids for output in outputs] == [
        naive(prompt, options) for prompt, options in zip(prompts, params, strict=True)
    ]
    with pytest.raises(RequestError, match="got 1 params for 2 prompts"):
        llm.generate(["a", "b"], [GREEDY])


@pytest.mark.parametrize("params", [{"max_tokens": 3}, [{"max_tokens": 3}], ["greedy"]])
def test_params_of_another_type_are_refused(llm: LLM, params: Any) -> None:
    with pytest.raises(RequestError, match=r"params has (dict|str); wanted SamplingParams"):
        llm.generate(["abc"], params)


def test_the_defaults_are_those_of_sampling_params(llm: LLM) -> None:
    [output] = llm.generate("abc")
    assert output.seed is not None
    again = llm.generate("abc", SamplingParams(seed=output.seed))[0]
    assert again.token_ids == output.token_ids


def test_of_several_prompts_the_bad_ones_are_reported_and_the_others_run(llm: LLM) -> None:
    """Pitfall 44: every request is answered, exactly once."""
    prompts: list[str | list[int]] = ["abc", "", [VOCAB], "x" * 64, "xyz"]
    outputs = llm.generate(prompts, GREEDY)
    reasons = [output.finish_reason for output in outputs]
    assert reasons == ["length", "error", "error", "error", "length"]
    assert outputs[4].token_ids == naive("xyz")
    assert "empty" in str(outputs[1].error)
    assert "token 0 of the prompt is 257" in str(outputs[2].error)
    assert "has 64 tokens; wanted at most 63" in str(outputs[3].error)
    assert outputs[2].prompt_token_ids == [VOCAB]
    assert "error" in outputs[1].to_json()
    odd: list[Any] = [None, "abc"]
    nothing, answered = llm.generate(odd, GREEDY)
    assert (nothing.to_json()["prompt_token_ids"], nothing.finish_reason) == ([], "error")
    assert answered.token_ids == naive("abc")


@pytest.mark.parametrize("prompt", ["", [VOCAB], ["x" * 64], [[1, "a"]]])
def test_a_single_bad_prompt_raises(llm: LLM, prompt: Any) -> None:
    with pytest.raises(RequestError):
        llm.generate(prompt, GREEDY)


@pytest.mark.parametrize("prompt", [b"abc", [b"abc"], {"prompt": bytearray(b"abc")}])
def test_bytes_are_no_token_ids(llm: LLM, prompt: Any) -> None:
    with pytest.raises(RequestError, match=r"is byte(s|array); wanted "):
        llm.generate(prompt, GREEDY)


def test_a_stream_takes_no_bytes_for_token_ids(llm: LLM) -> None:
    with pytest.raises(RequestError, match="a prompt is bytes; wanted text or a list"):
        llm.stream(b"abc", GREEDY)


@pytest.mark.parametrize("prompts", [7, None, {1}])
def test_what_is_no_prompt_is_refused(llm: LLM, prompts: Any) -> None:
    with pytest.raises(RequestError, match="wanted a text, a list of token ids"):
        llm.generate(prompts, GREEDY)


def test_json_has_the_promised_fields(llm: LLM) -> None:
    params = SamplingParams(seed=1, max_tokens=3, ignore_eos=True, logprobs=1, prompt_logprobs=0)
    [output] = llm.generate("abc", params)
    found = json.loads(json.dumps(output.to_json()))
    assert set(found) == {
        *("index", "prompt_token_ids", "token_ids", "text", "finish_reason", "seed"),
        *("speculative", "timing", "logprobs", "prompt_logprobs"),
    }
    assert set(found["timing"]) == {"load_s", "prefill_s", "decode_s", "decode_tokens_per_s"}
    assert found["timing"]["load_s"] == llm.load_s > 0
    assert found["timing"]["prefill_s"] > 0
    assert found["speculative"] is None
    assert found["prompt_logprobs"][0] is None
    assert [record["token_id"] for record in found["logprobs"]] == found["token_ids"]
    assert len(found["logprobs"][0]["top"]) == 1
    assert set(llm.generate("abc", GREEDY)[0].to_json()) == set(found) - {
        "logprobs",
        "prompt_logprobs",
    }


def test_a_stream_gives_what_generate_gives(llm: LLM) -> None:
    params = SamplingParams(seed=3, max_tokens=12, temperature=2.0, logprobs=0)
    [whole] = llm.generate("abc", params)
    deltas = list(llm.stream("abc", params))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert [token for delta in deltas for token in delta.token_ids] == whole.token_ids
    last = deltas[-1].output
    assert isinstance(last, RequestOutput)
    assert (last.token_ids, last.text) == (whole.token_ids, whole.text)
    assert [delta.output for delta in deltas[:-1]] == [None] * (len(deltas) - 1)


def test_a_closed_stream_gives_its_pages_back(llm: LLM) -> None:
    stream = llm.stream("abc", GREEDY)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert llm.generate("abc", GREEDY)[0].token_ids == naive("abc")


def test_streams_may_be_read_in_turns_and_beside_generate(llm: LLM) -> None:
    first, second = llm.stream("abc", GREEDY), llm.stream("xyz", GREEDY)
    tokens: list[list[int]] = [[], []]
    for a, b in zip(first, second, strict=True):
        tokens[0] += a.token_ids
        tokens[1] += b.token_ids
        if len(tokens[0]) == 2:
            assert llm.generate("mno", GREEDY)[0].token_ids == naive("mno")
    assert tokens == [naive("abc"), naive("xyz")]


def test_a_bad_prompt_is_refused_before_the_stream_is_read(llm: LLM) -> None:
    with pytest.raises(RequestError, match="empty"):
        llm.stream("", GREEDY)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("where", [(ToyModel, "execute"), (Sampler, "sample")])
@pytest.mark.parametrize("at", [1, 3])
def test_whatever_breaks_generate_is_raised_and_leaves_it_usable(
    llm: LLM, error: type[BaseException], where: tuple[type, str], at: int
) -> None:
    with planted([where], {at}, False, error), pytest.raises(error, match="planted"):
        llm.generate(["abc", "hello", "xyz", "m"], GREEDY)
    assert llm._state is not None
    assert llm._state.request_ids == ()
    assert llm.generate("abc", GREEDY)[0].token_ids == naive("abc")


def test_an_exception_in_one_stream_leaves_the_other_whole(llm: LLM) -> None:
    first, second = llm.stream("abc", GREEDY), llm.stream("xyz", GREEDY)
    got = [*next(second).token_ids]
    with planted([(ToyModel, "execute")], {1}, False), pytest.raises(Exception, match="planted"):
        next(first)
    got += [token for delta in second for token in delta.token_ids]
    assert got == naive("xyz")


@pytest.mark.parametrize("length", [1, 7, 8, 9, 64])
def test_scores_are_the_logits_of_every_row(llm: LLM, length: int) -> None:
    """Also in chunks of 8, and although the pages of the text are cached."""
    ids = [97 + i % 26 for i in range(length)]
    if length > 1:
        llm.generate([ids[: length - 1]], GREEDY)
    scores = llm.score(ids)
    assert (scores.shape, scores.dtype) == ((length, VOCAB), torch.float32)
    assert not scores.is_inference()
    for row in range(length):
        expected = torch.from_numpy(logits_of(context_hash(ids[: row + 1])))
        assert torch.equal(scores[row], expected)


def test_several_scores_at_once(llm: LLM) -> None:
    texts = [[97] * 20, [98], [99] * 9]
    for ids, scores in zip(texts, llm.score_many(texts), strict=True):
        assert torch.equal(scores, llm.score(ids))
    with pytest.raises(RequestError, match="has 65 tokens; wanted at most 64"):
        llm.score([1] * 65)


def test_cached_prefixes_can_be_forgotten(llm: LLM) -> None:
    llm.generate("abcdefghijklmnopqrstuvwxyz", GREEDY)
    assert llm._state is not None
    assert llm._state.pool.num_cached > 0
    llm.forget_cached_prefixes()
    assert llm._state.pool.num_cached == 0


def test_a_chat_needs_a_template(llm: LLM) -> None:
    with pytest.raises(RequestError, match="no chat template"):
        llm.chat_prompt([{"role": "user", "content": "hello"}])


def test_end_tokens_of_the_generation_config_win(tmp_path: Path) -> None:
    path = write_toy_checkpoint(tmp_path, generation_eos=[98, 120])
    with LLM(str(path), registry=toy_registry()) as made:
        bias = {98: 100.0}
        [output] = made.generate("a", SamplingParams(temperature=0, logit_bias=bias))
        assert (output.token_ids, output.finish_reason) == ([98], "stop")
        bias = {EOS: 100.0}
        [output] = made.generate("a", SamplingParams(temperature=0, logit_bias=bias, max_tokens=3))
        assert (output.token_ids, output.finish_reason) == ([EOS] * 3, "length")


def test_max_length_limits_the_context(checkpoint: str) -> None:
    with LLM(checkpoint, registry=toy_registry(), max_length=8) as made:
        [output] = made.generate("abc", SamplingParams(temperature=0, ignore_eos=True))
        assert (len(output.token_ids), output.finish_reason) == (5, "length")
        with pytest.raises(RequestError, match="has 8 tokens; wanted at most 7"):
            made.generate("abcdefgh", GREEDY)


def test_an_llm_shows_what_it_is(checkpoint: str) -> None:
    made = LLM(checkpoint, registry=toy_registry(), max_length=64)
    said = repr(made)
    assert said.startswith(f"LLM({checkpoint!r}, dtype='float32', device='cpu', backend=")
    assert said.endswith("max_length=64)")
    made.close()
    assert repr(made) == f"{said[:-1]}, closed)"


def test_a_closed_llm_says_so(checkpoint: str) -> None:
    made = LLM(checkpoint, registry=toy_registry())
    stream = made.stream("abc", GREEDY)
    next(stream)
    made.close()
    made.close()
    assert [delta.finish_reason for delta in stream] == ["abort"]
    for use in (made.generate, made.score, made.stream):
        with pytest.raises(PilotfishError, match="closed"):
            use("abc")


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"speculative": "block"}, RouteError, "no plugin offers the method 'block'"),
    ({"speculative": SpeculativeConfig(method="x")}, RouteError, "no plugin offers"),
    ({"device": "gpu"}, ConfigError, "device is 'gpu'; wanted auto, cpu, cuda"),
    ({"device": "meta"}, ConfigError, "device is 'meta'"),
    ({"device": "cuda:99"}, ConfigError, "there are [0-9]+ GPUs here"),
    ({"registry": 5}, ConfigError, r"registry is 5; wanted what load_registry\(\) returns"),
    ({"dtype": "int8"}, ConfigError, "dtype is 'int8'"),
    ({"max_batch_size": 0}, ConfigError, "max_batch_size is 0"),
    ({"cache": CacheConfig(num_pages=10**12)}, CapacityError, "are needed on cpu"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_wrong_options_are_refused_before_weights_are_read(
    checkpoint: str,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ToyModel, "load_model", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(error, match=message):
        LLM(checkpoint, **{"registry": toy_registry(), **options})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *(
            (
                {"speculative": value},
                "speculative is .*; wanted None, the name of a method, or a Sp",
            )
            for value in (5, True, ["ngram"], SpeculativeConfig)
        ),
        *(
            ({"draft": value, "speculative": "ngram"}, "draft is .*; wanted a checkpoint: a direct")
            for value in (5, ["e3"], "", " ", b"e3")
        ),
        ({"speculative": ""}, "method is ''; wanted the name of a method"),
    ],
)
def test_speculation_of_another_type_is_refused(
    checkpoint: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        LLM(checkpoint, registry=toy_registry(), **options)


@pytest.mark.parametrize("method", [3, None, ("ngram",), "", True])
def test_a_method_is_a_name(method: Any) -> None:
    with pytest.raises(ConfigError, match=r"method is .*; wanted the name of a method"):
        SpeculativeConfig(method=method)


@pytest.mark.parametrize("acceptance", ["coupled", "residual", "synthetic"])
def test_thinking_tokens_that_nobody_reads_are_refused(acceptance: Any) -> None:
    with pytest.raises(
        ConfigError, match="which does not read it; wanted acceptance 'relaxed' too"
    ):
        SpeculativeConfig(method="ngram", acceptance=acceptance, thinking_tokens=(1, 2))


@pytest.mark.parametrize("acceptance", ["coupled", "residual", "relaxed"])
def test_a_rate_that_nobody_reads_is_refused(acceptance: Any) -> None:
    with pytest.raises(ConfigError, match=r"synthetic_rate is 0\.5 and acceptance .* wanted acc"):
        SpeculativeConfig(method="ngram", acceptance=acceptance, synthetic_rate=0.5)


def test_an_empty_model_is_refused() -> None:
    for name in ("", " "):
        with pytest.raises(CheckpointError, match="the model's name is empty; wanted a directory"):
            LLM(name)


def test_a_draft_without_a_method_is_refused(checkpoint: str) -> None:
    with pytest.raises(RouteError, match="without a method"):
        LLM(checkpoint, draft=checkpoint, registry=toy_registry())


def test_triton_on_a_cpu_is_refused_without_its_interpreter(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match="backend is 'triton' on a CPU"):
        LLM(checkpoint, registry=toy_registry(), device="cpu", backend="triton")


def test_triton_is_refused_where_its_package_is_not_installed(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ConfigError, match=r"not installed; wanted it .* or backend 'torch'"):
        LLM(checkpoint, registry=toy_registry(), device="cpu", backend="triton")
    with LLM(checkpoint, registry=toy_registry(), device="cpu") as made:
        assert made.generate(["abc"], GREEDY)[0].finish_reason == "length"


def test_a_missing_checkpoint_is_named() -> None:
    with pytest.raises(CheckpointError, match="no/such/place: no such file"):
        LLM("no/such/place", registry=toy_registry())


def test_preparing_reads_no_weights_and_resolves_every_auto(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyModel, "load_model", lambda *_: pytest.fail("weights were read"))
    prepared = prepare_from_options(checkpoint, registry=toy_registry(), device="cpu")
    runtime = prepared.pipeline_config.runtime
    backend = "torch" if library() is None else "native"
    assert (runtime.dtype, runtime.device, runtime.backend) == ("float32", "cpu", backend)
    assert (prepared.dtype, prepared.vocab_size, prepared.num_parameters) == ("float32", VOCAB, 4)
    assert prepared.memory_plan.weights == {"model": 16}
    assert prepared.memory_plan.max_cached_tokens == 16 * 64


def test_the_bar_goes_to_stderr_and_only_when_there_is_time_to_read_it(
    llm: LLM, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm.generate(["abc"] * 3, GREEDY)
    llm.generate(["abc"] * 3, GREEDY, progress=True)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(progress_module, "SILENT_S", 0.0)
    llm.generate(["abc"] * 3, GREEDY, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "tok" in err
    llm.generate(["abc"] * 3, GREEDY)
    assert capsys.readouterr() == ("", "")


def test_a_stream_that_was_not_begun_ends_with_an_error_after_close(checkpoint: str) -> None:
    made = LLM(checkpoint, registry=toy_registry())
    stream = made.stream("abc", GREEDY)
    made.close()
    with pytest.raises(PilotfishError, match="closed"):
        next(stream)


def test_scores_that_do_not_fit_are_refused_before_they_are_computed(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_module, "available_bytes", lambda _: 11 * VOCAB * 4 - 1)
    with pytest.raises(CapacityError, match="the logits of 11 tokens take"):
        llm.score_many(["abcdef", "abcde"])
    assert llm.score("abcdef").shape == (6, VOCAB)


def test_a_model_that_does_not_say_is_tried(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LLM(checkpoint, registry=toy_registry()).generate("abc", GREEDY)
    real = ToyModel.execute

    def execute(self: ToyModel, model_inputs: Any) -> Any:
        outputs = real(self, model_inputs)
        outputs.logits[:] += 0.25 * (len(model_inputs.kv_cache_inputs.row_counts) - 1)
        return outputs

    monkeypatch.setattr(ToyModel, "execute", execute)
    with pytest.warns(UserWarning, match="rows differ in a pass beside another text"):
        LLM(checkpoint, registry=toy_registry())


def test_a_model_that_is_not_invariant_says_so_once_when_it_is_loaded(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyModel, "is_invariant", False, raising=False)
    with pytest.warns(
        UserWarning, match="arithmetic is not invariant here: the architecture's model"
    ):
        made = LLM(checkpoint, registry=toy_registry())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.generate("abc", GREEDY)
        fastest = LLM(checkpoint, registry=toy_registry(), arithmetic="fastest")
        fastest.generate("abc", GREEDY)


def test_what_letting_go_raises_as_a_model_is_closed_is_a_warning(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: ToyModel, request_id: str) -> None:
        raise ValueError("it is not let go")

    made = LLM(checkpoint, registry=toy_registry())
    stream = made.stream([97, 98], SamplingParams(temperature=0, max_tokens=9, ignore_eos=True))
    next(stream)
    monkeypatch.setattr(ToyModel, "release", failing)
    with pytest.warns(RuntimeWarning, match="release of a request raised ValueError: it is not"):
        made.close()
    assert [delta.finish_reason for delta in stream][-1] == "abort"
