"""Checkpoints on disk: opening them, reading tensors lazily, loading them strictly."""

from pilotfish.weights.checkpoint import Checkpoint, open_checkpoint
from pilotfish.weights.experts import expert_rules
from pilotfish.weights.formats.gguf import GGUFFile
from pilotfish.weights.formats.safetensors import SafetensorsSource
from pilotfish.weights.int4 import check_int4
from pilotfish.weights.load_plan import (
    LoadPlan,
    LoadStep,
    plan_load,
    tensors_read,
    without_ignored,
)
from pilotfish.weights.loading import execute_load
from pilotfish.weights.pretokenizer import (
    PreTokenizer,
    TiktokenRules,
    case_split,
    contraction_split,
)
from pilotfish.weights.rules import Piece, Rule, Transform, WeightRules, layer_rule
from pilotfish.weights.source import TensorInfo, WeightSource
from pilotfish.weights.stored_rows import StoredRows, stays_stored
from pilotfish.weights.transforms import drop_axis, unpermute_rope, unpermute_rope_rows

__all__ = [
    "Checkpoint",
    "GGUFFile",
    "LoadPlan",
    "LoadStep",
    "Piece",
    "PreTokenizer",
    "Rule",
    "SafetensorsSource",
    "StoredRows",
    "TensorInfo",
    "TiktokenRules",
    "Transform",
    "WeightRules",
    "WeightSource",
    "case_split",
    "check_int4",
    "contraction_split",
    "drop_axis",
    "execute_load",
    "expert_rules",
    "layer_rule",
    "open_checkpoint",
    "plan_load",
    "stays_stored",
    "tensors_read",
    "unpermute_rope",
    "unpermute_rope_rows",
    "without_ignored",
]
