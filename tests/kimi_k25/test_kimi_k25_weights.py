"""Strict loading, tensors that are left out by rule, packed experts, and what the cache takes."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from kimi_k25.cases import (
    PACKED,
    Tensors,
    check_long,
    packed,
    subject,
    tensors_of,
    unpacked,
    with_tensors,
    write_kimi,
    write_shape,
)
from pilotfish import LLM, SamplingParams
from pilotfish.cli import main
from pilotfish.errors import ConfigError, PilotfishError, RequestError, WeightsError
from pilotfish.loading.prepare import prepare_from_options
from pilotfish_kimi_k25.examples import kimi_oracle

BASE = "latent queries, two groups, yarn"
TOKENS = list(range(2, 33))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shape(BASE, tmp_path_factory.mktemp("weights"))


def score(path: Path, dtype: str = "float32") -> torch.Tensor:
    with LLM(str(path), dtype=dtype) as llm:
        return llm.score(TOKENS)


def refused(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        score(path)
    return str(caught.value)


# Strictness


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.kv_a_layernorm.weight",
        "model.layers.1.mlp.gate.e_score_correction_bias",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.mlp.experts.5.down_proj.weight",
        "model.layers.1.mlp.shared_experts.gate_proj.weight",
    ],
)
def test_a_missing_tensor_is_named(name: str, base: Path, tmp_path: Path) -> None:
    tensors = tensors_of(base)
    del tensors[name]
    assert name.removeprefix("model.") in refused(with_tensors(base, tmp_path / "a", tensors))


def test_left_over_and_misshapen_tensors_are_named(base: Path, tmp_path: Path) -> None:
    tensors = tensors_of(base)
    extra = {**tensors, "model.layers.0.self_attn.q_proj.weight": torch.zeros(3, 3)}
    assert "q_proj" in refused(with_tensors(base, tmp_path / "a", extra))
    name = "model.layers.1.self_attn.kv_b_proj.weight"
    wrong = {**tensors, name: tensors[name][:-1].clone()}
    assert "kv_b_proj" in refused(with_tensors(base, tmp_path / "b", wrong))


def test_layers_that_predict_further_tokens_are_left_out(base: Path, tmp_path: Path) -> None:
    """Listed names of listed layers; anything else there is left over."""
    tensors, wanted = tensors_of(base), score(base)
    layer = {
        name.replace("layers.1.", "layers.2."): tensor.clone()
        for name, tensor in tensors.items()
        if ".layers.1." in name
    }
    further: Tensors = {
        f"model.layers.2.{name}.weight": torch.zeros(4)
        for name in ("embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.norm")
    }
    path = with_tensors(base, tmp_path / "a", {**tensors, **layer, **further})
    assert torch.equal(score(path), wanted)
    plans = [prepare_from_options(str(p), dtype="float32").memory_plan for p in (base, path)]
    assert plans[0].weights == plans[1].weights, "memory is planned for what is read"
    none = with_tensors(base, tmp_path / "b", {**tensors, **layer}, num_nextn_predict_layers=0)
    assert "layers.2." in refused(none)
    surprise = {**tensors, **layer, "model.layers.2.surprise.weight": torch.zeros(4)}
    assert "surprise" in refused(with_tensors(base, tmp_path / "c", surprise))


def test_a_file_without_a_tower_plans_no_images_and_refuses_their_placeholders(
    tmp_path: Path,
) -> None:
    whole = write_kimi("published", tmp_path)
    language = {n: t for n, t in tensors_of(whole).items() if n.startswith("language_model.")}
    path = with_tensors(whole, tmp_path / "text", language)
    seeing = prepare_from_options(str(whole), dtype="float32")
    assert sum(seeing.memory_plan.images.values()) > 256 << 20
    with LLM(str(path), dtype="float32") as llm:
        assert llm.memory_plan.images == {}
        assert llm.placeholder_ids == {94, 95}
        for kind, token in {"image": 94, "video": 95}.items():
            with pytest.raises(RequestError, match=f"placeholder for {kind} .*wanted text$"):
                llm.generate([1, token])
        with pytest.raises(RequestError, match=r"got 1 image .* serves text only"):
            llm.generate({"prompt": [1, 2], "images": ["x.png"]})


# Packed experts


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """INT4 experts, and the same numbers as float32 weights."""
    made = tmp_path_factory.mktemp("int4")
    written = write_kimi("published", made, moe_intermediate_size=32)
    tensors = packed(tensors_of(written))
    text = json.loads((written / "config.json").read_text())["text_config"]
    return (
        with_tensors(
            written,
            made / "packed",
            tensors,
            text_config={**text, "quantization_config": PACKED},
        ),
        with_tensors(written, made / "plain", unpacked(tensors)),
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_experts_are_their_numbers(pair: tuple[Path, Path], dtype: str) -> None:
    """Judged as the plain checkpoint is, by transformers' model of that."""
    oracle = kimi_oracle(pair[1])
    exact, eager = oracle.exact(TOKENS, dtype), oracle.eager(TOKENS, dtype)
    check_long(score(pair[0], dtype), exact, eager, dtype)
    check_long(score(pair[1], dtype), exact, eager, dtype)


