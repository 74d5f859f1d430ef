"""Writes a random DFlash draft for a target: its shape is real, what it proposes is not.

    python benchmarks/make_dflash_draft.py TARGET OUT_DIR [--layers 3] [--block-size 8]

For `pilotfish bench TARGET --speculative dflash --draft OUT_DIR --acceptance synthetic`, which
measures what a draft of this shape costs and would give at a known acceptance rate.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pilotfish import load_registry
from pilotfish.config.hf_options import text_config
from pilotfish.weights import open_checkpoint


def write(target: str, out: Path, num_layers: int = 3, block_size: int = 8) -> None:
    """Layers of the target's own widths, a tap for each, the last token as mask; bfloat16."""
    hf = text_config(open_checkpoint(target, load_registry()).model_config().huggingface_config)
    sizes = layer_sizes(hf)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).bfloat16()
        for name, shape in shapes(sizes, num_layers).items()
    }
    config = {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "num_hidden_layers": num_layers,
        "num_target_layers": hf.num_hidden_layers,
        "torch_dtype": "bfloat16",
        "vocab_size": hf.vocab_size,
        "max_position_embeddings": hf.max_position_embeddings,
        "rms_norm_eps": getattr(hf, "rms_norm_eps", None) or 1e-5,
        "block_size": block_size,
        "dflash_config": {"mask_token_id": hf.vocab_size - 1},
        **sizes,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=1))
    save_file(tensors, out / "model.safetensors")


def layer_sizes(hf: Any) -> dict[str, int]:
    """Of the draft's layers: the target's."""
    heads = hf.num_attention_heads
    return {
        "hidden_size": hf.hidden_size,
        "intermediate_size": hf.intermediate_size,
        "num_attention_heads": heads,
        "num_key_value_heads": hf.num_key_value_heads,
        "head_dim": getattr(hf, "head_dim", None) or hf.hidden_size // heads,
    }


def shapes(sizes: dict[str, int], num_layers: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of such a draft."""
    width, inner, head_dim = sizes["hidden_size"], sizes["intermediate_size"], sizes["head_dim"]
    q_rows, kv_rows = (
        sizes[name] * head_dim for name in ("num_attention_heads", "num_key_value_heads")
    )
    found: dict[str, tuple[int, ...]] = {
        "fc.weight": (width, num_layers * width),
        "hidden_norm.weight": (width,),
        "norm.weight": (width,),
    }
    for layer in range(num_layers):
        at = f"layers.{layer}"
        found |= {
            f"{at}.self_attn.q_proj.weight": (q_rows, width),
            f"{at}.self_attn.k_proj.weight": (kv_rows, width),
            f"{at}.self_attn.v_proj.weight": (kv_rows, width),
            f"{at}.self_attn.o_proj.weight": (width, q_rows),
            f"{at}.self_attn.q_norm.weight": (head_dim,),
            f"{at}.self_attn.k_norm.weight": (head_dim,),
            f"{at}.mlp.gate_proj.weight": (inner, width),
            f"{at}.mlp.up_proj.weight": (inner, width),
            f"{at}.mlp.down_proj.weight": (width, inner),
            f"{at}.input_layernorm.weight": (width,),
            f"{at}.post_attention_layernorm.weight": (width,),
        }
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", metavar="TARGET", help="directory, .gguf file or 'demo'")
    parser.add_argument("out", metavar="OUT_DIR", type=Path)
    parser.add_argument("--layers", type=int, default=3, help="draft layers (default 3)")
    parser.add_argument("--block-size", type=int, default=8, help="anchor included (default 8)")
    arguments = parser.parse_args()
    write(arguments.target, arguments.out, arguments.layers, arguments.block_size)
    print(
        f"wrote {arguments.out}: {arguments.layers} random layers, blocks of "
        f"{arguments.block_size}; next: pilotfish generate {arguments.target} --draft "
        f"{arguments.out} --speculative dflash --prompt TEXT"
    )
