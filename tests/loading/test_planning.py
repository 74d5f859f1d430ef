"""What is planned where the memory is small: shorter contexts, fewer requests, and what is said."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from pilotfish import LLM, CacheConfig, SamplingParams, load_registry
from pilotfish.cli import main
from pilotfish.config.hf_options import context_length
from pilotfish.config.rope import RopeParameters
from pilotfish.errors import CapacityError, CheckpointError, ConfigError, UserError
from pilotfish.loading import planning
from pilotfish.loading.planning import UNLIMITED_TOKENS
from pilotfish.loading.prepare import prepare_from_options
from pilotfish.loading.prepared import Prepared
from pilotfish.protocols import NO_LIMIT
from pilotfish.state import MemoryPlan, SlotStateSpec
from pilotfish.state.page_choice import CPU_STATE_BYTES, MOST_EMPTY_PAGES
from pilotfish.testing import save_tiny

LONGEST = 100_000
MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("planning")


def long_model(folder: Path, architecture: str, example: str) -> Path:
    """A tiny model whose config allows long contexts."""
    path = folder / f"long-{architecture}"
    if not path.exists():
        source = save_tiny(architecture, example, folder, load_registry())
        path.mkdir()
        config = json.loads((source / "config.json").read_text())
        config["max_position_embeddings"] = LONGEST
        (path / "config.json").write_text(json.dumps(config))
        (path / "model.safetensors").symlink_to(source / "model.safetensors")
    return path


@pytest.fixture
def llama(folder: Path) -> Path:
    return long_model(folder, "LlamaForCausalLM", "plain")


def with_memory(patch: pytest.MonkeyPatch, num_bytes: int) -> None:
    patch.setattr(planning, "available_bytes", lambda device: num_bytes)


def prepared(model: Path, **options: Any) -> Prepared:
    return prepare_from_options(str(model), **options)


def bytes_of_a_context(model: Path, length: int) -> int:
    plan = prepared(model, max_length=length, max_batch_size=1, cache=None).memory_plan
    return plan.total


def test_a_model_that_fits_is_planned_whole(llama: Path) -> None:
    found = prepared(llama)
    assert found.memory_plan.note == ""
    assert found.model.config.get_max_seq_len() == LONGEST
    assert found.pipeline_config.runtime.max_batch_size == 16


def test_a_context_that_does_not_fit_is_cut_and_said_so(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, bytes_of_a_context(llama, 5000))
    found = prepared(llama)
    plan = found.memory_plan
    assert 4000 < plan.max_seq_len < 5000
    assert found.model.config.get_max_seq_len() == plan.max_seq_len
    assert plan.total <= plan.available
    assert plan.max_batch_size == 16
    assert plan.note == (
        f"to fit the memory there are contexts of {plan.max_seq_len} tokens, not the model's "
        f"{LONGEST} (--max-length, max_length)"
    )


def test_a_model_without_a_limit_has_contexts_that_are_held_unasked(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RopeParameters, "context_length", lambda self, asked: context_length(asked))
    found = prepared(llama)
    plan = found.memory_plan
    page_bytes = sum(plan.paged_caches.values())
    wanted = min(UNLIMITED_TOKENS, CPU_STATE_BYTES // page_bytes * plan.page_size_tokens)
    assert found.model.config.get_max_seq_len() == plan.max_seq_len == wanted
    assert page_bytes * plan.num_pages <= CPU_STATE_BYTES
    assert plan.note == (
        f"the model has no limit of its own: there are contexts of {wanted} tokens "
        "(--max-length, max_length)"
    )
    with_memory(monkeypatch, bytes_of_a_context(llama, 5000))
    plan = prepared(llama).memory_plan
    assert 2000 < plan.max_seq_len < 3000, "half of what is left"
    assert prepared(llama, cache=CacheConfig(num_pages=9)).memory_plan.max_seq_len == 9 * 16
    assert prepared(llama, max_length=4900).memory_plan.max_seq_len == 4900
    with pytest.raises(ConfigError, match=f"wanted at most {NO_LIMIT}"):
        prepared(llama, max_length=NO_LIMIT + 1)


@pytest.mark.parametrize("memory_bytes", [None, 1 << 30])
def test_pages_that_hold_nothing_are_not_countless(memory_bytes: int | None) -> None:
    """Their books take memory: a context of a model without a limit would have millions."""

    def pages(length: int, batch: int) -> int:
        return MemoryPlan.make(
            weights={},
            specs=[SlotStateSpec(name="sums", num_layers=2, slot_shape=(8,), dtype="float32")],
            cache=CacheConfig(memory_bytes=memory_bytes),
            max_batch_size=batch,
            max_seq_len=length,
            activations=0,
            available=8 << 30,
        ).num_pages

    assert pages(1600, 16) == 1600
    assert pages(16 << 16, 64) == MOST_EMPTY_PAGES
    assert pages(16 << 21, 64) == 1 << 21, "one context"


def test_what_the_user_asks_for_is_never_cut(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, bytes_of_a_context(llama, 5000))
    with pytest.raises(CapacityError, match=r"lower max_length \(now 90000; 4\d\d\d would fit\)"):
        prepared(llama, max_length=90_000)
    with pytest.raises(CapacityError, match="lower num_pages"):
        prepared(llama, cache=CacheConfig(num_pages=LONGEST))
    assert prepared(llama, max_length=3000).memory_plan.note == ""
    with_memory(monkeypatch, MIB // 64)
    with pytest.raises(CapacityError, match="needed on cpu"):
        prepared(llama)


def test_fewer_requests_run_at_once_where_their_slots_do_not_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slot caches are paid for each request; a context is worth more than the last request."""
    model = long_model(folder, "Lfm2ForCausalLM", "attention between")
    asked = prepared(model, max_length=600)
    of_slots = sum(asked.memory_plan.slots.values())
    one = prepared(model, max_length=600, max_batch_size=1).memory_plan
    with_memory(monkeypatch, one.total + of_slots // 2)
    found = prepared(model)
    runtime = found.pipeline_config.runtime
    assert runtime.max_batch_size == found.memory_plan.max_batch_size < 16
    assert found.memory_plan.max_seq_len >= planning.LEAST_LENGTH
    assert f"{runtime.max_batch_size} requests at once, not 16" in found.memory_plan.note
    asked_for = prepared(model, max_batch_size=16).memory_plan
    assert "requests at once" not in asked_for.note
    assert asked_for.max_batch_size == 16


def test_a_smaller_plan_answers_alike(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wanted = LLM(str(llama)).generate([1, 2, 3], params)[0]
    with_memory(monkeypatch, bytes_of_a_context(llama, 2000))
    with pytest.warns(RuntimeWarning, match="to fit the memory there are contexts of 1"):
        llm = LLM(str(llama))
    assert llm.generate([1, 2, 3], params)[0].token_ids == wanted.token_ids
    assert llm.max_seq_len == llm.memory_plan.max_seq_len < 2000


def test_the_command_line_says_it_on_one_line(
    llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_memory(monkeypatch, bytes_of_a_context(llama, 2000))
    lines = llama.parent / "lines.jsonl"
    lines.write_text('{"prompt_token_ids": [1, 2], "max_tokens": 2}\n')
    asked = ["generate", str(llama), "--input-file", str(lines)]
    capsys.readouterr()
    main(asked)
    said = [line for line in capsys.readouterr().err.splitlines() if "memory" in line]
    [line] = said
    assert line.startswith("pilotfish: to fit the memory there are contexts of 1")


def test_inspect_plans_what_no_machine_holds(
    llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_memory(monkeypatch, 1000)
    assert main(["inspect", str(llama)]) == 0
    text = capsys.readouterr().out
    assert "of 1000 B available: " in text
    assert "it does not fit: the weights alone do not fit" in text
    assert main(["inspect", str(llama), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["memory"]
    assert plan["missing_bytes"] == plan["total_bytes"] - 1000
    assert main(["generate", str(llama), "--prompt", "x"]) == 2
    assert "are available: weights (model)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "sizes",
    [
        {"max_length": 90_000, "max_batch_size": 1},
        {"max_length": 90_000, "max_batch_size": 4000},
        {"max_length": 10, "max_batch_size": 1 << 20},
        {"max_length": 10, "max_batch_size": 1, "max_batch_tokens": 1 << 20},
        {"max_length": 90_000, "max_batch_size": 1 << 20, "max_batch_tokens": 1 << 20},
    ],
)
@pytest.mark.parametrize("length_that_fits", [64, 5000])
def test_every_number_of_the_advice_fits(
    llama: Path, monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int], length_that_fits: int
) -> None:
    with_memory(monkeypatch, bytes_of_a_context(llama, length_that_fits))
    with pytest.raises(CapacityError) as caught:
        prepared(llama, **sizes)
    advice = str(caught.value).split("; lower ")[1]
    for way in advice.split(" or "):
        found = re.findall(r"(\w+) \(now (\d+); (\d+) would fit\)", way)
        assert found
        for name, now, lower in found:
            assert sizes.get(name, 512) == int(now) > int(lower) >= 1
        assert prepared(llama, **{**sizes, **{name: int(n) for name, _, n in found}})


def test_where_no_size_fits_none_is_advised(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = prepared(llama, max_length=1, max_batch_size=1, max_batch_tokens=64).memory_plan
    with_memory(monkeypatch, plan.total - 1)
    with pytest.raises(CapacityError, match=r"no smaller sizes .* use a smaller model or dtype"):
        prepared(llama, max_length=90_000, max_batch_size=1)


def test_the_command_line_calls_sizes_by_their_flags(
    llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_memory(monkeypatch, bytes_of_a_context(llama, 5000))
    assert main(["generate", str(llama), "--prompt", "x", "--max-length", "90000"]) == 2
    assert "lower --max-length (now 90000; 4" in capsys.readouterr().err
    assert main(["generate", str(llama), "--prompt", "x", "--max-batch-size", "0"]) == 2
    assert "error: --max-batch-size is 0; wanted" in capsys.readouterr().err
    assert main(["inspect", str(llama)]) == 0
    assert "tokens, not the model's 100000 (--max-length)" in capsys.readouterr().out


def test_inspect_says_how_much_runs_at_once(
    llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(llama), "--max-length", "160", "--num-pages", "35"]) == 0
    said = "up to 16 requests at once, of up to 160 tokens; of the longest, the pages hold 3\n"
    assert said in capsys.readouterr().out


def config_alone(model: Path, folder: Path, **values: Any) -> Path:
    folder.mkdir()
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))
    return folder


@pytest.mark.parametrize(
    ("architecture", "example"),
    [("LlamaForCausalLM", "plain"), ("Lfm2ForCausalLM", "attention between")],
)
def test_a_config_alone_is_planned_as_its_model_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], architecture: str, example: str
) -> None:
    model = save_tiny(architecture, example, tmp_path, load_registry())
    alone = config_alone(model, tmp_path / "alone")
    assert main(["inspect", str(model), "--json"]) == 0
    wanted = json.loads(capsys.readouterr().out)
    assert main(["inspect", str(alone), "--json"]) == 2
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert wanted["weights"] is None
    assert found["weights"].startswith("none; what follows is from the config alone")
    assert found["parameters"] == wanted["parameters"]
    for name in ("weights_bytes", "state_bytes", "activation_bytes", "num_pages"):
        assert found["memory"][name] == wanted["memory"][name]
    assert said.err.startswith(f"pilotfish: error: {alone}: no weights; wanted one of model.safe")
    assert main(["inspect", str(alone)]) == 2
    assert "weights: none; what follows is from the config alone" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="no weights; wanted one of"):
        LLM(str(alone))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "is quantized"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"architectures": ["GptOssForCausalLM"]}, "no plugin serves the architecture"),
    ],
)
def test_what_a_config_alone_says_is_refused_before_its_weights_are_missed(
    llama: Path, tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    alone = config_alone(llama, tmp_path / "alone", **values)
    for must_fit in (True, False):
        with pytest.raises(UserError, match=said):
            prepared(alone, must_fit=must_fit)
