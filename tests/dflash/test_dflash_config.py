"""DFlashConfig: formats, taps, masks, what is refused; nothing here reads a weight."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from dflash.checkpoints import (
    CASES,
    INSIDE,
    LAYER,
    LAYERS,
    MASK,
    SLIDING,
    VOCAB,
    WIDTH,
    F,
    S,
    draft_config,
)
from dflash.conftest import Pair
from dflash.driver import draft_config as finalized
from pilotfish import load_registry
from pilotfish.config import ModelConfig, PipelineConfig, RuntimeConfig, SpeculativeConfig
from pilotfish.errors import ConfigError, RouteError
from pilotfish.protocols import ReturnHiddenStates
from pilotfish.state import PagedStateSpec
from pilotfish.weights.hf_config import PlainConfig
from pilotfish_dflash.config import DFlashConfig
from pilotfish_dflash.formats import DRAFT_ARCHITECTURES

TARGET = {
    **{"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS},
    "architectures": ["LlamaForCausalLM"],
}


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
        speculative=SpeculativeConfig(method="dflash"),
    )


def read(draft: dict[str, Any], **options: Any) -> DFlashConfig:
    return DFlashConfig.initialize(pipeline(draft, **options))


def zlab(inside: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    return {
        **LAYER,
        "architectures": ["DFlashDraftModel"],
        "dflash_config": INSIDE if inside is None else inside,
        **options,
    }


def speculators(layer: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    made = {**draft_config(CASES["speculators"]), **options}
    made["transformer_layer_config"] = {**made["transformer_layer_config"], **(layer or {})}
    return made


@pytest.mark.parametrize("case", CASES)
def test_every_format_is_read(pair: Pair, case: str) -> None:
    config, wanted = finalized(*pair(case)), CASES[case]
    assert config.aux_hidden_state_layers == wanted.aux_hidden_state_layers
    assert config.num_context_features == len(wanted.aux_hidden_state_layers)
    assert tuple(mask_spec.window for mask_spec in config.mask_specs) == wanted.windows
    assert tuple(mask_spec.is_causal for mask_spec in config.mask_specs) == wanted.causal
    assert config.block_size == wanted.block_size
    assert config.max_draft_tokens == wanted.block_size - (not wanted.samples_anchor)
    assert config.mask_token_id == MASK
    assert config.draft_vocab_size == wanted.draft_vocab
    assert (config.own_head, config.own_embedding) == (wanted.own_head, wanted.own_embedding)
    assert config.embedding_factor == wanted.embedding_factor
    assert config.logit_factor == wanted.logit_factor
    assert config.logit_softcap == wanted.softcap
    assert config.return_hidden_states is ReturnHiddenStates.SELECTED
    assert config.lookahead == 0
    layer = wanted.layer
    [spec] = config.get_state_specs()
    assert spec == PagedStateSpec(
        name="draft",
        num_layers=layer["num_hidden_layers"],
        row_shape=(2, layer["num_key_value_heads"], layer["head_dim"]),
        dtype="float32",
        heads_axis=1,
    )


@pytest.mark.parametrize(
    ("ids", "aux_hidden_state_layers"),
    [([0], (1,)), ([-1, 6], (0, 7)), ([3, 3, 1], (4, 4, 2))],
)
def test_ids_of_zlab_are_after_blocks(
    ids: list[int], aux_hidden_state_layers: tuple[int, ...]
) -> None:
    found = read(zlab({**INSIDE, "target_layer_ids": ids}))
    assert found.aux_hidden_state_layers == aux_hidden_state_layers
    assert "after blocks" in found.layers_source
    assert (
        read(zlab({"mask_token_id": MASK}, target_layer_ids=ids)).aux_hidden_state_layers
        == aux_hidden_state_layers
    )


@pytest.mark.parametrize("ids", [[0], [7, 1], [3, 3, 1]])
def test_ids_of_speculators_are_boundaries(ids: list[int]) -> None:
    found = read(speculators(aux_hidden_state_layer_ids=ids))
    assert found.aux_hidden_state_layers == tuple(ids)
    assert "boundaries" in found.layers_source


@pytest.mark.parametrize(
    ("layers", "blocks"), [(1, [16]), (2, [1, 29]), (3, [1, 15, 29]), (5, [1, 8, 15, 22, 29])]
)
def test_default_ids_are_spread(layers: int, blocks: list[int]) -> None:
    draft = zlab({"mask_token_id": MASK}, num_hidden_layers=layers, num_target_layers=32)
    found = read(draft, target={**TARGET, "num_hidden_layers": 32})
    assert found.aux_hidden_state_layers == tuple(block + 1 for block in blocks)


@pytest.mark.parametrize("made", [zlab, speculators])
def test_an_override_is_taken_as_boundaries(made: Any) -> None:
    found = read(made(hidden_state_boundaries=[7, 0]))
    assert found.aux_hidden_state_layers == (7, 0)
    assert found.layers_source.startswith("hidden_state_boundaries")


def test_block_size_and_mask_stand_in_either_place() -> None:
    inside = {"target_layer_ids": [1]}
    assert read(zlab({**inside, "block_size": 4, "mask_token_id": 3})).block_size == 4
    outside = read(zlab(inside, block_size=4, mask_token_id=3))
    assert (outside.block_size, outside.mask_token_id) == (4, 3)
    both = read(zlab({**inside, "block_size": 4, "mask_token_id": 3}, block_size=4))
    assert both.block_size == 4
    assert read(zlab()).block_size == 16
    without = speculators()
    del without["block_size"]
    assert read(without).block_size == 8


@pytest.mark.parametrize(
    ("options", "windows", "causal"),
    [
        ({"layer_types": [S, F, F], **SLIDING}, (5, None, None), (True, False, False)),
        ({"layer_types": [S, F, F], **SLIDING, "is_causal": False}, (5, None, None), (False,) * 3),
        ({"layer_types": [S, F, F], **SLIDING, "is_causal": True}, (5, None, None), (True,) * 3),
        ({"layer_types": [F, F, F], **SLIDING}, (None,) * 3, (False,) * 3),
    ],
)
def test_sights(options: dict[str, Any], windows: Any, causal: Any) -> None:
    found = read(zlab(**options))
    assert tuple(mask_spec.window for mask_spec in found.mask_specs) == windows
    assert tuple(mask_spec.is_causal for mask_spec in found.mask_specs) == causal


def test_options_inside_win_and_is_causal_wins_over_all() -> None:
    slides = {"layer_types": [S, F, S], **SLIDING}
    inside = {**INSIDE, "causal": False, "swa_window_size": 9}
    found = read(zlab(inside, **slides))
    assert [mask_spec.window for mask_spec in found.mask_specs] == [9, None, 9]
    assert not any(mask_spec.is_causal for mask_spec in found.mask_specs)
    assert all(
        mask_spec.is_causal for mask_spec in read(zlab(inside, is_causal=True, **slides)).mask_specs
    )


def test_options_of_training_are_no_reason_to_refuse() -> None:
    training = {"num_anchors": 4096, "loss_decay_gamma": 4.0, "max_anchors": 9}
    assert read(zlab({**INSIDE, **training})) == read(zlab(INSIDE))
    assert read(speculators(**training)) == read(speculators())


def test_speculators_turn_whole_heads_where_angles_are_plain() -> None:
    share = {"partial_rotary_factor": 0.5}
    plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0, **share}}
    assert read(speculators(plain)).rope.rotary_dim == read(speculators()).rope.rotary_dim
    assert read(zlab(**share)).rope.rotary_dim == read(zlab()).rope.rotary_dim // 2


def test_the_run_decides_the_dtype() -> None:
    assert read(zlab(torch_dtype="bfloat16")).dtype == "bfloat16"
    assert read(zlab(torch_dtype="bfloat16"), dtype="float32").dtype == "float32"


def test_positions_reach_as_far_as_the_scaling() -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    assert read(zlab()).max_position == 128
    assert read(zlab(rope_parameters={**rope, "rope_theta": 300.0})).max_position == 512


@pytest.mark.parametrize(("width", "rows"), [(0, 0), (1, 2), (15, 16)])
def test_scratch_is_the_block(width: int, rows: int) -> None:
    assert read(zlab()).num_scratch_rows(width) == rows
    anchor = read(speculators(sample_from_anchor=True))
    assert anchor.num_scratch_rows(width) == width


REFUSED: list[tuple[dict[str, Any], str]] = [
    (zlab({**INSIDE, "selector_rank": 8}), "DFlash2"),
    (zlab(conv_kernel_size=3), "DFlash2"),
    (zlab(markov_rank=16), "DSpark"),
    (speculators(speculators_model_type="dspark"), "'dspark'"),
    (speculators(speculators_model_type="dflash2"), "'dflash2'"),
    (speculators(projector_type="domino"), "projector_type = 'domino'"),
    (speculators(dflash_block_position_embedding=True), "dflash_block_position_embedding"),
    (speculators({"model_type": "gpt_oss"}), "'gpt_oss'"),
    ({**speculators(), "transformer_layer_config": 3}, "transformer_layer_config is 3; wanted an"),
    ({**speculators(), "transformer_layer_config": None}, "incomplete"),
    (zlab({**INSIDE, "attention_sink_bias": True}), "attention_sink_bias = True"),
    (zlab({**INSIDE, "use_aux_hidden_state": False}), "use_aux_hidden_state = False"),
    (zlab({**INSIDE, "new_maths": 2}), "new_maths = 2"),
    (zlab(3), "dflash_config is 3"),  # type: ignore[arg-type]
    (zlab(hidden_act="gelu"), "hidden_act = 'gelu'"),
    (zlab(mlp_bias=True), "mlp_bias = True"),
    (
        zlab(quantization_config={"bits": 4}),
        r"draft is quantized \(quantization_config: no method given, bits 4\)",
    ),
    (
        zlab({**INSIDE, "attention_value_scale": 0.5, "attention_sink_bias": True}, mlp_bias=True),
        r"mlp_bias = True \(wanted it absent or False\), dflash_config.attention_value_scale = 0.5 "
        r"\(.*dflash_config.attention_sink_bias = True \(.*which are not served",
    ),
    (zlab(attention_value_scale=0.5), "attention_value_scale = 0.5, which is not served"),
    (zlab(logits_scaling=2.0), "logits_scaling = 2.0"),
    (zlab(attn_logit_softcapping=30.0), "attn_logit_softcapping = 30.0"),
    (zlab(layer_types=["chunked_attention"] * 3), "chunked_attention"),
    (zlab(layer_types=[F]), "wanted 3"),
    (zlab({**INSIDE, "input_embedding_scale": "x"}), "input_embedding_scale = 'x'"),
    (zlab({**INSIDE, "causal": 3}), "is_causal is 3"),
    (zlab({"target_layer_ids": [1]}), "no mask_token_id"),
    (zlab({**INSIDE, "mask_token_id": VOCAB}), "embeddings have 96 rows"),
    (zlab({**INSIDE, "block_size": 1}), "the anchor alone"),
    (zlab({**INSIDE, "block_size": 0}), "block_size = 0; wanted a whole"),
    (zlab({**INSIDE, "target_layer_ids": [7]}), r"boundaries \[8\]"),
    (zlab({**INSIDE, "target_layer_ids": "1"}), "wanted a list"),
    (zlab({**INSIDE, "target_layer_ids": [-2]}), r"boundaries \[-1\]"),
    (zlab(vocab_size=VOCAB + 513), "give the draft of this target"),
    (zlab(num_target_layers=9), "num_hidden_layers 9 and this one has 7"),
    (zlab(target_hidden_size=64), "give the draft of this target"),
    (zlab(draft_vocab_size=VOCAB + 1), "give the draft of this target"),
    (zlab(num_key_value_heads=3), "wanted a multiple"),
    (zlab(architectures=["Other"]), "'Other'"),
    (zlab(intermediate_size=None), "no intermediate_size"),
    (zlab(rope_scaling={"rope_type": "new", "factor": 2.0}), "'new'"),
    (zlab(architectures=["DFlashDraftModel", "Other"]), "wanted one: take out"),
    (zlab({**INSIDE, "block_size": 10**12}), "block_size = 1000000000000; wanted at most 1024"),
    (zlab({**INSIDE, "block_size": 8}, block_size=4), "block_size = 8 and its config.json 4"),
    (zlab(mask_token_id=5), "mask_token_id = 90 and its config.json 5"),
    (zlab(target_layer_ids=[1]), r"target_layer_ids = \[1, 3, 5\] and its config.json \[1\]"),
    (zlab(layer_types=[S] * 3), "sliding layers .* and no window; wanted sliding_window in"),
    (zlab(layer_types=[S] * 3, sliding_window=None), "and no window"),
    (zlab(layer_types=[S] * 3, sliding_window=0), "sliding_window = 0; wanted a whole number"),
    (zlab(layer_types=[S] * 3, sliding_window=-1), "sliding_window = -1; wanted a whole number"),
    (speculators({"layer_types": [S] * 3, "use_sliding_window": True}), "and no window"),
    (zlab(final_logit_softcapping=-1), "final_logit_softcapping = -1; wanted a number >= 0"),
    (zlab(logits_soft_cap=30.0), "logits_soft_cap = 30.0, which is not served"),
    (zlab({**INSIDE, "output_multiplier": 0}), "output_multiplier = 0; wanted a number > 0"),
    (zlab(rms_norm_eps=1e30), "rms_norm_eps is 1e[+]30; wanted a number > 0 and < 1"),
    (zlab(rms_norm_eps=0), "rms_norm_eps is 0; wanted a number > 0 and < 1"),
    (zlab(partial_rotary_factor=2.0), "partial_rotary_factor = 2.0; wanted a number > 0 and <= 1"),
    (zlab(head_dim=None), "no head_dim"),
    (zlab(num_key_value_heads=None), "no num_key_value_heads"),
]


@pytest.mark.parametrize(("draft", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_changes_the_maths_and_is_not_read_is_named(draft: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(draft)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("layers.0.attention_conv.base_kernel", "DFlash2"),
        ("model.layers.1.mlp_conv.base_kernel", "DFlash2"),
        ("candidate_selector.predecessor_codebook", "DFlash2"),
        ("markov_head.weight", "DSpark"),
        ("prefix_gru.weight_ih_l0", "Domino"),
    ],
)
def test_tensors_of_other_methods_are_refused_by_name(name: str, method: str) -> None:
    with pytest.raises(ConfigError, match=f"{method} draft"):
        read(zlab()).finalize(None, {name: None})


def test_files_that_miss_what_the_target_cannot_lend() -> None:
    small = read(speculators(draft_vocab_size=40))
    with pytest.raises(ConfigError, match="no d2t"):
        small.finalize(None, {"lm_head.weight": None})
    with pytest.raises(ConfigError, match=r"no lm_head\.weight"):
        small.finalize(None, {"d2t": None})
    wide = read(zlab(hidden_size=64, target_hidden_size=WIDTH))
    with pytest.raises(ConfigError, match="64 wide and the target 48"):
        wide.finalize(None, {})
    names = {"embed_tokens.weight": None, "lm_head.weight": None}
    assert wide.finalize(None, names).own_embedding


def test_a_draft_is_wanted_and_a_file_of_the_right_kind() -> None:
    with pytest.raises(ConfigError, match="give one: --draft, or draft= in Python"):
        DFlashConfig.initialize(pipeline(None))
    gguf = model(zlab(), weight_format="gguf")
    with pytest.raises(ConfigError, match="gguf file"):
        DFlashConfig.initialize(pipeline(None), gguf)
    with pytest.raises(ConfigError, match="cannot run alone"):
        read(zlab(), target=zlab())


def test_the_registry_composes_it_with_any_target() -> None:
    registry = load_registry()
    wanted = {"verify", "aux_hidden_states", "embed", "lm_head"}
    targets = [
        target
        for target in registry.architectures
        if wanted <= registry.route(target).architecture.capabilities
    ]
    assert len(targets) > 5
    for target in targets:
        for name in DRAFT_ARCHITECTURES:
            route = registry.route(target, "dflash", name)
            assert route.speculator is not None
            assert route.speculator.driver == "block"
    with pytest.raises(RouteError, match="does not read a draft 'DFlash2DraftModel'"):
        registry.route("LlamaForCausalLM", "dflash", "DFlash2DraftModel")
    with pytest.raises(RouteError, match="--speculative dflash"):
        registry.route("DFlashDraftModel")


def test_the_plugin_and_its_config_import_no_torch() -> None:
    code = "import sys, pilotfish_dflash, pilotfish_dflash.config; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
