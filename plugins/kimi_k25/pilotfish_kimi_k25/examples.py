"""Tiny models for the conformance kit, in every layout on disk, and the oracle of Kimi's.

Knows: options as data, how transformers' files become the published ones. Does not know: how models
are tested.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pilotfish.testing import Examples
from pilotfish.weights.formats.safetensors import SINGLE_FILE
from pilotfish.weights.hf_config import CONFIG_FILE

if TYPE_CHECKING:
    import torch

    from pilotfish.testing import Oracle

TEXT: Mapping[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 20,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 24,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "rope_parameters": {
        **{"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0},
        **{"original_max_position_embeddings": 32, "beta_fast": 8.0, "beta_slow": 1.0},
        **{"mscale": 0.8, "mscale_all_dim": 1.2},
    },
}
"""Everything that the published models have."""

PLAIN: Mapping[str, Any] = {
    **TEXT,
    "q_lora_rank": None,
    "n_group": 1,
    "n_shared_experts": 2,
    "first_k_dense_replace": 0,
    "norm_topk_prob": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "rope_interleave": False,
    "attention_bias": True,
    "tie_word_embeddings": True,
}
"""What they do not have."""

VISION: Mapping[str, Any] = {
    **{"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "pos_emb_height": 4, "pos_emb_width": 4},
}

KIMI = {
    "text_config": {"model_type": "deepseek_v3", **TEXT},
    "vision_config": VISION,
    "projection_hidden_size": 32,
    **{"image_token_id": 94, "video_token_id": 95},
    "tie_word_embeddings": False,
}

TRANSFORMERS_NAME = "Kimi_K25ForConditionalGeneration"


def examples(architecture: str) -> Examples:
    """The tiny models of a name."""
    if architecture == "DeepseekV3ForCausalLM":
        return Examples(configs={"latent queries": TEXT, "plain queries": PLAIN})
    return Examples(configs={"whole": KIMI}, save=save_whole, oracle=kimi_oracle)


def save_whole(options: Mapping[str, Any], folder: Path) -> None:
    """A random checkpoint, vision tower included, in the published layout."""
    from safetensors.torch import save_file

    (architecture,) = options["architectures"]
    written = write_transformers_model(options, folder)
    tensors = {_published(name): tensor for name, tensor in written.items()}
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})
    _edit_config(folder, architectures=[architecture])


def write_transformers_model(options: Mapping[str, Any], folder: Path) -> dict[str, torch.Tensor]:
    """Writes a random, whole model of transformers' class; returns the file's tensors."""
    import torch
    import transformers
    from safetensors.torch import load_file

    from pilotfish.testing.checkpoints import randomize
    from pilotfish.testing.quiet import quiet

    given = {**options, "architectures": [TRANSFORMERS_NAME]}
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = transformers.Kimi_K25Config(**given)
        model = transformers.Kimi_K25ForConditionalGeneration(config).eval()
        randomize(model.state_dict())
        model.save_pretrained(folder)
    tensors: dict[str, torch.Tensor] = load_file(folder / SINGLE_FILE)
    return tensors


def kimi_oracle(folder: Path) -> Oracle:
    """transformers' model, which reads both layouts, under the name that it knows."""
    from pilotfish.testing.checkpoints import copy_with_config
    from pilotfish.testing.transformers_oracle import TransformersOracle

    class NamedOracle(TransformersOracle):
        """Its files live as long as it does."""

        def __init__(self, files: TemporaryDirectory[str]) -> None:
            self.files = files
            path = Path(files.name) / "named"
            super().__init__(copy_with_config(folder, path, {"architectures": [TRANSFORMERS_NAME]}))

    return NamedOracle(TemporaryDirectory(prefix="pilotfish-"))


def _published(name: str) -> str:
    """The published name of a tensor that transformers wrote."""
    if name.startswith("language_model."):
        return name.replace(".blocks.", ".layers.")
    name = name.replace("vision_tower.encoder.patch_embed.", "vision_tower.patch_embed.")
    return name.removeprefix("model.")


def _edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**config, **changes}))
