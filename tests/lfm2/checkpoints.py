"""Tiny random LFM2 checkpoints, and transformers' own answers about them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import transformers

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 96,
    "block_multiple_of": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "full_attn_idxs": [1, 3],
}

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "attention-first": {"full_attn_idxs": [0]},
    "attention-last": {"full_attn_idxs": [3]},
    "all-conv": {"full_attn_idxs": []},
    "all-attention": {"full_attn_idxs": None},
    "bias": {"conv_bias": True, "full_attn_idxs": [2]},
    "width-1": {"conv_L_cache": 1},
    "width-2-bias": {"conv_L_cache": 2, "conv_bias": True},
    "width-5": {"conv_L_cache": 5, "full_attn_idxs": [1]},
    "untied": {"tie_word_embeddings": False, "num_key_value_heads": 4},
    "plain-ffn": {"block_auto_adjust_ff_dim": False},
    "wide-ffn": {"block_ffn_dim_multiplier": 1.3, "norm_eps": 1e-3},
    "layer-types": {
        "layer_types": ["full_attention", "conv", "conv", "full_attention"],
        "full_attn_idxs": None,
        "num_key_value_heads": 1,
    },
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 500.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
}


def make_config(case: str) -> Any:
    """The transformers config of a case."""
    return transformers.Lfm2Config(**copy.deepcopy({**SMALL, **CASES[case]}))


def make_model(case: str, seed: int = 0) -> Any:
    """A random transformers model of a case, float32; norms and biases are random too."""
    torch.manual_seed(seed)
    model = transformers.Lfm2ForCausalLM(make_config(case)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
            elif name.endswith("conv.conv.weight"):
                parameter.normal_(0.0, 0.6)
            elif parameter.ndim == 1:
                parameter.normal_(1.0, 0.2)
    return model


def save(case: str, folder: Path) -> Path:
    """A checkpoint directory of a case."""
    path = folder / case
    if not path.exists():
        make_model(case).save_pretrained(path)
    return path


def _read(path: Path, dtype: torch.dtype, attention: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation=attention
    ).eval()


@cache
def reference(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' model of a checkpoint; read once."""
    return _read(path, dtype, "eager")


@cache
def exact(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The oracle: transformers in float64, norms included, with weights rounded to `dtype`."""
    model = _read(path, dtype, "sdpa").double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = MethodType(_rms_norm_f64, module)
    return model


def _rms_norm_f64(self: Any, x: torch.Tensor) -> torch.Tensor:
    mean = x.square().mean(-1, keepdim=True)
    return self.weight * x * torch.rsqrt(mean + self.variance_epsilon)


@torch.no_grad()
def logits(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """[T, V] float64: one full forward pass."""
    return model(torch.tensor([list(tokens)]), use_cache=False).logits[0].double()


@torch.no_grad()
def generate(model: Any, tokens: Sequence[int], count: int) -> list[int]:
    """transformers' greedy answer, through its own cache where it can make one."""
    if "full_attention" not in model.config.layer_types:  # its cache has no length then
        answer: list[int] = []
        for _ in range(count):
            answer.append(int(logits(model, [*tokens, *answer])[-1].argmax()))
        return answer
    ids = torch.tensor([list(tokens)])
    whole = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False
    )
    return list(whole[0, len(tokens) :].tolist())


def prompt(length: int, seed: int = 1) -> list[int]:
    """Random tokens of the tiny vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randint(0, SMALL["vocab_size"], (length,), generator=generator).tolist())
