"""Options of a Hugging Face config: what they become, and which are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from kimi_k25.cases import PACKED
from pilotfish import load_registry
from pilotfish.config import ModelConfig, PipelineConfig, RuntimeConfig
from pilotfish.errors import ConfigError
from pilotfish.testing.checkpoints import tiny_config
from pilotfish.weights.hf_config import PlainConfig, config_of_type
from pilotfish_kimi_k25.config import KimiK25Config
from pilotfish_kimi_k25.examples import TEXT
from pilotfish_kimi_k25.network import softmax_scale
from pilotfish_kimi_k25.options import NEEDED, NEEDED_BY_EXPERTS

NAMES = (
    "KimiK25ForConditionalGeneration",
    "Kimi_K25ForConditionalGeneration",
    "DeepseekV3ForCausalLM",
)


def read(max_length: int | None = None, dtype: str = "auto", **options: Any) -> KimiK25Config:
    """The config of a plain dict of options, as a file without a transformers class has it."""
    changed = {**tiny_config("DeepseekV3ForCausalLM", TEXT), **options}
    present = {name: value for name, value in changed.items() if value is not ...}
    return initialize(present, max_length, dtype)


def initialize(
    options: dict[str, Any], max_length: int | None = None, dtype: str = "auto"
) -> KimiK25Config:
    model = ModelConfig(
        model="m",
        path="m",
        weight_format="safetensors",
        huggingface_config=PlainConfig(options),
        max_length=max_length,
    )
    return KimiK25Config.initialize(PipelineConfig(model=model, runtime=RuntimeConfig(dtype=dtype)))


def test_every_name_is_registered() -> None:
    registry = load_registry()
    for name in NAMES:
        route = registry.route(name)
        assert route.config_class() is KimiK25Config
        assert route.architecture.capabilities == {
            "verify",
            "aux_hidden_states",
            "embed",
            "lm_head",
        }


def test_what_options_become() -> None:
    config = read()
    assert (config.q_lora_rank, config.kv_lora_rank, config.latent_width) == (20, 24, 32)
    assert config.qk_head_dim == 20
    assert config.dense_layers == {0}
    assert config.num_mtp_layers == 0
    experts = config.experts
    assert experts is not None
    assert (experts.num_experts, experts.top_k, experts.num_groups) == (8, 3, 2)
    assert (experts.top_groups, experts.num_shared, experts.scale) == (1, 1, 1.5)
    assert config.get_kv_params() == config.kv_params
    (spec,) = config.get_state_specs()
    assert spec == config.kv_params.spec
    assert spec.row_shape == (32,)  # type: ignore[union-attr]
    assert config.get_max_seq_len() == 128


def test_the_published_widths() -> None:
    """576 numbers a token and layer: 70 KB of bfloat16 in 61 layers."""
    config = read(
        **{"kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_hidden_layers": 61},
        dtype="bfloat16",
    )
    assert config.kv_params.row_width == 576
    assert config.kv_params.spec.bytes_per_token == 61 * 576 * 2


def test_options_of_the_text_stand_in_a_section() -> None:
    text = {**tiny_config("DeepseekV3ForCausalLM", TEXT), "num_nextn_predict_layers": 1}
    outer = {"architectures": [NAMES[0]], "text_config": text, "tie_word_embeddings": True}
    config = initialize(outer)
    assert config.kv_lora_rank == 24
    assert config.num_mtp_layers == 1
    own = config.finalize(None, {"language_model.lm_head.weight": None})
    assert not own.tie_word_embeddings
    headless = {"model.embed_tokens.weight": None}
    assert not config.finalize(None, headless).tie_word_embeddings  # the outer word is a default
    tied = initialize({**outer, "text_config": {**text, "tie_word_embeddings": True}})
    assert tied.finalize(None, headless).tie_word_embeddings


@pytest.mark.parametrize(
    ("options", "dense"),
    [
        ({"first_k_dense_replace": 0}, set()),
        ({"first_k_dense_replace": 3}, {0, 1, 2}),
        ({"first_k_dense_replace": 1, "moe_layer_freq": 2}, {0, 1, 3, 5}),
        ({"n_routed_experts": None}, {0, 1, 2, 3, 4, 5}),
    ],
)
def test_dense_layers(options: dict[str, Any], dense: set[int]) -> None:
    config = read(num_hidden_layers=6, **options)
    assert config.dense_layers == dense
    assert (config.experts is None) == (len(dense) == 6)


def test_yarn_scales_the_scores_where_mscale_all_dim_is_given() -> None:
    def scale(**rope: Any) -> float:
        return softmax_scale(read(rope_parameters={**TEXT["rope_parameters"], **rope}))

    plain = 20**-0.5
    # 0.1 m ln(4) + 1, squared.
    assert scale() == pytest.approx(plain * (1 + 0.12 * 1.3862943611) ** 2)
    assert scale(mscale_all_dim=None) == plain
    assert scale(mscale_all_dim=0.0) == plain
    assert scale(factor=1.0) == plain
    none = read(rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    assert softmax_scale(none) == plain


def test_rope_scaling_is_rope_parameters_of_older_files() -> None:
    given = dict(TEXT["rope_parameters"])
    theta, kind = given.pop("rope_theta"), given.pop("rope_type")
    older = read(rope_parameters=..., rope_theta=theta, rope_scaling={**given, "type": kind})
    assert older.rope == read().rope


def test_the_users_limit_on_the_length() -> None:
    assert read(max_length=100).get_max_seq_len() == 100
    with pytest.raises(ConfigError, match="max_length is 1000"):
        read(max_length=1000)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scoring_func": "softmax"}, "scoring_func = 'softmax'"),
        ({"topk_method": "group_limited_greedy"}, "topk_method = 'group_limited_greedy'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"num_key_value_heads": 2}, "num_key_value_heads = 2"),
        ({"head_dim": 64}, "head_dim = 64"),
        ({"sliding_window": 8}, "sliding_window = 8"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"moe_layer_freq": [0, 1]}, "moe_layer_freq"),
        ({"moe_layer_freq": 0}, "moe_layer_freq"),
        ({"kv_lora_rank": ...}, "no kv_lora_rank"),
        ({"n_group": 3}, "n_group 3"),
        ({"n_group": 8, "topk_group": 3}, "at least 2 experts in a group"),
        ({"topk_group": 3}, "topk_group 3"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok is 5"),
        *(
            ({name: absent}, f"no {name}")
            for name in ("first_k_dense_replace", *NEEDED_BY_EXPERTS)
            for absent in (None, ...)
        ),
        ({"first_k_dense_replace": 1.5}, "first_k_dense_replace = 1.5"),
        ({"norm_topk_prob": "false"}, "norm_topk_prob = 'false'; wanted true or false"),
        ({"rope_interleave": "x"}, "rope_interleave = 'x'; wanted true or false"),
        ({"attention_bias": 1}, "attention_bias = 1; wanted true or false"),
        ({"use_qk_norm": True}, "use_qk_norm = True"),
        ({"swiglu_limit": 7.0}, "swiglu_limit = 7.0"),
        ({"expert_bias": True}, "expert_bias = True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types = ['full_"),
        ({"layer_types": 5}, "layer_types = 5"),
        ({"qk_head_dim": 5}, "qk_head_dim = 5, which is not served; wanted it absent or 20"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor by which 4 of qk_rope_head_dim = 8",
        ),
        ({"qk_rope_head_dim": 15}, "qk_rope_head_dim = 15; wanted an even number"),
        ({"num_attention_heads": -1}, "num_attention_heads = -1; wanted a whole number >= 1"),
        (
            {"routed_scaling_factor": 1e40},
            "routed_scaling_factor = 1e+40; wanted a number > 0 and <=",
        ),
        ({"routed_scaling_factor": -1}, "routed_scaling_factor = -1; wanted a number > 0"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps = 0.0"),
        ({"rms_norm_eps": 1e30}, "rms_norm_eps = 1e+30"),
        ({"num_nextn_predict_layers": 10**9}, "num_nextn_predict_layers = 1000000000"),
        ({"num_nextn_predict_layers": -1}, "num_nextn_predict_layers = -1"),
        ({"moe_layer_freq": True}, "moe_layer_freq = True"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "'linear'"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "'spiral'"),
        ({"rope_parameters": {"rope_type": "default", "swirl": 1}}, "swirl"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**options)
    assert said in str(caught.value)


@pytest.mark.parametrize("value", [-1, "3", 2.5, True])
@pytest.mark.parametrize(
    "name",
    [
        *(*NEEDED, "q_lora_rank", "first_k_dense_replace", "n_routed_experts", "n_shared_experts"),
        *("moe_intermediate_size", "num_experts_per_tok", "n_group", "topk_group"),
    ],
)
def test_a_count_that_is_none_is_refused_by_the_checkpoints_own_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**{name: value})
    assert f"the checkpoint's config has {name} = {value!r}; wanted a whole number" in str(
        caught.value
    )


@pytest.mark.parametrize(
    "option",
    [
        {"use_qk_norm": False},
        {"expert_bias": False},
        {"swiglu_limit": None},
        {"layer_types": ["full_attention"] * 2},
        {"qk_head_dim": 20},
        {"partial_rotary_factor": 1.0},
        {"topk_method": None, "scoring_func": None},
        {"aux_loss_alpha": 0.1, "seq_aux": True, "ep_size": 1},
    ],
)
def test_options_that_change_nothing_are_no_matter(option: dict[str, Any]) -> None:
    assert read(**option) == read()


def test_transformers_class_fills_in_what_experts_need() -> None:
    """And only that of the text network: another class has no such options."""
    options = tiny_config("DeepseekV3ForCausalLM", TEXT)
    for name in NEEDED_BY_EXPERTS:
        del options[name]
    model = ModelConfig(
        model="m",
        path="m",
        weight_format="safetensors",
        huggingface_config=config_of_type("deepseek_v3", options | {"n_routed_experts": 256}, "it"),
    )
    experts = KimiK25Config.initialize(PipelineConfig(model=model)).experts
    assert experts is not None
    assert (experts.num_groups, experts.top_groups, experts.scale) == (8, 4, 2.5)
    assert (experts.num_shared, experts.top_k, experts.normalize) == (1, 8, True)


def changed(**weights: Any) -> dict[str, Any]:
    group = PACKED["config_groups"]["group_0"]  # type: ignore[index]
    new = {**group, "weights": {**group["weights"], **weights}}
    return {**PACKED, "config_groups": {"group_0": new}}


def aimed(targets: Any) -> dict[str, Any]:
    group = PACKED["config_groups"]["group_0"]  # type: ignore[index]
    return {**PACKED, "config_groups": {"group_0": {**group, "targets": targets}}}


@pytest.mark.parametrize(
    ("quantization", "said"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "'fp8' (8-bit floats"),
        ({"quant_method": "gptq", "bits": 4}, "'gptq'"),
        ({**PACKED, "format": "int-quantized"}, "format = 'int-quantized'"),
        ({**PACKED, "config_groups": {}}, "no config_groups"),
        ({**PACKED, "kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ("int4", "quantization_config = 'int4'"),
        ({**PACKED, "config_groups": ["group_0"]}, "config_groups = ['group_0']"),
        ({**PACKED, "config_groups": {"group_0": "int4"}}, "config_groups.group_0 = 'int4'"),
        (changed(num_bits=8), "num_bits = 8"),
        (changed(group_size=128), "group_size = 128"),
        (changed(symmetric=False), "symmetric = False"),
        (changed(strategy="channel"), "strategy = 'channel'"),
        (changed(actorder="group"), "actorder = 'group'"),
        (changed(foo=1), "weights.foo = 1"),
        (changed(scale_dtype="torch.float8_e4m3fn"), "scale_dtype = 'torch.float8_e4m3fn'"),
        ({**PACKED, "ignore": 5}, "quantization_config.ignore = 5"),
        ({**PACKED, "ignore": [5]}, "quantization_config.ignore = [5]"),
        (aimed([]), "targets = []"),
        (aimed(["Embedding"]), "targets = 'Embedding'"),
        (aimed(["Linear", "Conv2d"]), "targets = 'Conv2d'"),
        (aimed("Linear"), "targets = 'Linear'"),
    ],
)
def test_other_quantization_is_refused_by_name(quantization: dict[str, Any], said: str) -> None:
    for options in (
        {**tiny_config(NAMES[2], TEXT), "quantization_config": quantization},
        {"text_config": tiny_config(NAMES[2], TEXT), "quantization_config": quantization},
    ):
        with pytest.raises(ConfigError) as caught:
            initialize(options)
        assert said in str(caught.value)
    for same in (
        PACKED,
        changed(observer="minmax", observer_kwargs={}, scale_dtype="torch.bfloat16", zp_dtype=None),
        {**PACKED, "ignore": ["lm_head", "re:.*self_attn.*"]},
        aimed(["re:.*experts.*", "model.layers.1.mlp"]),
    ):
        assert read(quantization_config=same) == read()
