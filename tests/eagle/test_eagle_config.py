"""EagleConfig: versions, formats, taps, what is refused; nothing here reads a weight."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from eagle.checkpoints import CASES, FULL_VOCAB, LAYER, SMALL_VOCAB, THETA, DraftCase, draft_config
from eagle.conftest import Pair
from eagle.driver import draft_config as finalized
from pilotfish import load_registry
from pilotfish.config import ModelConfig, PipelineConfig, RuntimeConfig, SpeculativeConfig
from pilotfish.errors import ConfigError, RouteError
from pilotfish.protocols import ReturnHiddenStates
from pilotfish.state import PagedStateSpec
from pilotfish.weights.hf_config import PlainConfig
from pilotfish_eagle.config import EagleConfig
from pilotfish_eagle.formats import DRAFT_ARCHITECTURES, EAGLE1_ARCHITECTURES

TARGET = {**LAYER, "num_hidden_layers": 32, "architectures": ["LlamaForCausalLM"]}
NESTED = "eagle_config"
IDS = "eagle_aux_hidden_state_layer_ids"


def model(values: dict[str, Any], **fields: Any) -> ModelConfig:
    options = {"weight_format": "safetensors", **fields}
    return ModelConfig(model="m", path="m", huggingface_config=PlainConfig(values), **options)


def pipeline(
    draft: dict[str, Any] | None, target: dict[str, Any] | None = None, dtype: str = "auto"
) -> PipelineConfig:
    return PipelineConfig(
        model=model(TARGET if target is None else target),
        draft_model=None if draft is None else model(draft),
        runtime=RuntimeConfig(dtype=dtype),
        speculative=SpeculativeConfig(method="eagle"),
    )


def read(draft: dict[str, Any], **options: Any) -> EagleConfig:
    return EagleConfig.initialize(pipeline(draft, **options))


def first(**options: Any) -> dict[str, Any]:
    return {**LAYER, "architectures": ["LlamaForCausalLM"], **options}


def third(**options: Any) -> dict[str, Any]:
    return {**LAYER, **SMALL_VOCAB, "architectures": ["LlamaForCausalLMEagle3"], **options}


def speculators(**options: Any) -> dict[str, Any]:
    return {**draft_config(CASES["speculators"]), **options}


@pytest.mark.parametrize("case", CASES)
def test_every_format_is_read(pair: Pair, case: str) -> None:
    config, wanted = finalized(*pair(case)), CASES[case]
    assert config.version == wanted.version
    assert config.aux_hidden_state_layers == wanted.aux_hidden_state_layers
    assert config.fc_bias == wanted.fc_bias
    assert config.own_embedding == wanted.own_embedding
    assert config.own_head == wanted.own_head
    assert config.has_offsets == wanted.offsets
    assert config.draft_vocab_size == wanted.draft_vocab
    assert config.max_position == 128
    formats = {True: "speculators", False: "eagle" if wanted.version == 1 else "eagle3"}
    assert config.draft_format == formats[wanted.speculators]
    rope = {"rope_theta": 10000.0, **wanted.layer, **wanted.layer.get("rope_parameters", {})}
    assert config.rope.theta == rope["rope_theta"]


def test_what_it_asks_of_the_engine() -> None:
    one, three = read(first()), read(third(num_key_value_heads=1, head_dim=20), dtype="bfloat16")
    assert one.return_hidden_states is ReturnHiddenStates.ALL_NORMALIZED
    assert (one.aux_hidden_state_layers, one.max_draft_tokens, one.lookahead) == ((), None, 1)
    assert three.return_hidden_states is ReturnHiddenStates.SELECTED
    (spec,) = three.get_state_specs()
    assert spec == PagedStateSpec(
        name="draft",
        num_layers=1,
        row_shape=(2, 1, 20),
        dtype="bfloat16",
        heads_axis=1,
    )
    assert three.get_kv_params().spec == spec
    assert [one.num_scratch_rows(width) for width in (0, 1, 2, 5)] == [0, 0, 1, 4]
    assert three.get_max_seq_len() == 128


def test_default_taps_are_the_references() -> None:
    config = read(third())
    assert config.aux_hidden_state_layers == (2, 16, 29)
    assert "reference" in config.layers_source


@pytest.mark.parametrize(
    ("options", "aux_hidden_state_layers"),
    [
        ({NESTED: {IDS: [1, 15, 28]}}, (2, 16, 29)),  # blocks
        ({NESTED: {IDS: [28, 1, 1]}}, (29, 2, 2)),
        ({NESTED: {IDS: [2, 16, 29]}}, (2, 16, 29)),  # the reference's own boundaries
        ({NESTED: {IDS: [24, 30, 32]}}, (24, 30, 32)),  # block 32 does not exist
        ({IDS: [1, 15, 28]}, (1, 15, 28)),  # beside the config: boundaries
        ({NESTED: {IDS: [1, 15, 28]}, "hidden_state_boundaries": [3, 0, 3]}, (3, 0, 3)),
    ],
)
def test_layer_ids_become_boundaries_by_format(
    options: dict[str, Any], aux_hidden_state_layers: tuple[int, ...]
) -> None:
    config = read(third(**options))
    assert config.aux_hidden_state_layers == aux_hidden_state_layers
    assert f"aux_hidden_state_layers={aux_hidden_state_layers}" in repr(config)
    assert config.layers_source in repr(config)


def test_speculators_ids_are_boundaries() -> None:
    assert read(speculators(**{IDS: [1, 15, 28]})).aux_hidden_state_layers == (1, 15, 28)


def test_flags_inside_eagle_config_win() -> None:
    config = read(third(norm_before_fc=True, eagle_config={"norm_before_fc": False}))
    assert not config.norm_before_fc
    assert read(third(eagle_config={"norm_before_residual": True})).norm_before_residual


@pytest.mark.parametrize("options", [THETA, {"rope_parameters": {"rope_theta": 300.0}}])
def test_theta_is_read_in_both_spellings(options: dict[str, Any]) -> None:
    for draft in (first(**options), third(**options)):
        assert read(draft).rope.theta == 300.0
    layer = {**speculators()["transformer_layer_config"], **options}
    if "rope_parameters" in options:
        del layer["rope_theta"]
    assert read(speculators(transformer_layer_config=layer)).rope.theta == 300.0


def test_the_bias_of_fc_is_on_unless_the_config_says_no() -> None:
    assert read(first()).fc_bias is True
    assert read(first(bias=False)).fc_bias is False
    assert read(third()).fc_bias is None
    names = dict.fromkeys(("fc.weight", "d2t", "layers.0.hidden_norm.weight", "lm_head.weight"))
    assert read(third()).finalize(None, names).fc_bias is False
    assert read(third()).finalize(None, {**names, "fc.bias": None}).fc_bias is True


def test_dtype() -> None:
    assert read(first()).dtype == "float32"
    assert read(first(torch_dtype="float16")).dtype == "float16"
    assert read(first(torch_dtype="float16"), dtype="bfloat16").dtype == "bfloat16"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "width": (first(hidden_size=64), "hidden_size 64"),
    "vocabulary": (first(vocab_size=96 + 513), "vocab_size 609"),
    "width of a third": (third(target_hidden_size=64), "hidden_size 64"),
    "vocabulary of a third": (third(vocab_size=96 + 513), "vocab_size 609"),
    "draft vocabulary": (third(draft_vocab_size=97), "draft_vocab_size is 97"),
    "a tap outside": (third(**{IDS: [2, 33]}), "0 to 32"),
    "taps that are no numbers": (third(**{IDS: ["2"]}), "whole numbers"),
    "an unknown architecture": (first(architectures=["Other"]), "'Other'"),
    "another kind of speculators": (speculators(speculators_model_type="mlp"), "'mlp'"),
    "an unknown option that is set": (speculators(new_trick=True), "new_trick"),
    "another layer": (
        speculators(transformer_layer_config={**LAYER, "model_type": "qwen3"}),
        "'qwen3'",
    ),
    "no layer": (speculators(transformer_layer_config=None), "transformer_layer_config"),
    "no taps used": (third(eagle_config={"use_aux_hidden_state": False}), "use_aux_hidden_state"),
    "an unknown nested option": (third(eagle_config={"new_trick": 2}), "new_trick"),
    "a window of which layers": (
        third(sliding_window=4, use_sliding_window=True),
        "use_sliding_window = True and no layer_types",
    ),
    "no window": (third(layer_types=["sliding_attention"]), "and no sliding_window; wanted both"),
    "kinds of more layers": (
        third(layer_types=["full_attention"] * 2),
        "wanted 1 of 'full_attention' or 'sliding_attention'",
    ),
    "a kind of layer": (third(layer_types=["chunked_attention"]), "'chunked_attention'"),
    "half a window": (
        third(layer_types=["sliding_attention"], sliding_window=0.5),
        "sliding_window = 0.5; wanted a whole number",
    ),
    "several at once": (
        third(clip_qkv=8.0, use_qk_norm=True, eagle_config={"parallel_draft_step": 2}),
        "clip_qkv = 8.0 (wanted it absent), use_qk_norm = True (wanted it absent or False), "
        "eagle_config.parallel_draft_step = 2 (wanted it absent or 1), which are not served",
    ),
    "quantized": (
        first(quantization_config={"quant_method": "awq", "bits": 4}),
        "the draft is quantized (quantization_config: awq, bits 4), which is not served; wanted",
    ),
    "a scaled head": (first(logit_scale=2.0), "logit_scale"),
    "another activation": (first(hidden_act="gelu"), "hidden_act"),
    "rope by length": (
        first(rope_parameters={"rope_type": "dynamic", "factor": 2.0}),
        "'dynamic'",
    ),
    "an unknown rope": (first(rope_parameters={"rope_type": "spiral"}), "'spiral'"),
    "a flag of a third on a first": (first(norm_output=True), "norm_output"),
    "both norms": (third(norm_before_fc=True, fc_norm=True), "norm_before_fc"),
    "a missing option": (first(intermediate_size=None), "intermediate_size"),
    "heads that do not divide": (first(num_key_value_heads=3), "num_key_value_heads 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_name(name: str) -> None:
    draft, said = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        read(draft)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_neutral_options_are_not_refused() -> None:
    read(speculators(new_trick=False, dtype="bfloat16", tie_word_embeddings=False))
    read(third(eagle_config={"use_aux_hidden_state": True, "parallel_draft_step": 1}))
    read(first(layer_types=["full_attention"], logit_scale=1.0))
    read(speculators(num_anchors=512, loss_decay_gamma=4.0, ttt_steps=3))  # of training only


MODELOPT = {
    **{"use_aux_hidden_state": True, "use_input_layernorm_in_first_layer": True},
    **{"use_last_layernorm": True, "use_mtp_layernorm": False, "next_layer_regular": True},
    **{"parallel_draft_step": 1, "parallel_draft_heads_num_layers": 1, "has_lm_head": True},
}


@pytest.mark.parametrize(
    ("ids", "layers"),
    [([1, 15, 28], (2, 16, 29)), ([], (2, 16, 29)), ([3, 9], (4, 10))],
)
def test_what_modelopt_writes_is_read(ids: list[int], layers: tuple[int, ...]) -> None:
    """An empty list is its default, which its trainer fills with the reference's three."""
    config = read(third(eagle_config={**MODELOPT, IDS: ids}))
    assert config.aux_hidden_state_layers == layers


