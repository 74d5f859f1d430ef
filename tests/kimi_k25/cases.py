"""Tiny checkpoints of the text network: shapes, options and layouts on disk.

Knows: what differs between cases. Does not know: what is tested with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pilotfish import load_registry
from pilotfish.kernels.int4 import dequantize_int4, quantize_int4
from pilotfish.testing import Subject
from pilotfish.testing.checkpoints import save_with_transformers, tiny_config
from pilotfish.testing.compare import want_near
from pilotfish.weights.formats.safetensors import SINGLE_FILE
from pilotfish_kimi_k25.examples import (
    KIMI,
    PLAIN,
    TEXT,
    TRANSFORMERS_NAME,
    save_whole,
    write_transformers_model,
)

Tensors = dict[str, torch.Tensor]

YARN = TEXT["rope_parameters"]

SHAPES: Mapping[str, Mapping[str, Any]] = {
    "latent queries, two groups, yarn": TEXT,
    "plain queries, biased, half-split, tied": PLAIN,
    "two dense layers, yarn without mscale": {
        **TEXT,
        **{"num_hidden_layers": 3, "first_k_dense_replace": 2, "n_group": 1},
        "rope_parameters": {k: v for k, v in YARN.items() if not k.startswith("mscale")},
    },
    "four groups of two, no dense layer, wide latent": {
        **TEXT,
        **{"n_group": 4, "topk_group": 2, "num_experts_per_tok": 2, "first_k_dense_replace": 0},
        **{"kv_lora_rank": 72, "q_lora_rank": 33, "norm_topk_prob": False},
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "dense layers only, latent queries, biased": {
        **TEXT,
        **{"first_k_dense_replace": 2, "attention_bias": True, "rope_interleave": False},
        **{"num_attention_heads": 3, "num_key_value_heads": 3, "hidden_size": 48},
    },
}
"""Of DeepseekV3ForCausalLM."""


def write_shape(name: str, folder: Path) -> Path:
    """A checkpoint as transformers' DeepseekV3ForCausalLM writes it."""
    path = folder / "".join(c if c.isalnum() else "-" for c in name)
    if not path.exists():
        path.mkdir(parents=True)
        save_with_transformers(tiny_config("DeepseekV3ForCausalLM", SHAPES[name]), path)
    return path


def kimi_options(**text: Any) -> dict[str, Any]:
    """Kimi's tiny options, with some of its text network's changed."""
    whole = {**KIMI, "text_config": {**KIMI["text_config"], **text}}
    return tiny_config(TRANSFORMERS_NAME, whole)


def write_kimi(layout: str, folder: Path, **text: Any) -> Path:
    """Kimi in a layout on disk: "published", "written" by transformers, or "modules", text only."""
    path = folder / f"kimi-{layout}"
    path.mkdir(parents=True)
    if layout == "published":
        save_whole(kimi_options(**text), path)
        return path
    tensors = write_transformers_model(kimi_options(**text), path)
    if layout == "modules":
        tensors = {
            name.replace("language_model.model.blocks.", "model.language_model.layers.")
            .replace("language_model.model.", "model.language_model.")
            .replace("language_model.lm_head.", "lm_head."): tensor
            for name, tensor in tensors.items()
            if name.startswith("language_model.")
        }
        save_file(tensors, path / SINGLE_FILE, metadata={"format": "pt"})
    return path


def subject(path: Path, dtypes: tuple[str, ...] = ("float32", "bfloat16")) -> Subject:
    """The checkpoint for the kit's promises."""
    return Subject(name=path.name, model=str(path), registry=load_registry(), dtypes=dtypes)


def check_long(found: torch.Tensor, exact: torch.Tensor, eager: torch.Tensor, dtype: str) -> None:
    """Logits of many rows, each [T, V].

    In bfloat16 a few of many rows stand where two experts score alike to the last bit, and go to
    another one than in float64, in eager torch as in ours; so there it is the median of the rows'
    errors that may be at most twice eager torch's.
    """
    if dtype == "float32":
        want_near(found, exact, eager, dtype)
        return
    ours, theirs = ((x.double() - exact).square().mean(1).sqrt().median() for x in (found, eager))
    assert 0 < ours <= 2 * theirs


def with_tensors(source: Path, target: Path, tensors: Tensors, **config: Any) -> Path:
    """A copy of a checkpoint's config with options changed, and these tensors."""
    target.mkdir(parents=True)
    options = {**json.loads((source / "config.json").read_text()), **config}
    (target / "config.json").write_text(json.dumps(options))
    save_file(tensors, target / SINGLE_FILE, metadata={"format": "pt"})
    return target


def tensors_of(path: Path) -> Tensors:
    """All of a checkpoint's tensors."""
    return load_file(path / SINGLE_FILE)


PACKED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                **{"num_bits": 4, "type": "int", "symmetric": True, "dynamic": False},
                **{"strategy": "group", "group_size": 32},
            },
        }
    },
}
"""A quantization_config as the published checkpoints have it."""


def packed(tensors: Tensors, *, parts: tuple[str, ...] = ("gate", "up", "down")) -> Tensors:
    """The experts' weights as their packed tensors."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        if ".mlp.experts." in name and name.split(".")[-2].removesuffix("_proj") in parts:
            numbers, scale = quantize_int4(tensor.float())
            found[f"{name}_packed"], found[f"{name}_scale"] = numbers, scale
            found[f"{name}_shape"] = torch.tensor(tensor.shape, dtype=torch.int32)
        else:
            found[name] = tensor
    return found


def unpacked(tensors: Tensors) -> Tensors:
    """The same numbers as float32 weights."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith("_packed"):
            scale = tensors[name.replace("_packed", "_scale")]
            found[name.removesuffix("_packed")] = dequantize_int4(tensor, scale, torch.float32)
        elif not name.endswith(("_scale", "_shape")):
            found[name] = tensor
    return found
