"""One mixture-of-experts layer beside transformers' block on the same numbers.

    python benchmarks/moe_layer.py [--threads N] [--width 512] [--expert-width 256] [--experts 64]

Several layers are run one after another, so that an expert's weights come from memory as they do in
a model. Medians of alternating rounds, milliseconds a layer; INT4's peer runs on the unpacked
numbers. Prints a table.
"""

from __future__ import annotations

import argparse
import types
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any, cast

import torch
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.int4 import dequantize_int4, quantize_int4
from pilotfish.layers.experts import ExpertFormat
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.moe import MixtureOfExperts
from pilotfish.layers.router import Routing

NUM_CHOSEN, NUM_LAYERS, ROUNDS = 6, 4, 7
ROW_MULTIPLE = 4
BACKEND = KernelBackend("torch")


def pair(options: Any, dtype: torch.dtype, is_int4: bool) -> tuple[MixtureOfExperts, Any]:
    """Our layer and transformers' block with the same random numbers."""
    width, inner, experts = options.width, options.expert_width, options.experts
    config = DeepseekV3Config(
        hidden_size=width,
        moe_intermediate_size=inner,
        n_routed_experts=experts,
        num_experts_per_tok=NUM_CHOSEN,
        n_group=1,
        topk_group=1,
        n_shared_experts=1,
    )
    config._experts_implementation = "eager"
    block = DeepseekV3MoE(config).requires_grad_(False)
    for parameter in block.parameters():
        parameter.data.normal_(0, 0.05)
    block.to(dtype)
    routing = Routing(
        num_experts=experts, num_chosen=NUM_CHOSEN, scale=config.routed_scaling_factor
    )
    group = 32 if is_int4 else None
    layer = MixtureOfExperts(
        width,
        inner,
        routing,
        dtype=dtype,
        shared_width=inner,
        format=ExpertFormat(gate_up=group, down=group),
    )
    shared = block.shared_experts
    halves = (shared.gate_proj.weight, shared.up_proj.weight)
    layer.assign("router.weight", block.gate.weight.float(), BACKEND)
    layer.assign("router.bias", block.gate.e_score_correction_bias.float(), BACKEND)
    layer.assign("shared.gate_up.weight", torch.cat(halves), BACKEND)
    layer.assign("shared.down.weight", shared.down_proj.weight.clone(), BACKEND)
    parts = {"gate_up": block.experts.gate_up_proj, "down": block.experts.down_proj}
    for expert in range(experts):
        for part, weights in parts.items():
            name = f"experts.{expert}.{part}"
            if not is_int4:
                layer.assign(name, weights[expert].clone(), BACKEND)
                continue
            packed, scale = quantize_int4(weights[expert])
            weights[expert] = dequantize_int4(packed, scale, dtype)
            layer.assign(f"{name}_packed", packed, BACKEND)
            layer.assign(f"{name}_scale", scale, BACKEND)
    return layer, block


def seconds(call: Callable[[], object], times: int) -> float:
    start = perf_counter()
    for _ in range(times):
        call()
    return (perf_counter() - start) / times


def compare(pairs: list[tuple[MixtureOfExperts, Any]], num_rows: int, x: torch.Tensor) -> str:
    run = cast(
        ForwardPass,
        types.SimpleNamespace(backend=BACKEND, row_multiple=ROW_MULTIPLE, num_rows=num_rows),
    )
    padded = torch.nn.functional.pad(x, (0, 0, 0, -num_rows % ROW_MULTIPLE))

    def ours() -> None:
        for layer, _ in pairs:
            layer(padded, run)

    def theirs() -> None:
        for _, block in pairs:
            block(x.unsqueeze(0))

    times = max(1, 20 // num_rows)
    ours(), theirs()
    both = [(seconds(ours, times), seconds(theirs, times)) for _ in range(ROUNDS)]
    mine, other = (1000 * median(column) / len(pairs) for column in zip(*both, strict=True))
    return f"{mine:.2f} | {other:.2f} | {other / mine:.2f}"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--expert-width", type=int, default=256)
    parser.add_argument("--experts", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| dtype | experts | rows | ours ms | transformers ms | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for dtype in (torch.bfloat16, torch.float32):
        for is_int4 in (False, True):
            torch.manual_seed(0)
            pairs = [pair(options, dtype, is_int4) for _ in range(NUM_LAYERS)]
            for num_rows in (1, 8, 512):
                x = torch.randn(num_rows, options.width).to(dtype)
                form = "INT4" if is_int4 else "plain"
                name = str(dtype).removeprefix("torch.")
                print(f"| {name} | {form} | {num_rows} | {compare(pairs, num_rows, x)} |")


if __name__ == "__main__":
    main()
