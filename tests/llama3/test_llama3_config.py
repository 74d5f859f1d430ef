"""Llama3Config: what it reads, what it refuses, and what finalize adds."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from llama3.driver import pipeline_config
from llama3.families import CASES, MULTIPLIERS, SMALL, WINDOWS, make_config, rope
from pilotfish import load_registry
from pilotfish.config import ModelConfig, PipelineConfig
from pilotfish.errors import ConfigError
from pilotfish.protocols import ArchConfig, ReturnHiddenStates, ReturnLogits
from pilotfish_llama3.config import Llama3Config
from pilotfish_llama3.families import FAMILIES, REFUSED


def initialize(hf: Any, architecture: str = "", **options: Any) -> Llama3Config:
    if architecture:
        hf.architectures = [architecture]
    return Llama3Config.initialize(pipeline_config("x", hf, **options))


def raw(architecture: str = "LlamaForCausalLM", **options: Any) -> Any:
    """A config with nothing but what the file says."""
    return SimpleNamespace(
        **{**SMALL, "rms_norm_eps": 1e-6, "architectures": [architecture], **options}
    )


def of_case(case: str, **options: Any) -> Llama3Config:
    return initialize(make_config(case), f"{CASES[case][0]}ForCausalLM", **options)


def test_the_registry_routes_every_family_here() -> None:
    registry = load_registry()
    for name in FAMILIES:
        route = registry.route(name)
        assert route.config_class() is Llama3Config
        assert route.model_class().__name__ == "Llama3Model"


def test_every_family_has_a_case() -> None:
    assert {f"{family}ForCausalLM" for family, _ in CASES.values()} == set(FAMILIES)


def test_config_is_light_and_keeps_the_protocol() -> None:
    code = (
        "import sys, pilotfish_llama3, pilotfish_llama3.config, pilotfish_llama3.gguf;"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert isinstance(of_case("llama"), ArchConfig)


def test_one_config_reads_an_explicit_model_config() -> None:
    pipeline = pipeline_config("x", raw())
    other = attrs.evolve(pipeline.model, huggingface_config=raw(hidden_size=96))
    assert Llama3Config.initialize(pipeline, other).hidden_size == 96


def test_the_huggingface_config_is_not_changed() -> None:
    for case in CASES:
        hf = make_config(case)
        hf.architectures = [f"{CASES[case][0]}ForCausalLM"]
        before = hf.to_dict()
        initialize(hf)
        assert hf.to_dict() == before


def test_plain_options() -> None:
    config = initialize(raw(head_dim=16, num_key_value_heads=None, rope_theta=7.0))
    assert (config.head_dim, config.num_key_value_heads, config.rope_theta) == (16, 4, 7.0)
    assert config.attention_multiplier == 16**-0.5
    assert config.rope_scaling_params is None
    assert config.kv_params == config.get_kv_params()
    (spec,) = config.get_state_specs()
    assert (spec.name, spec.num_layers, spec.row_shape) == ("kv", 2, (2, 4, 16))
    assert Llama3Config.construct_kv_params(raw(), "bfloat16").head_dim == 12
    assert Llama3Config.get_num_layers(raw()) == 2
    assert Llama3Config.get_head_dim_from_config(raw()) == 12


def test_granite_multipliers() -> None:
    config = of_case("granite")
    for name, value in MULTIPLIERS.items():
        assert getattr(config, name) == value
    assert Llama3Config.calculate_attention_multiplier(make_config("granite")) == 0.4


def test_biases() -> None:
    flags = {
        case: (of_case(case).qkv_bias, of_case(case).out_bias, of_case(case).mlp_bias)
        for case in ("llama", "llama-biases", "qwen2", "qwen3", "phi3", "olmo-plain")
    }
    assert flags == {
        "llama": (False, False, False),
        "llama-biases": (True, True, True),
        "qwen2": (True, False, False),
        "qwen3": (True, True, False),
        "phi3": (False, False, False),
        "olmo-plain": (True, True, False),
    }
    assert of_case("llama-biases").attention_bias
    assert not of_case("qwen2").attention_bias


def test_windows() -> None:
    assert of_case("mistral").windows == (5, 5)
    assert of_case("mistral-whole").windows == (None, None)
    assert of_case("qwen2").windows == (None, None)
    assert of_case("qwen2-windows").windows == (None, 5)
    assert of_case("smollm3-windows").windows == (None, 5, None)
    upper = raw("Qwen2ForCausalLM", **WINDOWS)
    assert initialize(upper).windows == (None, 5)
    named = raw("Qwen2ForCausalLM", **WINDOWS, layer_types=["sliding_attention", "full_attention"])
    assert initialize(named).windows == (5, None)
    off = raw("Qwen2ForCausalLM", **{**WINDOWS, "use_sliding_window": False})
    assert initialize(off).windows == (None, None)


def test_layers_without_rope() -> None:
    assert of_case("smollm3").no_rope_layers == {1, 3}
    assert of_case("smollm3-windows").no_rope_layers == {1}
    assert initialize(raw("SmolLM3ForCausalLM", num_hidden_layers=8)).no_rope_layers == {3, 7}
    assert initialize(raw("SmolLM3ForCausalLM")).rope_theta == 2000000.0


def test_norms() -> None:
    olmo = of_case("olmo")
    assert (olmo.norm_method, olmo.norm_elementwise_affine) == ("layer_norm", False)
    assert (olmo.rms_norm_eps, olmo.clip_qkv) == (None, 0.8)
    assert initialize(raw(rms_norm_eps=0.25)).rms_norm_eps == 0.25


def test_longest_context() -> None:
    assert of_case("llama").get_max_seq_len() == 128
    assert of_case("llama", max_length=50).get_max_seq_len() == 50
    assert of_case("llama-dynamic").get_max_seq_len() == 64
    assert of_case("llama-linear", max_length=300).get_max_seq_len() == 300
    with pytest.raises(ConfigError, match=r"max_length is 129.*128"):
        of_case("llama", max_length=129)


def test_dtype() -> None:
    assert initialize(raw(), dtype="bfloat16").dtype == "bfloat16"
    assert initialize(raw(torch_dtype="float16"), dtype="auto").dtype == "float16"
    assert initialize(raw(dtype="bfloat16"), dtype="auto").dtype == "bfloat16"
    gguf = ModelConfig(model="x", path="x", weight_format="gguf", huggingface_config=raw())
    assert Llama3Config.initialize(PipelineConfig(model=gguf)).dtype == "bfloat16"


def test_only_phi3_with_longrope_recomputes() -> None:
    lengths = {case: of_case(case).recompute_length for case in CASES}
    assert lengths.pop("phi3-longrope") == 16
    assert set(lengths.values()) == {None}
    assert of_case("phi3-longrope").prefix_salt(17) == b"long"
    assert of_case("phi3-longrope").longrope_scaling_params is not None
    assert of_case("llama-llama3").longrope_scaling_params is None


def test_attention_in_two_kinds_of_chunks_ends_the_context() -> None:
    chunks = {"chunk_size": 64, "local_size": 8, "original_max_position_embeddings": 64}
    asked = {**SMALL, "max_position_embeddings": 256, "dual_chunk_attention_config": chunks}
    assert initialize(raw("Qwen2ForCausalLM", **asked), "Qwen2ForCausalLM").max_seq_len == 64
    found = initialize(raw("Qwen2ForCausalLM", **asked), "Qwen2ForCausalLM", max_length=60)
    assert found.max_seq_len == 60
    with pytest.raises(ConfigError, match="max_length is 65; wanted at most 64: from there on the"):
        initialize(raw("Qwen2ForCausalLM", **asked), "Qwen2ForCausalLM", max_length=65)


def test_finalize_reads_names() -> None:
    config = initialize(raw())
    fused = ["layers.0.self_attn.qkv_proj.weight", "layers.0.mlp.gate_up_proj.weight"]
    for prefix in ("", "model."):
        done = config.finalize(None, dict.fromkeys(prefix + name for name in fused))
        assert (done.stacked_qkv, done.stacked_mlp) == (True, True)
        assert not done.tie_word_embeddings  # no head, and no word of a tie: it is missing
    tied = initialize(raw(tie_word_embeddings=True))
    assert tied.finalize(None, {}).tie_word_embeddings
    assert not tied.finalize(None, {"lm_head.weight": None}).tie_word_embeddings
    assert config.finalize(None, {"blk.0.attn_q.weight": None}).tie_word_embeddings
    done = config.finalize(
        None,
        {"lm_head.weight": None},
        return_logits=ReturnLogits.ALL,
        return_hidden_states=ReturnHiddenStates.LAST,
    )
    assert not done.tie_word_embeddings
    assert (done.return_logits, done.return_hidden_states) == ("all", "last")
    assert {done.stacked_qkv, done.stacked_mlp, done.interleaved_rope_weights} == {False}
    gguf = ["blk.0.attn_q.weight", "blk.0.attn_q.bias", "output.weight", "rope_freqs.weight"]
    done = config.finalize(None, dict.fromkeys(gguf))
    assert done.interleaved_rope_weights
    assert done.rope_factors_in_file
    assert (done.qkv_bias, done.out_bias, done.tie_word_embeddings) == (True, False, False)


@pytest.mark.parametrize(
    ("architecture", "options", "named"),
    [
        ("LlamaForCausalLM", {"hidden_act": "gelu"}, "hidden_act"),
        (
            "LlamaForCausalLM",
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            r"checkpoint is quantized \(quantization_config: gptq, bits 4\), which is not served",
        ),
        ("LlamaForCausalLM", {"sliding_window": 8}, "sliding_window"),
        ("LlamaForCausalLM", {"logits_scaling": 2.0}, "logits_scaling"),
        ("LlamaForCausalLM", {"clip_qkv": 8.0}, "clip_qkv"),
        ("LlamaForCausalLM", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("LlamaForCausalLM", rope("default", partial_rotary_factor=0.5), "partial_rotary_factor"),
        ("LlamaForCausalLM", rope("spiral"), "spiral"),
        ("Phi3ForCausalLM", rope("mrope"), "mrope"),
        ("Qwen3ForCausalLM", {"mlp_bias": True}, "mlp_bias"),
        ("MistralForCausalLM", {"layer_types": ["full_attention"], "sliding_window": 4}, "layer_t"),
        ("LlamaForCausalLM", {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        ("Qwen2ForCausalLM", {"layer_types": ["full_attention", "linear"]}, "layer_types"),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1]}, "no_rope_layers"),
        ("LlamaForCausalLM", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("LlamaForCausalLM", {"hidden_size": -1, "head_dim": 12}, "hidden_size"),
        ("GraniteForCausalLM", {"logits_scaling": 0.0}, "logits_scaling"),
        ("OlmoForCausalLM", {"clip_qkv": -1.0}, "clip_qkv"),
        ("GemmaForCausalLM", {}, "GemmaForCausalLM"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_name(
    architecture: str, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        initialize(raw(architecture, **options))


@pytest.mark.parametrize("name", REFUSED)
def test_options_of_no_family_are_refused_by_name(name: str) -> None:
    assert initialize(raw(**{name: REFUSED[name][-1]}))
    with pytest.raises(ConfigError, match=name):
        initialize(raw(**{name: 3}))


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_missing_option_is_named(name: str) -> None:
    hf = raw()
    delattr(hf, name)
    with pytest.raises(ConfigError, match=name):
        initialize(hf)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads = 0; wanted a whole number >= 1"),
        ({"hidden_size": 48.0}, "hidden_size = 48.0; wanted a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers = True; wanted a whole number"),
        ({"head_dim": "x"}, "checkpoint's config has head_dim = 'x'; wanted a whole number"),
        ({"max_position_embeddings": "x"}, "max_position_embeddings = 'x'; wanted a whole number"),
        ({"rope_theta": "x"}, "checkpoint's config has rope_theta = 'x'; wanted a number > 1"),
        (rope("linear", factor=True), "factor = True; wanted a number"),
        (rope("yarn", factor=2.0, beta_fast="x"), "beta_fast = 'x'; wanted a nu"),
        (rope("yarn", factor=2.0, truncate="no"), "truncate = 'no'; wanted true"),
        (
            rope("longrope", short_factor="abc", long_factor=[1.0]),
            "short_factor = 'abc'; wanted a list of numbers",
        ),
        (
            {
                **rope("yarn", factor=2.0),
                "original_max_position_embeddings": 1.5,
            },
            "original_max_position_embeddings = 1.5; wanted a whole number",
        ),
    ],
)
def test_a_number_of_the_wrong_kind_is_named_with_its_value(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        initialize(raw(**options))
