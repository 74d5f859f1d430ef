"""Models of any architecture, widths and kinds of weights, drawn and written to a folder.

Knows: which options fit together. Does not know: what is computed with them. Numbers: formula.py's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from kimi_k25.cases import PACKED
from native.formula import by_formula
from native.formula_files import LlamaSizes, packed_experts, write_llama
from pilotfish.testing.checkpoints import tiny_config
from pilotfish.testing.quiet import quiet
from pilotfish.weights.formats.safetensors import SINGLE_FILE
from pilotfish.weights.stored_rows import PACKED_KINDS

CONTEXT = 640
DTYPES = ("float32", "bfloat16", "float16")
Options = Mapping[str, Any]


@attrs.frozen(kw_only=True)
class DrawnModel:
    """options: of a Hugging Face config. stored: dtype of the tensors in its file; "int4": its
    experts are packed. sizes, kinds: of a GGUF file instead, and what its matrices take in turn.
    """

    options: Options = attrs.field(factory=dict)
    stored: str = "float32"
    sizes: LlamaSizes | None = None
    kinds: tuple[str, ...] = ()

    @property
    def vocab(self) -> int:
        """Tokens that it knows."""
        return self.sizes.vocab if self.sizes else int(self.options["vocab_size"])

    def write(self, folder: Path) -> Path:
        """Its checkpoint."""
        if self.sizes:
            kinds = iter(self.kinds * 100)
            return write_llama(folder / "model.gguf", self.sizes, lambda _, k: _fit(next(kinds), k))
        tensors = self._tensors()
        options = dict(self.options)
        if self.stored == "int4":
            tensors = packed_experts(tensors)
            options["quantization_config"] = PACKED
        else:
            tensors = {name: t.to(getattr(torch, self.stored)) for name, t in tensors.items()}
        (folder / "config.json").write_text(json.dumps(options))
        save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})
        return folder

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Names and shapes are transformers'."""
        import transformers

        (architecture,) = self.options["architectures"]
        model_class = getattr(transformers, architecture)
        with quiet(), torch.device("meta"):
            shapes = model_class(model_class.config_class(**self.options)).state_dict()
        if self.options["tie_word_embeddings"]:
            del shapes["lm_head.weight"]
        named: dict[str, tuple[int, ...]] = {}
        for name, one in shapes.items():
            named |= _of_single_experts(name, tuple(one.shape))
        return {name: by_formula(name, shape) for name, shape in named.items()}


