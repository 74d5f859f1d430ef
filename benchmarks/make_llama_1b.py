"""Writes a random checkpoint of Llama-3.2-1B's shape: `python benchmarks/make_llama_1b.py OUT_DIR`.

For timing where the real one is not at hand: the same tensors, shapes and dtype (bfloat16), random
values, no tokenizer. Prompts are token ids. 2.5 GB.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WIDTH, LAYERS, VOCAB, INNER = 2048, 16, 128256, 8192
HEADS, KV_HEADS = 32, 8

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": WIDTH // HEADS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor's name and shape."""
    kv_width = WIDTH // HEADS * KV_HEADS
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    for layer in range(LAYERS):
        own: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (WIDTH,),
            "post_attention_layernorm.weight": (WIDTH,),
            "self_attn.q_proj.weight": (WIDTH, WIDTH),
            "self_attn.k_proj.weight": (kv_width, WIDTH),
            "self_attn.v_proj.weight": (kv_width, WIDTH),
            "self_attn.o_proj.weight": (WIDTH, WIDTH),
            "mlp.gate_proj.weight": (INNER, WIDTH),
            "mlp.up_proj.weight": (INNER, WIDTH),
            "mlp.down_proj.weight": (WIDTH, INNER),
        }
        found |= {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
    return found


def main() -> None:
    """Writes config.json and model.safetensors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes().items():
        drawn = torch.empty(shape, dtype=torch.bfloat16)
        if len(shape) == 1:
            drawn.fill_(1)
        else:
            drawn.normal_(std=shape[1] ** -0.5, generator=generator)
        tensors[name] = drawn
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
