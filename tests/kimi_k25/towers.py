"""Tiny random Kimi K2.5 models of transformers, and their checkpoints in both layouts on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Kimi_K25Config, Kimi_K25ForConditionalGeneration

from pilotfish.kernels import KernelBackend
from pilotfish.layers.layer import Layer
from pilotfish.weights import WeightRules, execute_load, plan_load
from pilotfish.weights.formats.safetensors import SafetensorsSource
from pilotfish_kimi_k25.vision.config import VisionConfig
from pilotfish_kimi_k25.vision.network import VisionTower
from pilotfish_kimi_k25.vision.weights import vision_rules
from support.toy_model import toy_tokenizer

IMAGE, VIDEO, VOCAB = 90, 91, 96
Grids = list[tuple[int, int, int]]

TEXT: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
VISION: dict[str, Any] = {
    "patch_size": 4,
    "pos_emb_height": 6,
    "pos_emb_width": 6,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "hidden_size": 24,
    "intermediate_size": 40,
    "merge_kernel_size": [2, 2],
}
PUBLISHED = {
    "hidden_size": "vt_hidden_size",
    "intermediate_size": "vt_intermediate_size",
    "num_attention_heads": "vt_num_attention_heads",
    "num_hidden_layers": "vt_num_hidden_layers",
    "pos_emb_height": "init_pos_emb_height",
    "pos_emb_width": "init_pos_emb_width",
}


def hf_config(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> Any:
    vision = {**VISION, **(vision or {})}
    return Kimi_K25Config(
        text_config={**TEXT, **(text or {})},
        vision_config=vision,
        projection_hidden_size=vision["hidden_size"],
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=92,
        vision_end_token_id=93,
        tie_word_embeddings=False,
    )


def hf_model(config: Any, seed: int = 0, gain: float = 1.0) -> Any:
    """With weights large enough that every part of the network matters.

    gain: of the matrices; above 1 texts vary more, and so do rounding errors.
    """
    torch.manual_seed(seed)
    model = Kimi_K25ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            elif parameter.dim() == 1:
                parameter.copy_(0.3 * torch.randn_like(parameter))
            elif name.endswith("position_embeddings"):
                parameter.copy_(torch.randn_like(parameter))
            else:
                parameter.copy_(gain * torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.1 * torch.randn_like(buffer))
    return model


def save_transformers(model: Any, folder: Path) -> Path:
    """As transformers names the parameters in memory; experts one tensor each."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("model.vision_tower") or name.startswith("model.mm_projector"):
            tensors[name] = tensor.contiguous()
    _save(folder, tensors | text_tensors(model), model.config.to_dict())
    return folder


def save_published(model: Any, folder: Path) -> Path:
    """As the published checkpoint names tensors and options; written by hand from its index."""
    folder.mkdir(parents=True, exist_ok=True)
    heads = model.config.vision_config.num_attention_heads
    state = model.state_dict()
    tensors: dict[str, torch.Tensor] = text_tensors(model)
    tower = "model.vision_tower."
    simple = {
        "patch_embed.proj.weight": "patch_embed.proj.weight",
        "patch_embed.proj.bias": "patch_embed.proj.bias",
        "patch_embed.pos_emb.position_embeddings": "patch_embed.pos_emb.weight",
        "final_layernorm.weight": "encoder.final_layernorm.weight",
        "final_layernorm.bias": "encoder.final_layernorm.bias",
    }
    for ours, theirs in simple.items():
        tensors[f"vision_tower.{theirs}"] = state[tower + ours]
    for layer in range(model.config.vision_config.num_hidden_layers):
        block = f"vision_tower.encoder.blocks.{layer}."
        for kind in ("weight", "bias"):
            parts = [state[f"{tower}layers.{layer}.attn.{n}_proj.{kind}"] for n in "qkv"]
            parts[:2] = [neighbours(part, heads) for part in parts[:2]]
            tensors[f"{block}wqkv.{kind}"] = torch.cat(parts)
            names = {"norm1": "norm0", "norm2": "norm1", "attn.proj": "wo"}
            names |= {"mlp.fc1": "mlp.fc0", "mlp.fc2": "mlp.fc1"}
            for ours, theirs in names.items():
                tensors[f"{block}{theirs}.{kind}"] = state[f"{tower}layers.{layer}.{ours}.{kind}"]
    for kind in ("weight", "bias"):
        names = {"pre_norm": "pre_norm", "in_proj": "proj.0", "out_proj": "proj.2"}
        for ours, theirs in names.items():
            tensors[f"mm_projector.{theirs}.{kind}"] = state[f"model.mm_projector.{ours}.{kind}"]
    _save(folder, tensors, published_config(model.config))
    return folder


