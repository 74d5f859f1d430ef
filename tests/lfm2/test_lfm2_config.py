"""LFM2Config: what every option means, and what is refused by name."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
import transformers

from lfm2.checkpoints import SMALL, make_config
from lfm2.driver import pipeline_config
from pilotfish import load_registry
from pilotfish.errors import ConfigError, RouteError
from pilotfish.protocols import ArchConfig, ReturnHiddenStates, ReturnLogits
from pilotfish.weights.hf_config import PlainConfig
from pilotfish_lfm2.config import LFM2Config

PLAIN: dict[str, Any] = {
    "architectures": ["Lfm2ForCausalLM"],
    "model_type": "lfm2",
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 128,
    "block_ff_dim": 96,
    "block_multiple_of": 8,
}


def read(dtype: str = "float32", max_length: int | None = None, **options: Any) -> LFM2Config:
    """Our config of a file with some options, read without transformers' defaults."""
    hf = PlainConfig({**PLAIN, **options})
    return LFM2Config.initialize(pipeline_config(hf, dtype=dtype, max_length=max_length))


def test_plain_options() -> None:
    config = read(full_attn_idxs=[1])
    assert isinstance(config, ArchConfig)
    assert config.layer_types == ("conv", "full_attention", "conv", "conv")
    assert config.conv_layers == (0, 2, 3)
    assert config.attention_layers == (1,)
    assert (config.conv_L_cache, config.conv_bias, config.norm_eps) == (3, False, 1e-5)
    assert config.rope_theta == 1000000.0
    assert config.rope_scaling_params is None
    assert config.head_dim == 12
    assert config.tie_word_embeddings
    assert config.get_max_seq_len() == 128
    assert read(conv_L_cache=4, conv_bias=True, norm_eps=1e-6).conv_L_cache == 4


def test_keys_and_values_are_for_attention_layers_only() -> None:
    config = read(full_attn_idxs=[1, 3], dtype="bfloat16")
    assert config.get_kv_params() == config.kv_params
    assert config.kv_params.num_layers == 2
    kv, conv = config.get_state_specs()
    assert kv == config.kv_params.spec
    assert (conv.name, conv.num_layers, conv.dtype) == ("conv", 2, "bfloat16")
    assert conv == config.conv_spec
    assert config.conv_spec.bytes_per_boundary == 2 * 2 * 48 * 2
    assert config.conv_spec.bytes_per_row == 2 * 48 * 2
    assert read().get_state_specs() == (read().kv_params.spec,)
    assert read(full_attn_idxs=[]).kv_params.num_layers == 0


def test_layer_types_and_indices() -> None:
    kinds = ["conv", "conv", "full_attention", "conv"]
    assert read(layer_types=kinds).layer_types == tuple(kinds)
    assert read(full_attn_idxs=[]).layer_types == ("conv",) * 4
    assert read().layer_types == ("full_attention",) * 4
    with pytest.raises(ConfigError, match=r"full_attn_idxs is \[1, 4\]; wanted layers from 0 to 3"):
        read(full_attn_idxs=[1, 4])
    with pytest.raises(ConfigError, match="layer_types is"):
        read(layer_types=kinds[:3])
    with pytest.raises(ConfigError, match="sliding_attention"):
        read(layer_types=["sliding_attention", *kinds[1:]])


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"block_ff_dim": 6656, "block_multiple_of": 256}, 4608),
        ({"block_ff_dim": None, "intermediate_size": 100}, 72),
        ({"block_ff_dim": 100}, 72),
        ({"block_ff_dim": 100, "block_ffn_dim_multiplier": None}, 66),
        ({"block_ff_dim": 100, "block_ffn_dim_multiplier": 1.3}, 88),
        ({"block_ff_dim": 100, "block_auto_adjust_ff_dim": False}, 100),
        ({"block_ff_dim": 96}, 64),
    ],
)
def test_feed_forward_width(options: dict[str, Any], wanted: int) -> None:
    assert read(**options).intermediate_size == wanted


def test_feed_forward_width_is_transformers_own() -> None:
    for size in (96, 97, 101, 6656):
        hf = transformers.Lfm2Config(**{**SMALL, "intermediate_size": size, "num_hidden_layers": 1})
        with torch.device("meta"):
            built = transformers.Lfm2Model(hf).layers[0].feed_forward.w1.out_features
        assert LFM2Config.initialize(pipeline_config(hf)).intermediate_size == built


