"""Options by other engines' names: those that mean the same work, the others say what there is."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import torch

from pilotfish import LLM, CacheConfig, RuntimeConfig, SamplingParams, SpeculativeConfig
from pilotfish.config.peers import CALL, LOADING, SAMPLING, answers_peers
from pilotfish.config.sampling import NO_LIMIT, OF_SAMPLING
from pilotfish.errors import ConfigError, RequestError
from pilotfish.loading.routing import read_speculative
from pilotfish.warn import PilotfishWarning
from support.toy_model import toy_registry, write_toy_checkpoint

GREEDY = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_toy_checkpoint(tmp_path_factory.mktemp("toy")))


@pytest.fixture(scope="module")
def llm(folder: str) -> Iterator[LLM]:
    with LLM(folder, registry=toy_registry()) as made:
        yield made


def params(**given: Any) -> SamplingParams:
    return SamplingParams(**given)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"max_new_tokens": 7}, {"max_tokens": 7}),
        ({"num_predict": 7}, {"max_tokens": 7}),
        ({"do_sample": False}, {"temperature": 0}),
        ({"do_sample": True, "temperature": 0.5}, {"temperature": 0.5}),
        ({"num_return_sequences": 3}, {"n": 3}),
        ({"repeat_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"top_k": 0}, {}),
        ({"stop": None}, {}),
        ({"num_beams": 1, "use_cache": True, "best_of": None}, {}),
        ({"best_of": 1}, {}),
        ({"max_tokens": None}, {"max_tokens": NO_LIMIT}),
        ({"max_new_tokens": None}, {"max_tokens": NO_LIMIT}),
    ],
)
def test_sampling_by_their_names(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    assert params(**theirs) == params(**ours)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"best_of": 4}, "SamplingParams got best_of=4: best_of is not served: ask for n answers"),
        ({"num_beams": 4}, "num_beams=4: beam search is not served"),
        ({"use_beam_search": True}, "beam search is not served"),
        ({"structured_outputs": {"json": {}}}, "grammars and schemas are not served"),
        ({"do_sample": "yes"}, "do_sample='yes': wanted True, or False"),
        ({"max_new_tokens": 3, "max_tokens": 4}, "got max_new_tokens and max_tokens; wanted one"),
        ({"max_new_tokens": 0}, "max_tokens is 0; wanted"),
        (
            {"max_tokenz": 3},
            r"no option 'max_tokenz' \(did you mean max_tokens\?\); there",
        ),
        ({"heat": 3}, "SamplingParams has no option 'heat'; there are max_tokens, min_tokens, "),
        ({"num_beams": True}, "num_beams=True: beam search"),
    ],
)
def test_what_sampling_has_not(given: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        params(**given)


def test_params_are_replaced_in_part() -> None:
    assert GREEDY.replace(max_tokens=9, seed=3) == attrs.evolve(GREEDY, max_tokens=9, seed=3)
    with pytest.raises(RequestError, match="did you mean temperature"):
        GREEDY.replace(temprature=1)


def test_a_model_by_their_names(folder: str) -> None:
    theirs: dict[str, Any] = {
        **{"max_model_len": 64, "max_num_seqs": 2, "max_num_batched_tokens": 8},
        **{"dtype": torch.float32, "tensor_parallel_size": 1, "trust_remote_code": False},
        **{"enforce_eager": True, "enable_prefix_caching": True},
    }
    with LLM(folder, registry=toy_registry(), **theirs) as made:
        runtime = made.pipeline_config.runtime
        assert (made.max_seq_len, made.dtype) == (64, "float32")
        assert (runtime.max_batch_size, runtime.max_batch_tokens) == (2, 8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"pipeline_parallel_size": 2}, "LLM got pipeline_parallel_size=2: pipelines are not"),
        ({"tensor_parallel_size": 2}, "the model says nothing of how ranks share it"),
        ({"trust_remote_code": True}, "code in a checkpoint is never run"),
        ({"gpu_memory_utilization": 0.9}, "the plan takes what fits"),
        ({"seed": 1}, "a seed belongs to a request"),
        ({"seed": False}, "a seed belongs to a request"),
        ({"download_dir": "/x"}, "LLM got download_dir='/x': the variable HF_HOME"),
        ({"temperature": 0}, r"has no option 'temperature': wanted it in the .*\(temperature=0\)"),
        ({"dtype": "halff"}, "dtype is 'halff'; wanted"),
        ({"speculative": {"methode": "ngram"}}, r"no option 'methode' \(did you mean method\?\)"),
        ({"speculative": {"width": 4}}, "speculative has no 'method'; wanted the name of one"),
        ({"speculative": {"method": "ngram", "width": 0}}, "width is 0; wanted"),
        ({"speculative": 4}, "speculative is 4; wanted None, the name"),
        ({"max_model_len": 64, "max_length": 64}, "got max_model_len and max_length"),
        ({"max_lenght": 64}, r"no option 'max_lenght' \(did you mean max_length\?\)"),
        ({"dtype": torch.int8}, "dtype is 'int8'; wanted"),
    ],
)
def test_what_a_model_has_not(folder: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LLM(folder, registry=toy_registry(), **given)


def test_parts_of_a_model_by_their_names() -> None:
    theirs: dict[str, Any] = {"num_speculative_tokens": 4, "draft_tensor_parallel_size": 1}
    assert SpeculativeConfig(method="ngram", **theirs) == SpeculativeConfig(method="ngram", width=4)
    theirs = {"block_size": 32, "enable_prefix_caching": False, "num_gpu_blocks": 9}
    assert CacheConfig(**theirs) == CacheConfig(
        page_size_tokens=32, prefix_caching=False, num_pages=9
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "x"}, r"SpeculativeConfig got model='x': wanted LLM\(draft=...\)"),
        ({"prompt_lookup_max": 3}, "the text's last 5 tokens are looked up"),
        ({"draft_tensor_parallel_size": 2}, "share its draft too: wanted tensor_parallel=N"),
        ({"widht": 3}, r"SpeculativeConfig has no option 'widht' \(did you mean width\?\)"),
    ],
)
def test_what_speculation_has_not(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SpeculativeConfig(method="ngram", **given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gpu_memory_utilization": 0.9}, "CacheConfig got .*: wanted memory_bytes, of all"),
        ({"num_page": 3}, r"CacheConfig has no option 'num_page' \(did you mean num_pages\?\)"),
    ],
)
def test_what_caches_have_not(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CacheConfig(**given)


def test_calls_by_their_names(llm: LLM) -> None:
    call: dict[str, Any] = {"sampling_params": GREEDY, "use_tqdm": False}
    assert llm.generate([[97]], **call)[0].token_ids == llm.generate([[97]], GREEDY)[0].token_ids
    with pytest.raises(RequestError, match="generate got sampling_params and params; wanted one"):
        llm.generate([[97]], params=GREEDY, **call)
    with pytest.raises(RequestError, match="lora_request='x': adapters are not served yet"):
        llm.generate([[97]], **{"lora_request": "x"})  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="has no option 'heat'; there are prompts, par"):
        llm.generate([[97]], **{"heat": 0})  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="stream takes one prompt and got a list of 2 texts"):
        llm.stream(["a", "b"])  # type: ignore[list-item]


@pytest.mark.parametrize("call", ["generate", "stream", "chat", "agenerate", "astream"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_new_tokens": 5}, r"wanted it in the params of .*: SamplingParams\(max_tokens=5\)"),
        ({"max_tokens": 5}, r"option 'max_tokens': .*: SamplingParams\(max_tokens=5\)"),
        ({"temperature": 0}, r"option 'temperature': .*: SamplingParams\(temperature=0\)"),
    ],
)
def test_options_of_sampling_are_sent_to_their_place(
    llm: LLM, call: str, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError, match=f"LLM.{call} has no .*{said}"):
        getattr(llm, call)("a", **given)


def test_a_template_may_have_a_variable_by_another_engines_name() -> None:
    """`chat` hands what it does not know to the template; what SamplingParams takes is none."""

    @answers_peers(CALL, RequestError, OF_SAMPLING)
    def chat(messages: list[Any], params: Any = None, **variables: Any) -> dict[str, Any]:
        del messages, params
        return variables

    assert chat([], grammar="a", use_cache=True) == {"grammar": "a", "use_cache": True}
    for given in ({"max_tokens": 5}, {"max_new_tokens": 5}):
        with pytest.raises(RequestError, match=r"wanted it in the params of generate: .*=5"):
            chat([], **given)


def test_an_option_that_changes_nothing_is_said_to() -> None:
    with pytest.raises(ConfigError, match="of SamplingParams, where use_cache=True changes noth"):
        CacheConfig(**{"use_cache": True})  # type: ignore[arg-type]


def test_options_of_sampling_that_are_not_ours(llm: LLM) -> None:
    generate: Any = llm.generate
    with pytest.raises(RequestError, match=r"'do_sample': .*: SamplingParams\(temperature=0\)"):
        generate("a", do_sample=False)
    with pytest.raises(RequestError, match="'num_beams': of SamplingParams, and num_beams=4 is no"):
        generate("a", num_beams=4)


def test_records_of_token_ids(llm: LLM) -> None:
    (want,) = llm.generate([[97, 98]], GREEDY)
    record = {"prompt_token_ids": [97, 98]}
    for prompts in (record, [record], {**record, "images": []}):
        assert llm.generate(prompts, GREEDY)[0].token_ids == want.token_ids
    assert "".join(delta.text for delta in llm.stream(record, GREEDY)) == want.text
    bad = {"prompt_token_ids": [97, 10**9]}
    refused, answered = llm.generate([bad, record], GREEDY)
    assert (refused.finish_reason, refused.prompt_token_ids) == ("error", [97, 10**9])
    assert answered.token_ids == want.token_ids


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt_token_ids": [97], "prompt": "a"}, "has prompt and prompt_token_ids; wanted one"),
        ({"prompt_token_ids": "a"}, "prompt_token_ids is a text; wanted token ids"),
        ({"prompt_token_id": [97]}, r"\(did you mean prompt_token_ids"),
        ({"prompt": "a", "multi_modal_data": {}}, "multi_modal_data; wanted images, a list"),
    ],
)
def test_what_is_no_record(llm: LLM, record: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        llm.generate(record, GREEDY)


def test_no_limit_is_the_context(folder: str) -> None:
    params = SamplingParams(max_tokens=None, temperature=0, ignore_eos=True)  # type: ignore[arg-type]
    with LLM(folder, registry=toy_registry(), max_length=12) as made:
        (output,) = made.generate([[97] * 3], params)
    assert (len(output.token_ids), output.finish_reason) == (9, "length")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("half", "float16"), ("bf16", "bfloat16"), ("float", "float32"), ("torch.bf16", "bfloat16")],
)
def test_other_names_of_a_dtype(theirs: str, ours: str) -> None:
    assert RuntimeConfig(dtype=theirs).dtype == ours


def test_a_seed_of_a_model_is_said_to_change_nothing(folder: str) -> None:
    given: dict[str, Any] = {"registry": toy_registry(), "max_length": 16}
    with warnings.catch_warnings():
        warnings.simplefilter("error", PilotfishWarning)
        LLM(folder, **given, seed=None).close()
    with pytest.warns(PilotfishWarning, match="seed=0, which changes nothing: a seed belongs to a"):
        LLM(folder, **given, seed=0).close()


def test_drafting_by_a_dict_of_its_options() -> None:
    assert read_speculative({"method": "ngram", "width": 4}) == SpeculativeConfig(
        method="ngram", width=4
    )


@pytest.mark.parametrize(("names", "of"), [(SAMPLING, SamplingParams), (LOADING, LLM), (CALL, LLM)])
def test_no_name_of_ours_is_answered_as_a_peers(names: dict[str, Any], of: type) -> None:
    functions = [of.__init__] if names is not CALL else [LLM.generate, LLM.stream, LLM.chat]
    for function in functions:
        assert not names.keys() & set(function.__wrapped__.__code__.co_varnames)
