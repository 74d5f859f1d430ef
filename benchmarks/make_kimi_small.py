"""Writes a random checkpoint of Kimi K2.5's published layout, small enough for a CPU.

    python benchmarks/make_kimi_small.py FOLDER [--int4]

Eight layers of 512, of which the first is dense; 64 experts, six of a row and a shared one; latents
of 192 for queries and 128 for keys and values; a vision tower of two layers. An expert is as wide
beside the model as a published one (2048 of 7168), up to the next 32. About 135M parameters, in
bfloat16. With --int4 the experts are packed in groups of 32, as the published ones. Token 16380
stands for an image.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from pilotfish.kernels.int4 import quantize_int4
from pilotfish_kimi_k25.examples import save_whole

TEXT = {
    "model_type": "deepseek_v3",
    "vocab_size": 16384,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 192,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "n_routed_experts": 64,
    "num_experts_per_tok": 6,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 160,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.827,
    "max_position_embeddings": 8192,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_parameters": {
        **{"rope_type": "yarn", "rope_theta": 50000.0, "factor": 2.0},
        **{"original_max_position_embeddings": 4096, "beta_fast": 1.0, "beta_slow": 1.0},
        **{"mscale": 1.0, "mscale_all_dim": 1.0},
    },
}
VISION = {
    **{"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "pos_emb_height": 16, "pos_emb_width": 16},
}
PACKED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                **{"num_bits": 4, "type": "int", "symmetric": True},
                **{"strategy": "group", "group_size": 32, "dynamic": False},
            },
        }
    },
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*"],
}


def packed(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The experts' weights as their packed tensors; the others as they are."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if ".mlp.experts." not in name:
            found[name] = tensor
            continue
        numbers, scale = quantize_int4(tensor.float())
        found[f"{name}_packed"], found[f"{name}_scale"] = numbers, scale
        found[f"{name}_shape"] = torch.tensor(tensor.shape, dtype=torch.int32)
    return found


def main(folder: Path, int4: bool) -> None:
    """Writes the checkpoint."""
    folder.mkdir(parents=True)
    options = {
        "architectures": ["Kimi_K25ForConditionalGeneration"],
        "text_config": TEXT,
        "vision_config": VISION,
        "projection_hidden_size": VISION["hidden_size"],
        **{"image_token_id": 16380, "video_token_id": 16381},
        **{"vision_start_token_id": 16382, "vision_end_token_id": 16383},
        "tie_word_embeddings": False,
    }
    save_whole(options, folder)
    from safetensors.torch import load_file

    file = folder / "model.safetensors"
    tensors = {
        name: tensor if name.endswith("e_score_correction_bias") else tensor.bfloat16()
        for name, tensor in load_file(file).items()
    }
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = config["text_config"]["dtype"] = "bfloat16"
    if int4:
        tensors = packed(tensors)
        config["text_config"]["quantization_config"] = PACKED
    save_file(tensors, file, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--int4", action="store_true")
    given = parser.parse_args()
    main(given.folder, given.int4)