def test_rope_options() -> None:
    assert read(rope_theta=500.0).rope_theta == 500.0
    new = {"rope_theta": 700.0, "rope_type": "linear", "factor": 2.0}
    config = read(rope_parameters=new)
    assert config.rope_theta == 700.0
    assert config.rope_scaling_params is config.rope
    assert config.prefix_salt(100) == b""
    with pytest.raises(ConfigError, match="rope_type is 'spiral'"):
        read(rope_parameters={"rope_type": "spiral"})
    with pytest.raises(ConfigError, match="partial_rotary_factor leaves 6 of 12"):
        read(partial_rotary_factor=0.5)


def test_tied_head() -> None:
    assert not read(tie_embedding=False).tie_word_embeddings
    assert not read(tie_word_embeddings=False).tie_word_embeddings
    assert read().finalize(None, {"model.embed_tokens.weight": 0}).tie_word_embeddings
    assert not read().finalize(None, {"lm_head.weight": 0}).tie_word_embeddings


def test_finalize_sets_the_modes() -> None:
    done = read().finalize(None, {}, ReturnLogits.ALL, ReturnHiddenStates.LAST)
    assert done.return_logits is ReturnLogits.ALL
    assert done.return_hidden_states is ReturnHiddenStates.LAST
    assert read().finalize(None, {}).return_logits is ReturnLogits.LAST_TOKEN
    with pytest.raises(ConfigError, match="norm_method is 'rms_norm' and attention_bias True"):
        read().finalize(None, {}, attention_bias=True)


def test_initialize_from_config_reads_the_given_config() -> None:
    pipeline = pipeline_config(make_config("plain"))
    other = PlainConfig({**PLAIN, "full_attn_idxs": [0]})
    config = LFM2Config.initialize_from_config(pipeline, other)
    assert config.attention_layers == (0,)
    assert LFM2Config.initialize(pipeline).attention_layers == (1, 3)


def test_dtype_and_length() -> None:
    assert read(dtype="auto", torch_dtype="bfloat16").dtype == "bfloat16"
    assert read(dtype="auto").dtype == "float32"
    assert read(max_length=100).max_seq_len == 100
    with pytest.raises(ConfigError, match="max_length is 129; wanted at most 128"):
        read(max_length=129)


@pytest.mark.parametrize(
    "option",
    [
        {"block_use_swiglu": False},
        {"use_pos_enc": False},
        {"attention_bias": True},
        {"num_experts": 8},
        {"quantization_config": {"bits": 4}},
        {"conv_dim": 64},
        {"block_dim": 64},
        {"hidden_act": "gelu"},
        {"hidden_size": None},
        {"vocab_size": None},
        {"conv_L_cache": 0},
        {"conv_bias": "yes"},
        {"num_key_value_heads": 3},
        {"block_ff_dim": None},
    ],
)
def test_an_option_that_is_not_read_is_named(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        read(**option)


def test_options_spelled_out_in_the_published_files_are_fine() -> None:
    read(
        block_dim=48,
        conv_dim=48,
        conv_dim_out=48,
        block_use_swiglu=True,
        use_pos_enc=True,
        block_norm_eps=1e-5,
        block_mlp_init_scale=1.0,
        num_heads=4,
    )


def test_the_mixture_of_experts_is_refused_by_name() -> None:
    registry = load_registry()
    assert registry.route("Lfm2ForCausalLM").plugin.name == "lfm2"
    with pytest.raises(RouteError, match="Lfm2MoeForCausalLM"):
        registry.route("Lfm2MoeForCausalLM")


def test_a_config_never_changes() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        read().hidden_size = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads = 0; wanted a whole number >= 1"),
        ({"block_ff_dim": "x"}, "block_ff_dim = 'x'; wanted a whole number"),
        ({"block_multiple_of": 0.5}, "block_multiple_of = 0.5; wanted a whole number"),
        ({"block_ffn_dim_multiplier": "x"}, "block_ffn_dim_multiplier = 'x'; wanted a number"),
        ({"head_dim": 1.5}, "head_dim = 1.5; wanted a whole number"),
    ],
)
def test_a_number_of_the_wrong_kind_is_named_with_its_value(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        read(**options)