def neighbours(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of half-split pairs -> rows of neighbouring pairs, head by head, one at a time."""
    width = tensor.shape[0] // heads
    order = [
        head * width + half * (width // 2) + pair
        for head in range(heads)
        for pair in range(width // 2)
        for half in (0, 1)
    ]
    return tensor[order]


def published_config(config: Any) -> dict[str, Any]:
    vision = {PUBLISHED.get(name, name): getattr(config.vision_config, name) for name in VISION}
    vision |= {
        "init_pos_emb_time": 4,
        "pos_emb_type": "divided_fixed",
        "merge_type": "sd2_tpool",
        "video_attn_type": "spatial_temporal",
        "mm_projector_type": "patchmerger",
        "mm_hidden_size": config.vision_config.hidden_size,
        "projector_hidden_act": "gelu",
        "projector_ln_eps": 1e-5,
        "text_hidden_size": config.text_config.hidden_size,
    }
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {
        "architectures": ["KimiK25ForConditionalGeneration"],
        "model_type": "kimi_k25",
        "text_config": {**values["text_config"], "model_type": "kimi_k2"},
        "vision_config": vision,
        "media_placeholder_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
    }


def text_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The text network as both layouts publish it: every expert a tensor of its own."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("lm_head"):
            found[f"language_model.{name}"] = tensor
        if not name.startswith("model.language_model."):
            continue
        plain = name.replace("model.language_model.", "language_model.model.")
        if plain.endswith("experts.gate_up_proj"):
            base = plain.removesuffix("gate_up_proj")
            for expert, both in enumerate(tensor):
                gate, up = both.chunk(2)
                found[f"{base}{expert}.gate_proj.weight"] = gate
                found[f"{base}{expert}.up_proj.weight"] = up
        elif plain.endswith("experts.down_proj"):
            base = plain.removesuffix("down_proj")
            found |= {f"{base}{e}.down_proj.weight": down for e, down in enumerate(tensor)}
        else:
            found[plain] = tensor
    return found


def _save(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    save_file(
        {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config["architectures"] = ["KimiK25ForConditionalGeneration"]
    (folder / "config.json").write_text(json.dumps(config, default=str))


TEMPLATE = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|media_pad|>{% elif part.type == 'text' %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endif %}{% endfor %}"
)


def save_with_tokenizer(folder: Path) -> Path:
    """A published checkpoint with a token a byte, placeholders, and a chat template."""
    backend = toy_tokenizer().backend
    assert backend is not None
    backend.add_special_tokens(["<|media_pad|>", "<|video_pad|>"])
    config = hf_config(text={"vocab_size": 264})
    config.image_token_id = backend.token_to_id("<|media_pad|>")
    config.video_token_id = backend.token_to_id("<|video_pad|>")
    save_published(hf_model(config, gain=1.7), folder)
    backend.save(str(folder / "tokenizer.json"))
    options = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return folder


class Holder(Layer):
    """A network of nothing but the tower."""

    def __init__(self, config: VisionConfig) -> None:
        self.vision = VisionTower(config)


def load_tower(
    folder: Path, config: VisionConfig, dtype: torch.dtype, backend: KernelBackend
) -> VisionTower:
    """The tower of a checkpoint; everything of the text is left out by a rule of the test."""
    source = SafetensorsSource.from_file(folder / "model.safetensors")
    holder = Holder(config)
    text = [name.removeprefix("model.") for name in source.infos if "language_model" in name]
    rules = WeightRules(rules=vision_rules(config), ignore=tuple(text))
    plan = plan_load(rules, source.infos, holder.parameter_shapes())
    on_gpu = backend.name == "triton" and torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    execute_load(plan, source, lambda n, t: holder.assign(n, t, backend), dtype, device=device)
    return holder.vision


def image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """[3, H, W] uint8, smooth enough to have structure."""
    generator = torch.Generator().manual_seed(seed * 1000 + height * 31 + width)
    coarse = torch.rand(1, 3, 4, 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0]
    noise = 0.1 * torch.rand(3, height, width, generator=generator)
    return ((fine + noise).clamp(0, 1) * 255).to(torch.uint8)