def test_packed_experts_answer_alike_alone_and_together(pair: tuple[Path, Path]) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    prompts = [[1, 2, 3], list(range(40)), [7] * 9]
    with LLM(str(pair[0]), dtype="bfloat16", max_batch_tokens=16) as llm:
        together = [list(o.token_ids) for o in llm.generate(prompts, greedy)]
        assert [list(llm.generate([p], greedy)[0].token_ids) for p in prompts] == together
        wanted = llm.score(TOKENS)
    with LLM(str(pair[0]), dtype="bfloat16", max_batch_tokens=7) as llm:
        assert torch.equal(llm.score(TOKENS), wanted)


def test_packed_is_said_by_each_tensor(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Some experts' parts packed and others not, whatever the config's lists say."""
    plain = tensors_of(pair[1])
    some = packed(plain, parts=("down",))
    path = with_tensors(pair[0], tmp_path / "some", some)
    with subject(path, ("bfloat16",)) as one:
        config = one.prepared("bfloat16").model.config
        assert (config.packed_gate_up, config.packed_down) == (frozenset(), frozenset({1}))
        assert torch.isfinite(one.alone(TOKENS)).all()


@pytest.mark.parametrize("kind", ["weight_packed", "weight_scale"])
def test_packed_tensors_of_another_shape_are_named(
    kind: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    name = f"language_model.model.layers.1.mlp.experts.3.down_proj.{kind}"
    tensors = tensors_of(pair[0])
    wide = torch.cat([tensors[name], tensors[name]], dim=1)
    path = with_tensors(pair[0], tmp_path / "wide", {**tensors, name: wide})
    assert "experts.3.down_proj" in refused(path)


def test_a_missing_packed_tensor_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    tensors = tensors_of(pair[0])
    del tensors["language_model.model.layers.1.mlp.experts.6.up_proj.weight_scale"]
    assert "experts.6" in refused(with_tensors(pair[0], tmp_path / "a", tensors))


def test_a_layer_of_packed_and_plain_experts_is_said_to_mix_them(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    plain, mixed = tensors_of(pair[1]), tensors_of(pair[0])
    name = "language_model.model.layers.1.mlp.experts.6.up_proj.weight"
    for kind in ("packed", "scale", "shape"):
        del mixed[f"{name}_{kind}"]
    path = with_tensors(pair[0], tmp_path / "mixed", {**mixed, name: plain[name]})
    with pytest.raises(ConfigError, match=r"layer 1 mixes packed and plain experts: .*6\.up_proj"):
        LLM(str(path))


def test_scales_of_nan_are_an_error_of_every_request(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    tensors = tensors_of(pair[0])
    spoiled = {n: t * float("nan") if n.endswith("_scale") else t for n, t in tensors.items()}
    path = with_tensors(pair[0], tmp_path / "nan", spoiled)
    with LLM(str(path), dtype="float32", arithmetic="fastest") as llm:
        (output,) = llm.generate([TOKENS])
        assert (output.finish_reason, list(output.token_ids)) == ("error", [])
        assert "the logits hold NaN; wanted finite numbers" in str(output.error)
        with pytest.raises(PilotfishError, match="position 0: the logits hold NaN; wanted finite"):
            llm.score(TOKENS)


# A config whose parts do not belong together


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text_config": None}, "has no text_config; the config is incomplete"),
        ({"vision_config": None}, "has no vision_config; the config is incomplete"),
        ({"image_token_id": 96}, "placeholder of images is token id 96 and the vocabulary has 96"),
    ],
)
def test_what_transformers_would_fill_in_and_what_cannot_be_used_is_refused(
    changes: dict[str, Any], said: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    path = with_tensors(pair[1], tmp_path / "it", tensors_of(pair[1]), **changes)
    options = json.loads((path / "config.json").read_text())
    for missing in (False, True):
        if missing and None in changes.values():
            kept = {name: value for name, value in options.items() if name not in changes}
            (path / "config.json").write_text(json.dumps(kept))
        with pytest.raises(ConfigError, match=said):
            prepare_from_options(str(path))


# The scripts that write checkpoints to measure with


def script(name: str) -> Any:
    file = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_small_kimi_takes_images_and_a_draft_made_for_it(tmp_path: Path) -> None:
    from PIL import Image

    small = script("make_kimi_small")
    small.TEXT |= {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    small.TEXT |= {"n_routed_experts": 8, "moe_intermediate_size": 32}
    small.main(tmp_path / "target", int4=True)
    target, draft = str(tmp_path / "target"), tmp_path / "draft"
    script("make_dflash_draft").write(target, draft, num_layers=1, block_size=4)
    prompt = {"prompt": [5, 16380, 6], "images": [Image.new("RGB", (30, 20))]}
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    with LLM(target, draft=str(draft), speculative="dflash", dtype="float32") as llm:
        (output,) = llm.generate([prompt], params)
    assert output.finish_reason == "length"
    assert output.speculative is not None
    assert output.speculative["drafted"] > 0


# What it takes


def inspect(capsys: pytest.CaptureFixture[str], path: Path, *flags: str) -> dict[str, Any]:
    assert main(["inspect", str(path), "--json", "--device", "cpu", *flags]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("bfloat16", 2)])
def test_the_cache_is_one_latent_row_a_token_and_layer(
    dtype: str, itemsize: int, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`inspect` against the formula, and the memory itself, to the byte."""
    layers, latent, rope_part = 2, 24, 8
    bytes_per_token = layers * (latent + rope_part) * itemsize
    memory = inspect(capsys, base, "--dtype", dtype)["memory"]
    tokens = memory["num_pages"] * memory["page_size_tokens"]
    assert memory["state_bytes"]["kv"] == tokens * bytes_per_token
    with subject(base) as one:
        cache = one.session(dtype).state.paged_cache("kv")
        assert cache.num_bytes == 64 * 4 * bytes_per_token
        assert sum(block.nbytes for block in cache.blocks) == cache.num_bytes
        assert [tuple(block.shape) for block in cache.blocks] == [(64, 4, 32)] * 2


def test_packed_weights_are_planned_packed(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    small, large = (
        inspect(capsys, path, "--dtype", "bfloat16")["memory"]["weights_bytes"]["model"]
        for path in pair
    )
    experts = 8 * 3 * 64 * 32
    packed_bytes = experts // 2 + experts // 32 * 2 + 8 * 3 * 8  # two int32 of each shape
    assert large - small == experts * 2 - packed_bytes


def test_a_config_alone_that_says_so_is_planned_with_packed_experts(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the byte as the files' headers say, but for the vision tower: it tells of none."""
    found: list[dict[str, int]] = []
    for number, path in enumerate(pair):
        alone = tmp_path / str(number)
        alone.mkdir()
        (alone / "config.json").write_text((path / "config.json").read_text())
        options = ("--json", "--device", "cpu", "--dtype", "bfloat16")
        assert main(["inspect", str(alone), *options]) == 2
        kinds = json.loads(capsys.readouterr().out)["memory"]["weight_kinds_bytes"]["model"]
        of_files = inspect(capsys, path, "--dtype", "bfloat16")
        whole = Counter(of_files["memory"]["weight_kinds_bytes"]["model"])
        whole.subtract(kinds)
        found.append({kind: count for kind, count in whole.items() if count})
        assert ("int4" in kinds) == (number == 0)
    tower = sum(
        2 * tensor.numel()
        for name, tensor in tensors_of(pair[0]).items()
        if "vision" in name or "projector" in name
    )
    assert found == [{"bfloat16": tower}] * 2