@pytest.mark.parametrize("flag", [None, True, False])
def test_norm_output_means_another_thing_in_another_format(flag: bool | None) -> None:
    """The norm before the head in SpecForge's; recycling the normed row in speculators'."""
    options = {} if flag is None else {"norm_output": flag}
    plain, nested = read(third(**options)), read(third(eagle_config=options))
    for config in (plain, nested):
        assert (config.norms_head, config.feeds_normed_states) == (flag is not False, False)
    packaged = read(speculators(**options))
    assert (packaged.norms_head, packaged.feeds_normed_states) == (True, bool(flag))


@pytest.mark.parametrize(
    ("layer", "windows"),
    [
        ({"sliding_window": 2048}, (None,)),
        ({"sliding_window": 2048, "use_sliding_window": False}, (None,)),
        ({"sliding_window": None, "use_sliding_window": True}, (None,)),
        ({"sliding_window": 64, "layer_types": ["full_attention"]}, (None,)),
        ({"sliding_window": 64, "layer_types": ["sliding_attention"]}, (64,)),
    ],
)
def test_a_layer_slides_only_where_layer_types_say_so(
    layer: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    assert read(third(**layer)).windows == windows
    inside = {**speculators()["transformer_layer_config"], **layer}
    assert read(speculators(transformer_layer_config=inside)).windows == windows


def test_speculators_turn_whole_heads_where_angles_are_plain() -> None:
    layer = {**speculators()["transformer_layer_config"], "partial_rotary_factor": 0.5}
    assert read(speculators(transformer_layer_config=layer)).rope.rotary_dim == 12
    assert read(third(partial_rotary_factor=0.5)).rope.rotary_dim == 6


def test_a_draft_is_needed_and_a_directory() -> None:
    with pytest.raises(ConfigError, match="--draft"):
        EagleConfig.initialize(pipeline(None))
    gguf = model(first(), weight_format="gguf")
    with pytest.raises(ConfigError, match="gguf"):
        EagleConfig.initialize(pipeline(None), gguf)


def test_a_target_with_a_text_part_is_read_there() -> None:
    config = read(third(), target={"architectures": ["Other"], "text_config": TARGET})
    assert (config.num_target_layers, config.target_vocab_size) == (32, 96)


@pytest.mark.parametrize(
    ("draft", "names", "said"),
    [
        (first(), ["model.embed_tokens.weight"], "no fc.weight"),
        (first(), ["fc.weight", "midlayer.hidden_norm.weight"], "EAGLE-3"),
        (third(), ["fc.weight", "layers.0.self_attn.q_proj.weight"], "EAGLE-1"),
        (third(), ["fc.weight", "midlayer.hidden_norm.weight", "lm_head.weight"], "no d2t"),
        (third(), ["fc.weight", "midlayer.hidden_norm.weight", "d2t"], "no lm_head.weight"),
        (
            third(hidden_size=32, target_hidden_size=48, head_dim=8),
            ["fc.weight", "midlayer.hidden_norm.weight", "d2t", "lm_head.weight"],
            "no embed_tokens.weight",
        ),
    ],
)
def test_a_file_of_another_draft_is_refused(
    draft: dict[str, Any], names: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        read(draft).finalize(None, dict.fromkeys(names))


def test_a_borrowed_head_needs_the_targets_shape() -> None:
    names = dict.fromkeys(["fc.weight", "midlayer.hidden_norm.weight"])
    assert not read(third(**FULL_VOCAB)).finalize(None, names).own_head
    with pytest.raises(ConfigError, match=r"d2t and no lm_head\.weight, whose rows it would name"):
        read(third(**FULL_VOCAB)).finalize(None, {**names, "d2t": None})


@pytest.mark.parametrize("draft", DRAFT_ARCHITECTURES)
def test_the_registry_composes_it_with_any_target(draft: str) -> None:
    route = load_registry().route("Qwen3ForCausalLM", "eagle", draft)
    assert route.speculator_config_class() is EagleConfig
    assert route.needs_draft


def test_pilotfish_speculators() -> None:
    """The hook: what is registered, and that a draft of another kind finds no route."""
    with pytest.raises(RouteError, match="EagleLlamaForCausalLM"):
        load_registry().route("LlamaForCausalLM", "eagle", "OtherDraft")
    assert EAGLE1_ARCHITECTURES[0] == "LlamaForCausalLM"


def test_the_config_is_light() -> None:
    code = "import sys, pilotfish_eagle.config; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_cases_say_what_they_mean() -> None:
    """The table of cases itself: the formats spell options where they belong."""
    config = draft_config(CASES["speculators"])
    assert "norm_before_residual" in config
    assert "norm_before_residual" not in config["transformer_layer_config"]
    assert DraftCase().draft_vocab == LAYER["vocab_size"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"norm_before_residual": "false"}, "norm_before_residual is 'false'; wanted true or"),
        ({"attention_bias": 1}, "attention_bias is 1; wanted true or false"),
        ({"eagle_config": [1]}, r"eagle_config is \[1\]; wanted an object"),
        ({"logit_softcap": 30.0}, "logit_softcap"),
    ],
)
def test_options_of_the_wrong_kind_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(third(**options))
