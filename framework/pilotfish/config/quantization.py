"""Quantized checkpoints as their configs describe them, and the words they are refused with.

Knows: the notes that quantizers leave in a config. Does not know: tensors, or who reads which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pilotfish.errors import ConfigError

OPTION = "quantization_config"

_ALGORITHMS = ("quant_algo", "format", "load_in_4bit", "load_in_8bit", "bits", "w_bit")
"""What says most, beside the method: the first that is there."""


def refuse_quantized(huggingface_config: Any, whose: str = "the checkpoint") -> None:
    """Raises ConfigError for a config with a `quantization_config`, saying by whom and how.

    For architectures that read none.
    """
    for config in (huggingface_config, getattr(huggingface_config, "text_config", None)):
        options = getattr(config, OPTION, None)
        if options:
            raise ConfigError(
                f"{whose} is quantized ({OPTION}: {described(options)}), which is not served; "
                "wanted weights of 16 or 32 bits: take the checkpoint that it was made of, or a "
                "GGUF file"
            )


def described(options: Any) -> str:
    """A `quantization_config` in a few words: the method, and how many bits, or which format."""
    if not isinstance(options, Mapping):
        options = options.to_dict() if hasattr(options, "to_dict") else {}
    method = str(options.get("quant_method") or "no method given")
    for name in _ALGORITHMS:
        value = options.get(name)
        if value not in (None, False):
            return f"{method}, {name} {value!r:.40}"
    return method
