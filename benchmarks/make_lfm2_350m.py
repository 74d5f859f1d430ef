"""Writes a random checkpoint of LFM2-350M's shape: `python benchmarks/make_lfm2_350m.py OUT_DIR`.

For timing where the real one is not at hand: the same tensors, shapes and dtype (bfloat16), random
values, no tokenizer. Prompts are token ids.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WIDTH, LAYERS, VOCAB, INNER = 1024, 16, 65536, 4608
HEADS, KV_HEADS, COLUMNS = 16, 8, 3
ATTENTION_LAYERS = (2, 5, 8, 10, 12, 14)

CONFIG: dict[str, Any] = {
    "architectures": ["Lfm2ForCausalLM"],
    "model_type": "lfm2",
    "dtype": "bfloat16",
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "full_attn_idxs": list(ATTENTION_LAYERS),
    "conv_L_cache": COLUMNS,
    "conv_bias": False,
    "block_ff_dim": 6656,
    "block_auto_adjust_ff_dim": True,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 256,
    "norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 128000,
    "tie_embedding": True,
    "bos_token_id": 1,
    "eos_token_id": 7,
    "pad_token_id": 0,
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor's name and shape."""
    kv_width = WIDTH // HEADS * KV_HEADS
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, WIDTH),
        "model.embedding_norm.weight": (WIDTH,),
    }
    for layer in range(LAYERS):
        own: dict[str, tuple[int, ...]] = {
            "operator_norm.weight": (WIDTH,),
            "ffn_norm.weight": (WIDTH,),
            "feed_forward.w1.weight": (INNER, WIDTH),
            "feed_forward.w3.weight": (INNER, WIDTH),
            "feed_forward.w2.weight": (WIDTH, INNER),
        }
        if layer in ATTENTION_LAYERS:
            own |= {
                "self_attn.q_proj.weight": (WIDTH, WIDTH),
                "self_attn.k_proj.weight": (kv_width, WIDTH),
                "self_attn.v_proj.weight": (kv_width, WIDTH),
                "self_attn.out_proj.weight": (WIDTH, WIDTH),
                "self_attn.q_layernorm.weight": (WIDTH // HEADS,),
                "self_attn.k_layernorm.weight": (WIDTH // HEADS,),
            }
        else:
            own |= {
                "conv.in_proj.weight": (3 * WIDTH, WIDTH),
                "conv.conv.weight": (WIDTH, 1, COLUMNS),
                "conv.out_proj.weight": (WIDTH, WIDTH),
            }
        found |= {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
    return found


def make_checkpoint(directory: Path, seed: int = 0) -> Path:
    """Writes config.json and model.safetensors (709 MB); returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes().items():
        values = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            values = 1 + 0.1 * values
        elif len(shape) == 3:
            values = values * 0.5
        else:
            values = values * shape[-1] ** -0.5
        tensors[name] = values.to(torch.bfloat16)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(CONFIG, indent=1))
    return directory


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    print(make_checkpoint(parser.parse_args().directory))
