"""Tiny random checkpoints of every family, and transformers' own answers about them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import transformers

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}

LONG = {
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.5, 2.0, 3.0, 4.0, 5.0, 6.0],
}
MULTIPLIERS = {
    "attention_multiplier": 0.4,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.6,
    "logits_scaling": 1.7,
}
WINDOWS = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}


def rope(rope_type: str, **options: Any) -> dict[str, Any]:
    """A config's rope options."""
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 500.0, **options}}


LLAMA3 = rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=16)
DYNAMIC = {**rope("dynamic", factor=4.0), "max_position_embeddings": 16}
LONGROPE = rope("longrope", original_max_position_embeddings=16, **LONG)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("Llama", {"head_dim": 16, "num_key_value_heads": 1}),
    "llama-linear": ("Llama", rope("linear", factor=3.0)),
    "llama-dynamic": ("Llama", DYNAMIC),
    "llama-yarn": ("Llama", YARN),
    "llama-yarn-options": (
        "Llama",
        rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=16,
            beta_fast=2.0,
            beta_slow=0.05,
            mscale=0.7,
            mscale_all_dim=0.5,
            truncate=False,
        ),
    ),
    "llama-llama3": ("Llama", LLAMA3),
    "llama-longrope": ("Llama", LONGROPE),
    "mistral": ("Mistral", {"sliding_window": 5}),
    "mistral-whole": ("Mistral", {"sliding_window": None, "head_dim": 20}),
    "granite": ("Granite", MULTIPLIERS),
    "granite-biases": (
        "Granite",
        {**MULTIPLIERS, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "olmo": ("Olmo", {"clip_qkv": 0.8}),
    "olmo-plain": ("Olmo", {"clip_qkv": None, "tie_word_embeddings": True, "attention_bias": True}),
    "phi3": ("Phi3", {"original_max_position_embeddings": 128}),
    "phi3-longrope": ("Phi3", {**LONGROPE, "original_max_position_embeddings": 16}),
    "phi3-partial": (
        "Phi3",
        {
            **rope("default", partial_rotary_factor=0.5),
            "sliding_window": 6,
            "original_max_position_embeddings": 128,
        },
    ),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-windows": ("Qwen2", WINDOWS),
    "qwen2-dynamic": ("Qwen2", DYNAMIC),
    "qwen3": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
    "qwen3-windows": ("Qwen3", {"head_dim": 10, **WINDOWS}),
    "qwen3-yarn": ("Qwen3", {"head_dim": 16, **YARN}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4, "no_rope_layer_interval": 2}),
    "smollm3-windows": (
        "SmolLM3",
        {
            "num_hidden_layers": 3,
            "no_rope_layers": [1, 0, 1],
            "use_sliding_window": True,
            "sliding_window": 5,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
        },
    ),
}


def make_config(case: str) -> Any:
    """The transformers config of a case."""
    family, options = CASES[case]
    return getattr(transformers, f"{family}Config")(**copy.deepcopy({**SMALL, **options}))


def make_model(case: str, seed: int = 0) -> Any:
    """A random transformers model of a case, float32; norms and biases are random too."""
    torch.manual_seed(seed)
    config = make_config(case)
    model = getattr(transformers, f"{CASES[case][0]}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
            elif parameter.ndim == 1:
                parameter.normal_(1.0, 0.2)
    return model


def save(case: str, folder: Path) -> Path:
    """A checkpoint directory of a case."""
    path = folder / case
    if not path.exists():
        make_model(case).save_pretrained(path)
    return path


def reference(path: Path, dtype: torch.dtype = torch.float32, attention: str = "eager") -> Any:
    """transformers' model of a checkpoint; fresh, since some rotary types remember lengths."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation=attention
    ).eval()


def exact(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The oracle: transformers in float64, norms included, with weights rounded to `dtype`."""
    model = reference(path, dtype, "sdpa").double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = MethodType(_rms_norm_f64, module)
        elif type(module).__name__.endswith("LayerNorm"):
            module.forward = MethodType(_layer_norm_f64, module)
    return model


def _rms_norm_f64(self: Any, x: torch.Tensor) -> torch.Tensor:
    mean = x.square().mean(-1, keepdim=True)
    return self.weight * x * torch.rsqrt(mean + self.variance_epsilon)


def _layer_norm_f64(self: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.layer_norm(x, self.normalized_shape, eps=1e-5)


@torch.no_grad()
def logits(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """[T, V] float64: one full forward pass."""
    return model(torch.tensor([list(tokens)])).logits[0].double()


@torch.no_grad()
def generate(model: Any, tokens: Sequence[int], count: int) -> list[int]:
    """transformers' greedy answer."""
    ids = torch.tensor([list(tokens)])
    answer = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False
    )
    return list(answer[0, len(tokens) :].tolist())


def prompt(length: int, seed: int = 1) -> list[int]:
    """Random tokens of the tiny vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randint(0, SMALL["vocab_size"], (length,), generator=generator).tolist())
