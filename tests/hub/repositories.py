"""What the tests put on a local hub: repositories of a tiny model in several formats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from hub.local_hub import LocalHub
from support.gguf_files import write_gguf

WEIGHTS = "model.safetensors"


def repository(hub: LocalHub, name: str, **files: Any) -> Path:
    """A repository of JSON files; `_` stands for a dot."""
    path = hub.folder / name
    path.mkdir(parents=True)
    for file, value in files.items():
        (path / file.replace("_json", ".json")).write_text(json.dumps(value))
    return path


def sharded(hub: LocalHub, tiny: Path) -> list[str]:
    """org/sharded, in two files -> their names."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(tiny / WEIGHTS)
    repo = hub.folder / "org/sharded"
    shutil.copytree(tiny, repo, ignore=shutil.ignore_patterns(WEIGHTS))
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weight_map = {name: files[i % 2] for i, name in enumerate(sorted(tensors))}
    for file in files:
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, repo / file)
    index = repo / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return files


def write_tokenizer(folder: Path, words: int = 20, **config: Any) -> None:
    """A vocabulary of whole words, w0 and so on."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {f"w{i}": i for i in range(words)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def gguf_of_a_model(path: Path, plain: Path) -> Path:
    """The tiny model as a GGUF file with a header of more than 8 KiB."""
    from safetensors.torch import load_file

    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
        "model.layers.": "blk.",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    config = json.loads((plain / "config.json").read_text())
    tensors = {}
    for whole, tensor in load_file(plain / WEIGHTS).items():
        name = whole
        for ours, theirs in sorted(names.items(), key=lambda item: -len(item[0])):
            name = name.replace(ours, theirs)
        tensors[name] = (tensor.float().numpy(), None)
    metadata = {
        "llama.context_length": 64,
        "llama.embedding_length": config["hidden_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": config["vocab_size"],
        "general.description": "x" * 8192,
    }
    return write_gguf(path, tensors, metadata, "llama")
