"""Checkpoints' tensors by the formula: GGUF files of any kinds of blocks, experts of four bits.

Knows: how blocks and words hold numbers. Does not know: what is computed with them.
Letters: O rows and K columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import gguf
import numpy as np
import numpy.typing as npt
import torch

from kernels.weight_cases import SCALES
from native.formula import by_formula, mixed, signed
from pilotfish.weights.int4 import GROUP_SIZE
from support.gguf_files import write_gguf

_HALVES = {
    **{"Q4_0": 2.0**-11, "Q4_1": 2.0**-11, "Q5_0": 2.0**-12, "Q5_1": 2.0**-12, "Q8_0": 2.0**-15},
    **{"Q4_K": 2.0**-16, "Q5_K": 2.0**-17, "Q6_K": 2.0**-18},
}
"""Unit of a block's halves: numbers are about a sixteenth."""


@attrs.frozen(kw_only=True)
class LlamaSizes:
    """Of a Llama in a GGUF file; is_tied: its head is the embedding."""

    width: int
    inner: int
    vocab: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    context: int
    is_tied: bool = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor -> (O, K), or (K,) of a norm."""
        width, inner = self.width, self.inner
        q, kv = self.heads * self.head, self.kv_heads * self.head
        found: dict[str, tuple[int, ...]] = {"token_embd": (self.vocab, width)}
        found |= {"output_norm": (width,)} | (
            {} if self.is_tied else {"output": (self.vocab, width)}
        )
        for layer in range(self.layers):
            at = f"blk.{layer}."
            found |= {at + name: (width,) for name in ("attn_norm", "ffn_norm")}
            found |= {at + "attn_q": (q, width), at + "attn_output": (width, q)}
            found |= {at + "attn_k": (kv, width), at + "attn_v": (kv, width)}
            found |= {at + "ffn_gate": (inner, width), at + "ffn_up": (inner, width)}
            found |= {at + "ffn_down": (width, inner)}
        return found

    def metadata(self) -> dict[str, Any]:
        """As the file says it."""
        return {
            "llama.embedding_length": self.width,
            "llama.feed_forward_length": self.inner,
            "llama.block_count": self.layers,
            "llama.context_length": self.context,
            "llama.vocab_size": self.vocab,
            "llama.attention.head_count": self.heads,
            "llama.attention.head_count_kv": self.kv_heads,
            "llama.attention.key_length": self.head,
            "llama.attention.value_length": self.head,
            "llama.rope.dimension_count": self.head,
            "llama.attention.layer_norm_rms_epsilon": 2.0**-17,
        }


def write_llama(
    path: Path, sizes: LlamaSizes, kind_of: Callable[[str, int], str], seed: str = ""
) -> Path:
    """kind_of: a matrix's name and K -> F32, F16, BF16 or a kind of blocks. Norms are float32."""
    tensors: dict[str, tuple[npt.NDArray[Any], gguf.GGMLQuantizationType | None]] = {}
    for name, shape in sizes.shapes().items():
        kind = "F32" if len(shape) == 1 else kind_of(name, shape[1])
        tensors[f"{name}.weight"] = _stored(seed + name, shape, kind)
    return write_gguf(path, tensors, sizes.metadata(), "llama")


def _stored(
    name: str, shape: Sequence[int], kind: str
) -> tuple[npt.NDArray[Any], gguf.GGMLQuantizationType | None]:
    if kind in _HALVES:
        return _blocks(name, shape, kind), gguf.GGMLQuantizationType[kind]
    numbers = by_formula(name, shape)
    if kind == "BF16":
        return numbers.bfloat16().view(torch.uint8).numpy(), gguf.GGMLQuantizationType.BF16
    return (numbers.half() if kind == "F16" else numbers).numpy(), None


def _blocks(name: str, shape: Sequence[int], kind: str) -> npt.NDArray[np.uint8]:
    """[O, bytes]: any bits, but for each block's halves, which are small."""
    columns, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    count = shape[0] * shape[1] // columns
    blocks = (mixed(name, count * num_bytes) >> np.uint32(8)).astype(np.uint8)
    blocks = blocks.reshape(count, num_bytes)
    start, halves = SCALES[kind.lower()]
    scales = signed(f"{name} halves", count * halves, 31) * _HALVES[kind]
    as_bytes = scales.astype(np.float16).view(np.uint8).reshape(count, -1)
    blocks[:, start : start + 2 * halves] = as_bytes
    return blocks.reshape(shape[0], -1)


def packed_experts(tensors: Mapping[str, torch.Tensor], seed: str = "") -> dict[str, torch.Tensor]:
    """A checkpoint's tensors; those of experts as words of eight numbers, and their scales."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if ".mlp.experts." not in name:
            found[name] = tensor
            continue
        rows, columns = tensor.shape
        words = mixed(seed + name, rows * columns // 8).view(np.int32).reshape(rows, -1)
        scales = 1 + signed(seed + name, rows * columns // GROUP_SIZE, 31) * 2.0**-7
        found[f"{name}_packed"] = torch.from_numpy(words)
        found[f"{name}_scale"] = torch.from_numpy(scales / 32).view(rows, -1).bfloat16()
        found[f"{name}_shape"] = torch.tensor(tensor.shape, dtype=torch.int32)
    return found
