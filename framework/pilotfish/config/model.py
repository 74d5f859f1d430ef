"""ModelConfig: one checkpoint, resolved: where it is, its format, its Hugging Face config."""

from __future__ import annotations

from typing import Any, Literal

import attrs

from pilotfish.config.checks import one_of, optional_int_at_least
from pilotfish.errors import ConfigError

WeightFormat = Literal["safetensors", "gguf"]


@attrs.frozen(kw_only=True)
class ModelConfig:
    """A resolved checkpoint; made by `pilotfish.weights.open_checkpoint`.

    model: what the user asked for (a path, a hub id, "demo").
    path: the directory or file on disk.
    weight_format: "safetensors" or "gguf".
    huggingface_config: attribute access to the checkpoint's config; never mutated.
    max_length: the user's limit on the context in tokens; None means the model's own.
    """

    model: str
    path: str
    weight_format: WeightFormat = attrs.field(validator=one_of(("safetensors", "gguf")))
    huggingface_config: Any = attrs.field(repr=False)
    max_length: int | None = attrs.field(default=None, validator=optional_int_at_least(1))

    @property
    def architecture(self) -> str:
        """The Hugging Face architecture name that the registry routes."""
        names = getattr(self.huggingface_config, "architectures", None)
        if not isinstance(names, list | tuple) or not names or not isinstance(names[0], str):
            raise ConfigError(
                f"{self.path}: architectures is {names!r} in the config; wanted a list with the "
                "architecture's name"
            )
        return names[0]
