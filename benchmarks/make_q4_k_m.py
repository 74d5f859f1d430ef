"""Writes a random Q4_K_M file, 1,024 wide: `python benchmarks/make_q4_k_m.py OUT.gguf`.

For timing blocks of 256, which the demo's width of 576 rules out. llama.cpp's own quantizer chooses
and packs them (pip install llama-cpp-python); the demo's file lends its tokenizer.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from pilotfish.weights.demo import find_demo

WIDTH, LAYERS, INNER, HEADS, KV_HEADS = 1024, 16, 2816, 16, 4


def write_plain(path: Path) -> None:
    """The model in float16, norms in float32."""
    demo = gguf.GGUFReader(find_demo())
    writer = gguf.GGUFWriter(path, "llama")
    for name, field in demo.fields.items():
        if name.startswith("tokenizer."):
            value = field.contents()
            if field.types[0] is gguf.GGUFValueType.ARRAY:
                writer.add_array(name, value)
            else:
                writer.add_key_value(name, value, field.types[0])
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(demo.fields["tokenizer.ggml.tokens"].contents()))
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        values = random.standard_normal(shape, np.float32) * WIDTH**-0.5
        writer.add_tensor(f"{name}.weight", values.astype(np.float16))

    add("token_embd", len(demo.fields["tokenizer.ggml.tokens"].contents()), WIDTH)
    for layer in range(LAYERS):
        kv_width = WIDTH // HEADS * KV_HEADS
        add(f"blk.{layer}.attn_q", WIDTH, WIDTH)
        add(f"blk.{layer}.attn_k", kv_width, WIDTH)
        add(f"blk.{layer}.attn_v", kv_width, WIDTH)
        add(f"blk.{layer}.attn_output", WIDTH, WIDTH)
        add(f"blk.{layer}.ffn_gate", INNER, WIDTH)
        add(f"blk.{layer}.ffn_up", INNER, WIDTH)
        add(f"blk.{layer}.ffn_down", WIDTH, INNER)
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(WIDTH, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "plain.gguf")
        write_plain(plain)
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
        code = llama_cpp.llama_model_quantize(os.fsencode(plain), os.fsencode(out), options)
    if code:
        raise SystemExit(f"llama.cpp's quantizer returned {code}; stderr says why")
    print(f"{out}: {out.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
