"""DraftConfig and DraftFormat, by a method that adds nothing of its own; no weight is read."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, ClassVar

import pytest

from pilotfish.config import ModelConfig, PipelineConfig, RuntimeConfig, SpeculativeConfig
from pilotfish.errors import ConfigError
from pilotfish.protocols import ReturnHiddenStates
from pilotfish.speculation.draft_config import DraftConfig
from pilotfish.speculation.draft_format import DraftFormat
from pilotfish.speculation.draft_weights import block_rules, draft_rules
from pilotfish.state import PagedStateSpec
from pilotfish.weights.hf_config import PlainConfig

TARGET = {"vocab_size": 96, "hidden_size": 48, "num_hidden_layers": 12}
SIZES = {
    **{"vocab_size": 96, "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 64},
    **{"num_attention_heads": 4, "max_position_embeddings": 128},
}


class PairFormat(DraftFormat):
    method: ClassVar[str] = "pair"
    architectures: ClassVar[tuple[str, ...]] = ("PairDraft", "PairDraft2")
    section_name: ClassVar[str] = "pair_config"
    read_inside: ClassVar[frozenset[str]] = frozenset({"depth"})


class PairConfig(DraftConfig):
    format_class: ClassVar[type[DraftFormat]] = PairFormat


class KindsConfig(PairConfig):
    """A method that asks which of its layers slide."""

    @classmethod
    def read_fields(cls, draft: DraftFormat, target: Any) -> dict[str, Any]:
        draft.layer_types()
        return super().read_fields(draft, target)


class PackedFormat(PairFormat):
    speculators_type: ClassVar[str | None] = "pair"
    layer_model_types: ClassVar[tuple[str, ...]] = ("qwen3",)


class PackedConfig(DraftConfig):
    format_class: ClassVar[type[DraftFormat]] = PackedFormat


def model(values: dict[str, Any]) -> ModelConfig:
    return ModelConfig(
        model="m", path="m", huggingface_config=PlainConfig(values), weight_format="safetensors"
    )


def read(kind: type[DraftConfig] = PairConfig, dtype: str = "auto", **options: Any) -> DraftConfig:
    return initialized(kind, {"architectures": ["PairDraft"], **SIZES, **options}, dtype)


def initialized(kind: type[DraftConfig], draft: dict[str, Any], dtype: str) -> DraftConfig:
    return kind.initialize(
        PipelineConfig(
            model=model(TARGET),
            draft_model=model(draft),
            runtime=RuntimeConfig(dtype=dtype),
            speculative=SpeculativeConfig(method="pair"),
        )
    )


def packed(**options: Any) -> DraftConfig:
    layer = {"model_type": "qwen3", "head_dim": 12, "num_key_value_heads": 2, **SIZES}
    top = {"speculators_model_type": "pair", "transformer_layer_config": layer, **options}
    return initialized(PackedConfig, top, "auto")


def test_two_names_make_a_config() -> None:
    config = read(num_key_value_heads=2, draft_vocab_size=40, torch_dtype="bfloat16")
    assert (config.draft_format, config.head_dim, config.draft_vocab_size) == ("pair", 12, 40)
    assert (config.aux_hidden_state_layers, config.max_draft_tokens, config.lookahead) == (
        (2, 6, 9),
        None,
        1,
    )
    assert config.return_hidden_states is ReturnHiddenStates.SELECTED
    [spec] = config.get_state_specs()
    assert spec == PagedStateSpec(
        name="draft",
        num_layers=2,
        row_shape=(2, 2, 12),
        dtype="bfloat16",
        heads_axis=1,
    )
    assert [config.num_scratch_rows(width) for width in (0, 1, 5)] == [0, 0, 4]
    assert (config.get_max_seq_len(), config.prefix_salt(3)) == (128, b"")
    assert read(torch_dtype="bfloat16", dtype="float16").dtype == "float16"


def test_a_packed_layer_is_read_with_the_defaults_of_its_type() -> None:
    config = packed(hidden_state_boundaries=[3, 0])
    assert (config.draft_format, config.aux_hidden_state_layers) == ("speculators", (3, 0))
    assert config.rms_norm_eps == 1e-6


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an architecture": ({"architectures": ["Other"]}, "'Other'; the method pair reads PairDraft, "),
    "a name without a list": ({"architectures": "PairDraft9"}, "'PairDraft9'; the method pair"),
    "a number for architectures": ({"architectures": 3}, "architecture is 3; the method pair"),
    "another's packing": ({"speculators_model_type": "x"}, "'x'; the method pair reads none"),
    "a kind of layer": ({"layer_types": ["chunked", "full_attention"]}, "wanted 2 of 'full_att"),
    "kinds without a list": ({"layer_types": 1}, r"layer_types are \[1\]; wanted 2 of"),
    "boundaries": ({"hidden_state_boundaries": [13]}, "so 0 to 12: give the draft of this target"),
    "no boundaries": ({"hidden_state_boundaries": []}, "wanted a list of whole numbers, one"),
    "another target's layers": (
        {"num_target_layers": 9},
        "num_hidden_layers 9 and this one has 12",
    ),
    "another target's width": ({"target_hidden_size": 64}, "hidden_size 64 and this one has 48"),
    "another vocabulary": ({"vocab_size": 96 + 513}, "vocab_size 609 and this one has 96"),
    "no section": ({"pair_config": [1]}, r"pair_config is \[1\]; wanted an object of options"),
    "an option inside": ({"pair_config": {"x": 2, "depth": 3}}, "has pair_config.x = 2, which is"),
    "an option of the maths": ({"logit_softcap": 30.0}, "logit_softcap = 30.0, which is not"),
    "heads": ({"num_key_value_heads": 3}, "num_key_value_heads 3; wanted a multiple"),
    "a dtype": ({"torch_dtype": "int3"}, "torch_dtype = 'int3', which is not served"),
    "a missing size": ({"intermediate_size": None}, "has no intermediate_size; the config is"),
    "quantized": ({"quantization_config": {"quant_method": "awq"}}, "the draft is quantized"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_named(name: str) -> None:
    options, said = REFUSED[name]
    with pytest.raises(ConfigError, match=said):
        read(KindsConfig, **options)


def test_an_unknown_option_that_is_set_matters_where_options_are_off() -> None:
    assert packed(new_trick=False) == packed(ttt_steps=3)
    with pytest.raises(ConfigError, match="new_trick = 1, which is not served; wanted it absent"):
        packed(new_trick=1)


@pytest.mark.parametrize(
    ("options", "names", "said"),
    [
        ({"draft_vocab_size": 40}, ["lm_head"], "40 of 96 tokens and its file has no d2t"),
        ({}, ["d2t"], r"d2t and no lm_head\.weight"),
        ({"hidden_size": 32, "target_hidden_size": 48}, ["lm_head"], "32 wide and the target 48"),
        (
            {"hidden_size": 32, "target_hidden_size": 48},
            ["embed_tokens"],
            r"no lm_head\.weight and the target's head has another shape",
        ),
    ],
)
def test_a_file_lacks_nothing_that_the_target_cannot_lend(
    options: dict[str, Any], names: list[str], said: str
) -> None:
    tensors = [name if name == "d2t" else f"model.{name}.weight" for name in names]
    with pytest.raises(ConfigError, match=said):
        read(**options).finalize(None, dict.fromkeys(tensors))
    assert not read().finalize(None, {}).has_head


def test_rules_name_every_tensor_of_an_ordinary_block() -> None:
    rules = draft_rules(read(), *block_rules(read()))
    assert rules.plain_name("model.fc.weight") == "fc.weight"
    of_blocks = {rule.parameter for rule in rules.rules if rule.parameter.startswith("layers.")}
    sublayers = {"attention.qkv", "attention.out", "mlp.gate_up", "mlp.down"}
    kinds = [f"{name}.{kind}" for name in sublayers for kind in ("weight", "bias")]
    norms = ["attention_norm.weight", "mlp_norm.weight"]
    assert of_blocks == {f"layers.{{layer}}.{name}" for name in (*kinds, *norms)}


def test_the_bases_are_light() -> None:
    code = "import sys, pilotfish.speculation.draft_config; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
