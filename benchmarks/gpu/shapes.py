"""Checkpoints of random weights in real shapes, written as fast as the device makes numbers.

Knows: configs, tensor names and shapes of two families. Does not know: who reads them.
Widths: D model, I intermediate, V vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import save_file

SHARD_BYTES = 2 << 30


@attrs.frozen(kw_only=True)
class Shape:
    """One model: its config.json, and its tensors in the order they are written."""

    name: str
    config: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]
    tied: bool

    @property
    def num_bytes(self) -> int:
        """Of all weights in bfloat16."""
        return 2 * sum(math.prod(shape) for shape in self.tensors.values())

    @property
    def step_bytes(self) -> int:
        """Weights that one decode step must read: all but an embedding that is only looked up."""
        embedding = self.tensors["model.embed_tokens.weight"]
        return self.num_bytes - (0 if self.tied else 2 * math.prod(embedding))

    @property
    def token_flops(self) -> int:
        """Multiplications and additions of weights for one token, the head's left out."""
        matrices = [shape for name, shape in self.tensors.items() if "layers" in name]
        return 2 * sum(math.prod(shape) for shape in matrices if len(shape) == 2)

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token in bfloat16, all layers."""
        layers = self.config["full_attn_idxs"] if self.tied else range(self.num_layers)
        width = self.config["hidden_size"] // self.config["num_attention_heads"]
        return 2 * 2 * len(layers) * int(self.config["num_key_value_heads"]) * int(width)

    @property
    def num_layers(self) -> int:
        """Layers of any kind."""
        return int(self.config["num_hidden_layers"])


def llama(
    name: str, *, width: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int
) -> Shape:
    """The Llama 3.1 family."""
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": scaling,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    kv_width = width // heads * kv_heads
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, width)}
    for layer in range(layers):
        own: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (width,),
            "self_attn.q_proj.weight": (width, width),
            "self_attn.k_proj.weight": (kv_width, width),
            "self_attn.v_proj.weight": (kv_width, width),
            "self_attn.o_proj.weight": (width, width),
            "post_attention_layernorm.weight": (width,),
            "mlp.gate_proj.weight": (inner, width),
            "mlp.up_proj.weight": (inner, width),
            "mlp.down_proj.weight": (width, inner),
        }
        tensors |= {f"model.layers.{layer}.{key}": shape for key, shape in own.items()}
    tensors |= {"model.norm.weight": (width,), "lm_head.weight": (vocab, width)}
    return Shape(name=name, config=config, tensors=tensors, tied=False)


def lfm2(
    name: str,
    *,
    width: int,
    inner: int,
    attention: tuple[int, ...],
    layers: int,
    heads: int,
    kv_heads: int,
    vocab: int,
) -> Shape:
    """The LFM2 family; attention: which layers have it, the others have a convolution."""
    config = {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "dtype": "bfloat16",
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "full_attn_idxs": list(attention),
        "conv_L_cache": 3,
        "conv_bias": False,
        "block_ff_dim": inner,
        "block_auto_adjust_ff_dim": False,
        "norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 128000,
        "tie_embedding": True,
        "bos_token_id": 1,
        "eos_token_id": 7,
        "pad_token_id": 0,
    }
    head, kv_width = width // heads, width // heads * kv_heads
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, width),
        "model.embedding_norm.weight": (width,),
    }
    for layer in range(layers):
        own: dict[str, tuple[int, ...]] = {
            "operator_norm.weight": (width,),
            "ffn_norm.weight": (width,),
            "feed_forward.w1.weight": (inner, width),
            "feed_forward.w3.weight": (inner, width),
            "feed_forward.w2.weight": (width, inner),
        }
        if layer in attention:
            own |= {
                "self_attn.q_proj.weight": (width, width),
                "self_attn.k_proj.weight": (kv_width, width),
                "self_attn.v_proj.weight": (kv_width, width),
                "self_attn.out_proj.weight": (width, width),
                "self_attn.q_layernorm.weight": (head,),
                "self_attn.k_layernorm.weight": (head,),
            }
        else:
            own |= {
                "conv.in_proj.weight": (3 * width, width),
                "conv.conv.weight": (width, 1, 3),
                "conv.out_proj.weight": (width, width),
            }
        tensors |= {f"model.layers.{layer}.{key}": shape for key, shape in own.items()}
    return Shape(name=name, config=config, tensors=tensors, tied=True)


LLAMA = llama(
    "Llama-3.1-8B", width=4096, inner=14336, layers=32, heads=32, kv_heads=8, vocab=128256
)
LFM2 = lfm2(
    "LFM2-1.2B",
    width=2048,
    inner=8192,
    attention=(2, 5, 8, 10, 12, 14),
    layers=16,
    heads=32,
    kv_heads=8,
    vocab=65536,
)
TINY_LLAMA = llama("toy llama", width=64, inner=96, layers=2, heads=4, kv_heads=2, vocab=300)
TINY_LFM2 = lfm2(
    "toy lfm2", width=64, inner=96, attention=(1,), layers=2, heads=4, kv_heads=2, vocab=300
)


def write_checkpoint(shape: Shape, directory: Path, device: str) -> Path:
    """Random bfloat16 weights in shards; config.json comes last and says that all are there."""
    if (directory / "config.json").exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    places: dict[str, str] = {}
    for number, shard in enumerate(_shards(shape, device)):
        file = f"model-{number:05d}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": shape.num_bytes}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(shape.config, indent=1))
    return directory


def _shards(shape: Shape, device: str) -> Iterator[dict[str, torch.Tensor]]:
    generator = torch.Generator(device).manual_seed(0)
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, dims in shape.tensors.items():
        values = torch.randn(dims, generator=generator, device=device, dtype=torch.bfloat16)
        if len(dims) == 1:
            values = 1 + 0.1 * values
        else:
            # A product of a row of unit size with such a weight has unit size again.
            values *= 0.5 if len(dims) == 3 else dims[-1] ** -0.5
        shard[name] = values.cpu()
        size += shard[name].nbytes
        if size >= SHARD_BYTES:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard
