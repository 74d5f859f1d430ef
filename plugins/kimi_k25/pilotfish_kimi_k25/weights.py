"""Names of the tensors of Kimi K2.5 and DeepSeek-V3 in Hugging Face files, as rules.

Knows: names, in the published layouts and in transformers'. Does not know: how tensors are read.
"""

from __future__ import annotations

from collections.abc import Iterator

from pilotfish.weights import Rule, WeightRules, layer_rule
from pilotfish.weights.experts import expert_rules
from pilotfish_kimi_k25.config import KimiK25Config
from pilotfish_kimi_k25.vision.weights import vision_rules

PREFIXES = {
    "model.": "",
    "language_model.": "",
    "language_model.model.": "",
    "language_model.model.blocks.": "layers.",
    "model.language_model.": "",
    "model.vision_tower.": "vision_tower.",
    "model.mm_projector.": "mm_projector.",
}
"""DeepSeek-V3's files; Kimi's published ones; Kimi's as transformers writes them ("blocks" too) and
as its modules are called.
"""

MTP = (
    *("embed_tokens.weight", "enorm.weight", "hnorm.weight", "eh_proj.weight"),
    *("shared_head.norm.weight", "shared_head.head.weight"),
    *("input_layernorm.weight", "post_attention_layernorm.weight"),
    *(
        f"self_attn.{part}_proj.{kind}"
        for kind in ("weight", "bias")
        for part in ("q", "q_a", "q_b", "kv_b", "o")
    ),
    *("self_attn.kv_a_proj_with_mqa.weight", "self_attn.kv_a_proj_with_mqa.bias"),
    *("self_attn.q_a_layernorm.weight", "self_attn.kv_a_layernorm.weight"),
    *("mlp.gate.weight", "mlp.gate.e_score_correction_bias"),
    *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    *(f"mlp.shared_experts.{part}_proj.weight" for part in ("gate", "up", "down")),
    *(
        f"mlp.experts.{{expert}}.{part}_proj.{kind}"
        for part in ("gate", "up", "down")
        for kind in ("weight", "weight_packed", "weight_scale", "weight_shape")
    ),
)
"""What a layer after the last has, which predicts further tokens: `num_nextn_predict_layers`."""


def weight_rules(config: KimiK25Config) -> WeightRules:
    """Rules for every layout at once: their names never clash."""
    after = range(config.num_hidden_layers, config.num_hidden_layers + config.num_mtp_layers)
    return WeightRules(
        rules=tuple(_rules(config)),
        ignore=(
            "layers.{layer}.self_attn.rotary_emb.inv_freq",
            *(
                f"layers.{{layer}}.mlp.experts.{{expert}}.{part}_proj.weight_shape"
                for part in ("gate", "up", "down")
            ),
            *(f"layers.{layer}.{name}" for layer in after for name in MTP),
        ),
        ties={"lm_head.weight": "embed_tokens.weight"} if config.tie_word_embeddings else {},
        prefixes=PREFIXES,
    )


def _rules(config: KimiK25Config) -> Iterator[Rule]:
    yield Rule("embed_tokens.weight", "embed_tokens.weight")
    yield Rule("norm.weight", "norm.weight")
    yield Rule("lm_head.weight", "lm_head.weight")
    if config.vision is not None:
        yield from vision_rules(config.vision)
    yield layer_rule("attention_norm.weight", "input_layernorm.weight")
    yield layer_rule("mlp_norm.weight", "post_attention_layernorm.weight")
    yield from _attention_rules(config)
    yield from _gated("mlp", "mlp", config.intermediate_size)
    experts = config.experts
    if experts is None:
        return
    yield from _gated(
        "mlp.shared", "mlp.shared_experts", experts.num_shared * experts.intermediate_size
    )
    gate = "layers.{layer}.mlp.gate"
    yield Rule("layers.{layer}.mlp.router.weight", f"{gate}.weight")
    yield Rule("layers.{layer}.mlp.router.bias", f"{gate}.e_score_correction_bias", dtype="float32")
    yield from expert_rules("layers.{layer}.mlp.experts", "layers.{layer}.mlp.experts")


def _attention_rules(config: KimiK25Config) -> Iterator[Rule]:
    for kind in ("weight", "bias"):
        yield layer_rule(
            f"attention.qkv_a.{kind}",
            (f"self_attn.q_a_proj.{kind}", config.q_lora_rank),
            (f"self_attn.kv_a_proj_with_mqa.{kind}", config.latent_width),
        )
        yield layer_rule(f"attention.kv_a.{kind}", f"self_attn.kv_a_proj_with_mqa.{kind}")
        yield layer_rule(f"attention.out.{kind}", f"self_attn.o_proj.{kind}")
    yield layer_rule("attention.q.weight", "self_attn.q_proj.weight")
    yield layer_rule("attention.q_norm.weight", "self_attn.q_a_layernorm.weight")
    yield layer_rule("attention.q_b.weight", "self_attn.q_b_proj.weight")
    yield layer_rule("attention.kv_norm.weight", "self_attn.kv_a_layernorm.weight")
    yield layer_rule("attention.kv_b.weight", "self_attn.kv_b_proj.weight")


def _gated(parameter: str, module: str, width: int) -> Iterator[Rule]:
    """A gated feed-forward: gate and up are one parameter."""
    halves = [(f"{module}.{part}_proj.weight", width) for part in ("gate", "up")]
    yield layer_rule(f"{parameter}.gate_up.weight", *halves)
    yield layer_rule(f"{parameter}.down.weight", f"{module}.down_proj.weight")
