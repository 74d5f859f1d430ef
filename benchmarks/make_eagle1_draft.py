"""Writes a random EAGLE-1 draft for a target: its shape is real, what it proposes is not.

    python benchmarks/make_eagle1_draft.py TARGET OUT_DIR

For `pilotfish bench TARGET --speculative eagle --draft OUT_DIR --acceptance synthetic`, which
measures what a draft of this shape costs and would give at a known acceptance rate.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from pilotfish import load_registry
from pilotfish.weights import open_checkpoint


def write(target: str, out: Path) -> None:
    """One decoder layer of the target's own widths, and fc [D, 2D]; bfloat16."""
    hf = open_checkpoint(target, load_registry()).model_config().huggingface_config
    width, inner, heads = hf.hidden_size, hf.intermediate_size, hf.num_attention_heads
    kv_heads = hf.num_key_value_heads
    head_dim = getattr(hf, "head_dim", None) or width // heads
    shapes = {
        "fc.weight": (width, 2 * width),
        "fc.bias": (width,),
        "layers.0.self_attn.q_proj.weight": (heads * head_dim, width),
        "layers.0.self_attn.k_proj.weight": (kv_heads * head_dim, width),
        "layers.0.self_attn.v_proj.weight": (kv_heads * head_dim, width),
        "layers.0.self_attn.o_proj.weight": (width, heads * head_dim),
        "layers.0.mlp.gate_proj.weight": (inner, width),
        "layers.0.mlp.up_proj.weight": (inner, width),
        "layers.0.mlp.down_proj.weight": (width, inner),
        "layers.0.post_attention_layernorm.weight": (width,),
    }
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).bfloat16()
        for name, shape in shapes.items()
    }
    config = {
        "architectures": ["EagleLlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "torch_dtype": "bfloat16",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": hf.vocab_size,
        "max_position_embeddings": hf.max_position_embeddings,
        "rms_norm_eps": hf.rms_norm_eps,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=1))
    save_file(tensors, out / "model.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", metavar="TARGET", help="directory, .gguf file or 'demo'")
    parser.add_argument("out", metavar="OUT_DIR", type=Path)
    arguments = parser.parse_args()
    write(arguments.target, arguments.out)
