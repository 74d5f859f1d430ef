"""Configs as they are published, one made-up small one of each kind: read, or refused for a reason.

Only what the configs say is tried here: sizes are small, and there are no weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from pilotfish import load_registry
from pilotfish.config import PipelineConfig, SpeculativeConfig
from pilotfish.errors import UserError
from pilotfish.weights import open_checkpoint

LAYER: dict[str, Any] = {
    **{"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "hidden_act": "silu"},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2},
    **{"vocab_size": 96, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    **{"torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True},
    **{"initializer_range": 0.02, "attention_dropout": 0.0, "pretraining_tp": 1},
    **{"rope_theta": 500000.0, "tie_word_embeddings": False},
}
LLAMA3 = {
    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 1024,
}
OF_QWEN2 = {"use_sliding_window": False, "sliding_window": 1024, "max_window_layers": 2}
FACTORS = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
DEEPSEEK = {
    **{"model_type": "deepseek_v3", "num_key_value_heads": 4, "kv_lora_rank": 16},
    **{"q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16},
    **{"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    **{"n_shared_experts": 1, "n_group": 2, "topk_group": 1, "norm_topk_prob": True},
    **{"routed_scaling_factor": 2.5, "first_k_dense_replace": 1, "scoring_func": "sigmoid"},
    **{"topk_method": "noaux_tc", "num_nextn_predict_layers": 1, "moe_layer_freq": 1},
}
LFM2 = {
    **{"model_type": "lfm2", "block_dim": 64, "conv_dim": 64, "conv_L_cache": 3},
    **{"block_ff_dim": 96, "block_auto_adjust_ff_dim": False, "full_attn_idxs": [1]},
    **{"norm_eps": 1e-5, "tie_embedding": True},
}

EAGLE3 = {"num_hidden_layers": 1, "draft_vocab_size": 40, "head_dim": 16}
FORMS = {
    "specforge": ("LlamaForCausalLMEagle3", {"sliding_window": 131072, **OF_QWEN2}),
    "angelslim": ("Eagle3LlamaForCausalLM", {"modal_type": "LLM", **OF_QWEN2}),
    "eagle 3.1": ("LlamaForCausalLMEagle3", {"fc_norm": True, "norm_output": True}),
    "modelopt": (
        "LlamaForCausalLMEagle3",
        {
            "eagle_config": {
                **{"eagle_aux_hidden_state_layer_ids": [], "use_aux_hidden_state": True},
                **{"use_input_layernorm_in_first_layer": True, "use_last_layernorm": True},
                **{"use_mtp_layernorm": False, "next_layer_regular": True},
                **{"parallel_draft_step": 1, "parallel_draft_heads_num_layers": 1},
            }
        },
    ),
}
DFLASH = {
    **{"model_type": "qwen3", "head_dim": 16, "block_size": 8, "num_target_layers": 8},
    "dflash_config": {"mask_token_id": 90, "target_layer_ids": [1, 3, 5]},
}


def speculators(kind: str, layer: dict[str, Any], **top: Any) -> dict[str, Any]:
    """As the speculators package writes it."""
    inside = {**LAYER, "num_hidden_layers": 1, "head_dim": 16, **layer}
    return {
        **{"speculators_model_type": kind, "speculators_version": "0.8.0", "fc_norm": False},
        **{"draft_vocab_size": 96, "target_hidden_size": None, "transformers_version": "5.23.0"},
        **{"speculators_config": {"algorithm": kind}, "transformer_layer_config": inside},
        **{"dtype": "bfloat16", "tie_word_embeddings": False, **top},
    }


@attrs.frozen
class Published:
    """architecture, values: of config.json. said: of the refusal; "" where it is read.

    method: of a draft, on a Llama of 8 layers. beside: files beside the config.
    """

    architecture: str
    values: dict[str, Any]
    said: str = ""
    method: str | None = None
    beside: dict[str, Any] = attrs.field(factory=dict)


def target(architecture: str, said: str = "", **values: Any) -> Published:
    return Published(architecture, {**LAYER, **values}, said)


def eagle3(architecture: str, said: str = "", **values: Any) -> Published:
    return Published(architecture, {**LAYER, **EAGLE3, **values}, said, "eagle")


def dflash(architecture: str, said: str = "", **values: Any) -> Published:
    return Published(architecture, {**LAYER, **DFLASH, **values}, said, "dflash")


def quantized(method: str, **options: Any) -> Published:
    said = rf"the checkpoint is quantized \(quantization_config: {method}"
    options = {"quant_method": method, **options}
    return target("LlamaForCausalLM", said, quantization_config=options)


KINDS: dict[str, Published] = {
    # Targets that are read.
    "llama 2": target("LlamaForCausalLM", rope_scaling=None),
    "llama 3": target("LlamaForCausalLM", rope_scaling=LLAMA3),
    "llama 3, as written since": target("LlamaForCausalLM", rope_parameters=LLAMA3),
    "granite code": target("LlamaForCausalLM", attention_bias=True, mlp_bias=True),
    "mistral": target("MistralForCausalLM", model_type="mistral", sliding_window=None),
    "mistral 0.1": target("MistralForCausalLM", model_type="mistral", sliding_window=512),
    "qwen 2": target("Qwen2ForCausalLM", model_type="qwen2", **OF_QWEN2),
    "qwen 3": target("Qwen3ForCausalLM", model_type="qwen3", head_dim=16, **OF_QWEN2),
    "granite": target("GraniteForCausalLM", model_type="granite", logits_scaling=8.0),
    "olmo": target("OlmoForCausalLM", model_type="olmo", clip_qkv=8.0),
    "phi 3": target(
        "Phi3ForCausalLM",
        model_type="phi3",
        original_max_position_embeddings=1024,
        rope_scaling={"type": "longrope", **FACTORS},
        **{"pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 3},
    ),
    "phi 3, the first": target(
        "Phi3ForCausalLM",
        model_type="phi3",
        original_max_position_embeddings=1024,
        rope_scaling={"type": "su", **FACTORS},
        **{"pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 3},
    ),
    "lfm 2": target("Lfm2ForCausalLM", **LFM2),
    "deepseek 3": target("DeepseekV3ForCausalLM", **DEEPSEEK),
    # Targets that are not served.
    "gpt-oss": target("GptOssForCausalLM", "served: DeepseekV3ForCausalLM", model_type="gpt_oss"),
    "qwen 3 with experts": target("Qwen3MoeForCausalLM", r"architecture 'Qwen3MoeForCausalLM'; "),
    "gemma": target("Gemma3ForConditionalGeneration", r"'Gemma3ForConditionalGeneration'; served"),
    "mixtral": target("MixtralForCausalLM", r"architecture 'MixtralForCausalLM'; served"),
    "another spelling": target("LLaMAForCausalLM", r"did you mean LlamaForCausalLM\?"),
    "experts in a llama": target("LlamaForCausalLM", "num_local_experts = 8", num_local_experts=8),
    "a rope type that is a list": target(
        "LlamaForCausalLM", r"\['linear'\]", rope_scaling={"rope_type": ["linear"], "factor": 2.0}
    ),
    "a rope type that is an empty list": target(
        "LlamaForCausalLM", r"rope_type is '\[\]'", rope_scaling={"rope_type": []}
    ),
    "several options": target(
        "LlamaForCausalLM",
        r"use_qk_norm = True \(wanted it absent or False\), clip_qkv = 8.0 \(wanted it absent\), "
        "which are not served",
        **{"use_qk_norm": True, "clip_qkv": 8.0},
    ),
    # Quantized weights.
    **{name: quantized(name, bits=4) for name in ("gptq", "awq", "bitsandbytes", "torchao")},
    "fp8": quantized("fp8", weight_block_size=[128, 128]),
    "compressed tensors": quantized("compressed-tensors", format="float-quantized"),
    "mlx": target(
        "LlamaForCausalLM",
        r"quantized \(quantization_config: MLX, bits 4\)",
        quantization={"group_size": 64, "bits": 4},
    ),
    "modelopt, beside": Published(
        "LlamaForCausalLM",
        LAYER,
        r"quantized \(quantization_config: modelopt, quant_algo 'FP8'\)",
        beside={"hf_quant_config.json": {"quantization": {"quant_algo": "FP8"}}},
    ),
    "deepseek in float8": target(
        "DeepseekV3ForCausalLM",
        "quant_method = 'fp8'",
        **DEEPSEEK,
        quantization_config={"quant_method": "fp8"},
    ),
    # EAGLE drafts.
    "eagle 1": Published("LlamaForCausalLM", {**LAYER, "num_hidden_layers": 1}, "", "eagle"),
    **{f"eagle 3 of {name}": eagle3(form, **more) for name, (form, more) in FORMS.items()},
    "eagle 3 of speculators": Published(
        "Eagle3DraftModel",
        speculators(
            "eagle3",
            {
                "sliding_window": 2048,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention"],
            },
            **{"norm_before_fc": True, "norm_output": True, "embed_requires_grad": False},
        ),
        "",
        "eagle",
    ),
    "eagle 3 of speculators, full": Published(
        "Eagle3DraftModel",
        speculators("eagle3", {"sliding_window": 2048, "layer_types": ["full_attention"]}),
        "",
        "eagle",
    ),
    "eagle 3 for images": eagle3(
        "LlamaForCausalLMEagle3",
        "rope_type is 'mrope'",
        rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]},
    ),
    "eagle 3 with normed heads": eagle3(
        "Eagle3LlamaForCausalLM", "use_qk_norm = True", use_qk_norm=True
    ),
    "eagle 3 of another model": eagle3("CosyVoice3Eagle3LlamaForCausalLM", "does not read a draft"),
    "parallel eagle": eagle3("PEagleDraftModel", "does not read a draft 'PEagleDraftModel'; it re"),
    "eagle alone": target("Eagle3DraftModel", "cannot run alone; give the target as the model"),
    # DFlash drafts.
    "dflash": dflash("DFlashDraftModel"),
    "dflash of speculators": Published(
        "DFlashDraftModel",
        speculators(
            "dflash",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
            **{"block_size": 8, "mask_token_id": 90, "max_anchors": 1024},
            aux_hidden_state_layer_ids=[1, 3, 5],
        ),
        "",
        "dflash",
    ),
    "dflash with sinks": dflash(
        "DFlashDraftModel",
        r"attention_value_scale = 0.5 \(wanted it absent or 1.0\).*attention_sink_bias = True",
        attention_value_scale=0.5,
        dflash_config={**DFLASH["dflash_config"], "num_anchors": 9, "attention_sink_bias": True},
    ),
    **{
        name: dflash(name, rf"does not read a draft '{name}'; it reads: DFlashDraftModel")
        for name in ("DFlash2DraftModel", "DSparkDraftModel", "DominoDraftModel")
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_config_is_read_or_refused_for_a_reason(tmp_path: Path, kind: str) -> None:
    published, registry = KINDS[kind], load_registry()
    folders = {"model": published.values, "llama": {**LAYER, "num_hidden_layers": 8}}
    for name, values in folders.items():
        (tmp_path / name).mkdir()
        architecture = published.architecture if name == "model" else "LlamaForCausalLM"
        written = json.dumps({"architectures": [architecture], **values})
        (tmp_path / name / "config.json").write_text(written)
    for name, values in published.beside.items():
        (tmp_path / "model" / name).write_text(json.dumps(values))

    def read() -> object:
        model = open_checkpoint(str(tmp_path / "model"), registry).model_config()
        if published.method is None:
            route = registry.route(model.architecture)
            return route.config_class().initialize(PipelineConfig(model=model))
        route = registry.route("LlamaForCausalLM", published.method, model.architecture)
        of_target = open_checkpoint(str(tmp_path / "llama"), registry).model_config()
        pair = PipelineConfig(
            model=of_target,
            draft_model=model,
            speculative=SpeculativeConfig(method=published.method),
        )
        draft_class: Any = route.speculator_config_class()
        return draft_class.initialize(pair, registry=registry)

    if not published.said:
        assert read() is not None
        return
    with pytest.raises(UserError, match=published.said) as caught:
        read()
    assert "\n" not in str(caught.value)
