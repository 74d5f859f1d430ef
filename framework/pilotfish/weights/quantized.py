"""Signs that a checkpoint's weights are quantized: files beside its config, names of its tensors.

Knows: what quantizers leave behind. Does not know: how any of it is unpacked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pilotfish.config.quantization import OPTION
from pilotfish.weights.json_file import read_json_object

MODELOPT_FILE = "hf_quant_config.json"
"""ModelOpt's: older files have it beside a config that says nothing."""
_OTHER_NAMES = {"quantization": "MLX", "compression_config": "compressed-tensors"}
"""Options of older files that mean what `quantization_config` means, and who writes them."""

_SCALED, _ALSO_SCALES = "GPTQ or AWQ", "MLX"
_MAKERS: tuple[tuple[str, str], ...] = (
    (r"qweight|qzeros|g_idx", _SCALED),
    (r"weight_packed|weight_shape", "compressed-tensors, in packed integers"),
    (r"weight\.(absmax|quant_map|nested_\w+|quant_state\.\w+)|SCB", "bitsandbytes"),
    (r"weight_scale_inv", "8-bit floats in blocks"),
    (r"weight_scale_2|weight_scale|input_scale|[kv]_scale", "ModelOpt or compressed-tensors"),
    (r"scales|biases", _ALSO_SCALES),
)
"""Ends of tensors' names -> who writes them; the first that fits."""


def with_quantization(values: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """A config's values, with what other places say of quantization as its `quantization_config`.

    Raises CheckpointError when ModelOpt's file cannot be read.
    """
    found = dict(values)
    if found.get(OPTION):
        return found
    for name, maker in _OTHER_NAMES.items():
        options = found.get(name)
        if isinstance(options, Mapping) and options:
            found[OPTION] = {"quant_method": maker, **options}
            return found
    file = directory / MODELOPT_FILE
    options = read_json_object(file).get("quantization") if file.is_file() else None
    if isinstance(options, Mapping) and options.get("quant_algo"):
        found[OPTION] = {"quant_method": "modelopt", "quant_algo": options["quant_algo"]}
    return found


def quantizers_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Tensors that only quantized checkpoints have: who writes them -> their names."""
    found: dict[str, list[str]] = {}
    for name in names:
        fitting = (maker for ends, maker in _MAKERS if re.search(rf"(^|\.)({ends})$", name))
        if (maker := next(fitting, None)) is not None:
            found.setdefault(maker, []).append(name)
    if _SCALED in found and _ALSO_SCALES in found:  # both have tensors called so
        found[_SCALED] += found.pop(_ALSO_SCALES)
    return found
