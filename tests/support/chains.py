"""Tiny Llamas whose next token is a function of the last one, so that every text is known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

WIDTH, HEADS = 64, 2


def chain_checkpoint(
    folder: Path,
    size: int,
    follow: Mapping[int, int],
    default: int = 0,
    *,
    strength: float = 1.0,
    **config: object,
) -> Path:
    """Writes config and weights: at temperature 0 `t` is followed by `follow[t]`, or `default`.

    size: of the vocabulary. strength: of the head; at 0.1 little of it is left at temperature 1.
    The embedding is one-hot, every sublayer adds 0, the head maps.
    """
    width = -(-size // WIDTH) * WIDTH
    options = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": size,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "dtype": "float32",
        "eos_token_id": None,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(options))
    head = torch.zeros(size, width)
    for token in range(size):
        head[follow.get(token, default), token] = strength
    layer = "model.layers.0."
    zeros = {
        f"{layer}self_attn.q_proj.weight": (HEADS * 32, width),
        f"{layer}self_attn.k_proj.weight": (32, width),
        f"{layer}self_attn.v_proj.weight": (32, width),
        f"{layer}self_attn.o_proj.weight": (width, HEADS * 32),
        f"{layer}mlp.gate_proj.weight": (WIDTH, width),
        f"{layer}mlp.up_proj.weight": (WIDTH, width),
        f"{layer}mlp.down_proj.weight": (width, WIDTH),
    }
    norms = [f"{layer}input_layernorm", f"{layer}post_attention_layernorm", "model.norm"]
    tensors = {
        "model.embed_tokens.weight": torch.eye(size, width),
        "lm_head.weight": head,
        **{name: torch.zeros(shape) for name, shape in zeros.items()},
        **{f"{name}.weight": torch.ones(width) for name in norms},
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
