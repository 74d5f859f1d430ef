"""Rules for the experts of a mixture: one set of tensors in the file for each expert.

Knows: how files name the parts of an expert, plain or INT4. Does not know: layers that hold them.
"""

from __future__ import annotations

from collections.abc import Mapping

from pilotfish.weights.int4 import PACKED, SCALE, SHAPE
from pilotfish.weights.rules import Rule

PARTS: Mapping[str, tuple[str, ...]] = {"gate_up": ("gate_proj", "up_proj"), "down": ("down_proj",)}
"""Part of an expert -> the file's tensors that make it, in the order of their rows."""


def expert_rules(
    parameter: str, file_name: str, *, parts: Mapping[str, tuple[str, ...]] = PARTS
) -> list[Rule]:
    """Rules for every expert of every layer, plain and INT4.

    parameter: where the layer `Experts` stands, "layers.{layer}.mlp.experts". file_name: the same
    in the file, "layers.{layer}.mlp.experts"; the expert's number follows in both.
    """
    rules: list[Rule] = []
    for part, names in parts.items():
        whole = f"{parameter}.{{expert}}.{part}"
        tensors = [f"{file_name}.{{expert}}.{name}" for name in names]
        rules += [
            Rule(whole, [f"{name}.weight" for name in tensors]),
            Rule(f"{whole}_packed", [f"{name}.{PACKED}" for name in tensors]),
            Rule(f"{whole}_scale", [f"{name}.{SCALE}" for name in tensors], dtype="stored"),
            Rule(f"{whole}_shape", [f"{name}.{SHAPE}" for name in tensors], combine="stack"),
        ]
    return rules