def _of_single_experts(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The names that files have where transformers has one tensor of all experts."""
    at, _, part = name.rpartition(".")
    if not at.endswith(".experts"):
        return {name: shape}
    halves = ("gate_proj", "up_proj") if part == "gate_up_proj" else (part,)
    rows = shape[1] // len(halves)
    return {
        f"{at}.{expert}.{half}.weight": (rows, shape[2])
        for expert in range(shape[0])
        for half in halves
    }


def _fit(kind: str, columns: int) -> str:
    """A kind of blocks where rows are whole blocks; else a smaller one, or plain numbers."""
    if kind in PACKED_KINDS and columns % (256 if kind.endswith("K") else 32):
        return "F16" if columns % 32 else "Q8_0"
    return kind


WIDTHS = st.one_of(st.integers(2, 90), st.sampled_from((16, 64, 128, 250, 513, 1090)))
"""Mostly no multiple of 16, nor of a block."""
HEADS = st.sampled_from(((1, 1), (2, 1), (3, 3), (4, 2), (5, 1), (6, 3), (8, 2)))
"""Query heads, and kv heads."""
HEAD_WIDTHS = st.sampled_from((2, 4, 6, 10, 16, 20, 34, 64))

_OF_FAMILY: Mapping[str, Callable[[st.DrawFn], Options]] = {
    "LlamaForCausalLM": lambda draw: {
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
    },
    "MistralForCausalLM": lambda draw: {"sliding_window": draw(st.sampled_from((None, 3, 40)))},
    "Qwen2ForCausalLM": lambda draw: {},
    "Qwen3ForCausalLM": lambda draw: {"attention_bias": draw(st.booleans())},
    "GraniteForCausalLM": lambda draw: {
        **{"attention_multiplier": 0.4, "embedding_multiplier": 3.0},
        **{"residual_multiplier": 0.6, "logits_scaling": 1.7},
    },
    "OlmoForCausalLM": lambda draw: {"clip_qkv": draw(st.sampled_from((None, 0.5)))},
    "Phi3ForCausalLM": lambda draw: {"original_max_position_embeddings": CONTEXT},
    "SmolLM3ForCausalLM": lambda draw: {"no_rope_layer_interval": 2},
    "Lfm2ForCausalLM": lambda draw: {
        "layer_types": draw(st.permutations(("conv", "full_attention"))),
        "conv_L_cache": draw(st.integers(1, 5)),
        "conv_bias": draw(st.booleans()),
        "block_auto_adjust_ff_dim": False,
    },
}
_SPLIT_EVENLY = {"Qwen2ForCausalLM", "GraniteForCausalLM", "OlmoForCausalLM", "Phi3ForCausalLM"} | {
    "SmolLM3ForCausalLM",
    "Lfm2ForCausalLM",
}
"""Families whose heads are an even share of the width."""


@st.composite
def _decoders(draw: st.DrawFn) -> DrawnModel:
    architecture = draw(st.sampled_from(list(_OF_FAMILY)))
    (heads, kv_heads), head = draw(HEADS), draw(HEAD_WIDTHS)
    own = _OF_FAMILY[architecture](draw)
    if architecture in _SPLIT_EVENLY:
        width = heads * head
    else:
        width, own = heads * -(-draw(WIDTHS) // heads), {**own, "head_dim": head}
    options = {
        **_shared(draw, architecture),
        **{"hidden_size": width, "intermediate_size": draw(WIDTHS)},
        **{"num_attention_heads": heads, "num_key_value_heads": kv_heads},
        **own,
    }
    return DrawnModel(options=tiny_config(architecture, options), stored=draw(_stored()))


@st.composite
def _latent(draw: st.DrawFn) -> DrawnModel:
    """DeepSeek-V3's: latent attention and experts, of plain numbers or of four bits."""
    stored = draw(st.sampled_from((*DTYPES, "int4", "int4")))
    blocks = st.sampled_from((32, 64, 96)) if stored == "int4" else WIDTHS
    groups = draw(st.sampled_from((1, 2)))
    heads = draw(st.integers(1, 4))
    options = {
        **_shared(draw, "DeepseekV3ForCausalLM"),
        **{"hidden_size": draw(blocks), "moe_intermediate_size": draw(blocks)},
        **{"intermediate_size": draw(WIDTHS), "first_k_dense_replace": draw(st.integers(0, 1))},
        **{"num_attention_heads": heads, "num_key_value_heads": heads},
        **{"q_lora_rank": draw(st.none() | st.integers(2, 40)), "kv_lora_rank": draw(WIDTHS)},
        **{"qk_nope_head_dim": draw(st.integers(1, 40)), "v_head_dim": draw(st.integers(1, 40))},
        **{"qk_rope_head_dim": draw(st.sampled_from((2, 8, 18)))},
        **{"n_routed_experts": groups * draw(st.integers(2, 6)), "n_group": groups},
        **{"topk_group": 1, "num_experts_per_tok": draw(st.integers(1, 2))},
        **{"n_shared_experts": draw(st.integers(1, 2)), "norm_topk_prob": draw(st.booleans())},
        **{"routed_scaling_factor": 1.5, "attention_bias": draw(st.booleans())},
        **{"rope_interleave": draw(st.booleans())},
    }
    return DrawnModel(options=tiny_config("DeepseekV3ForCausalLM", options), stored=stored)


@st.composite
def _of_blocks(draw: st.DrawFn) -> DrawnModel:
    """A Llama in a GGUF file, whose matrices are of several kinds."""
    (heads, kv_heads), head = draw(HEADS), draw(HEAD_WIDTHS)
    blocks = st.sampled_from((32, 96, 256, 256, 288)) | WIDTHS
    sizes = LlamaSizes(
        **{"width": draw(blocks), "inner": draw(blocks), "vocab": draw(st.integers(20, 150))},
        **{"layers": draw(st.integers(1, 2)), "heads": heads, "kv_heads": kv_heads, "head": head},
        **{"context": CONTEXT, "is_tied": draw(st.booleans())},
    )
    kinds = st.sampled_from((*PACKED_KINDS, "F32", "F16", "BF16"))
    return DrawnModel(sizes=sizes, kinds=tuple(draw(st.lists(kinds, min_size=1, max_size=5))))


def _shared(draw: st.DrawFn, architecture: str) -> Options:
    deep = architecture in ("SmolLM3ForCausalLM", "Lfm2ForCausalLM")
    return {
        "vocab_size": draw(st.integers(20, 150)),
        "num_hidden_layers": 2 if deep else draw(st.integers(1, 2)),
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": draw(st.booleans()),
    }


def _stored() -> st.SearchStrategy[str]:
    return st.sampled_from(DTYPES)


def models() -> st.SearchStrategy[DrawnModel]:
    """Any."""
    return st.one_of(_decoders(), _decoders(), _latent(), _of_blocks())
