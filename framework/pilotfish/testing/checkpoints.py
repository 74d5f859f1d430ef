"""Tiny checkpoints: random ones of any architecture, and changed copies of them.

Knows: config dicts, transformers' model classes, files. Does not know: what is tested with them.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pilotfish.errors import ConfigError
from pilotfish.plugin_specs import resolve
from pilotfish.testing.examples import SMALL, Examples
from pilotfish.weights.hf_config import CONFIG_FILE
from pilotfish.weights.safetensors import SINGLE_FILE

if TYPE_CHECKING:
    import torch

    from pilotfish.registry import Registry

_WEIGHT_SCALE = 1.4
"""Random weights are this over the root of their row length: streams neither fade nor blow up."""


def examples_of(architecture: str, registry: Registry) -> Examples:
    """What the architecture's plugin says of it; one plain example where it says nothing.

    Raises RouteError for an architecture that no plugin serves, PluginError for a reference that
    leads nowhere.
    """
    route = registry.route(architecture)
    if route.architecture.examples is None:
        return Examples()
    examples: Examples = resolve(route.architecture.examples, route.plugin)(architecture)
    return examples


def tiny_config(
    architecture: str, options: Mapping[str, Any], sizes: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """A whole example: `SMALL` with the options over it, at the depth where they belong.

    sizes: over both.
    """
    found = {**SMALL, **copy.deepcopy(dict(options)), "architectures": [architecture]}
    if "text_config" in found:
        found["text_config"] = {**SMALL, **found["text_config"], **sizes}
        return found
    return {**found, **sizes}


def save_tiny(
    architecture: str,
    name: str,
    folder: Path,
    registry: Registry,
    sizes: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Writes the example `name` of an architecture into a folder of its own; returns that.

    sizes: options over the example's own. Raises ConfigError for an architecture that neither its
    plugin nor transformers can write.
    """
    examples = examples_of(architecture, registry)
    path = folder / f"{architecture}-{name}"
    path.mkdir(parents=True)
    options = tiny_config(architecture, examples.configs[name], sizes)
    (examples.save or save_with_transformers)(options, path)
    return path


def with_more_heads(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Wide sizes with heads as wide as `SMALL`'s, for options that depend on a head's width."""
    heads = sizes["hidden_size"] // (SMALL["hidden_size"] // SMALL["num_attention_heads"])
    return {**sizes, "num_attention_heads": heads, "num_key_value_heads": heads // 2}


def save_with_transformers(options: Mapping[str, Any], folder: Path) -> None:
    """A random model of transformers' class, float32; norms and biases are random too."""
    import torch
    import transformers

    from pilotfish.testing.oracle import quiet

    (architecture,) = options["architectures"]
    model_class = getattr(transformers, architecture, None)
    if model_class is None:
        raise ConfigError(
            f"transformers has no {architecture}, so no tiny checkpoint can be made; give the "
            "spec's examples a `save` and an `oracle`"
        )
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            config = model_class.config_class(**options)
        except Exception as error:  # each refuses in a way of its own
            raise ConfigError(
                f"the config of {architecture} refuses its options: {error}"
            ) from error
        model = model_class(config).eval()
        randomize(model.state_dict())
        model.save_pretrained(folder)


def randomize(tensors: Mapping[str, torch.Tensor]) -> None:
    """Fills tensors in place, each in a scale of its own, so that a forgotten one shows."""
    import torch

    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape)
        if tensor.ndim > 1:
            tensor.copy_(noise * _WEIGHT_SCALE / tensor.shape[-1] ** 0.5)
        elif name.endswith("bias"):
            tensor.copy_(0.3 * noise)
        else:
            tensor.copy_(1 + 0.2 * noise)


def copy_with_config(source: Path, target: Path, changes: Mapping[str, Any]) -> Path:
    """The checkpoint with other options and the same weights (links to them)."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.name != CONFIG_FILE:
            os.symlink(file.resolve(), target / file.name)
    config = json.loads((source / CONFIG_FILE).read_text())
    (target / CONFIG_FILE).write_text(json.dumps({**config, **changes}))
    return target


def copy_with_weights(
    source: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], None]
) -> Path:
    """The checkpoint with changed tensors. change: gets name -> tensor, to be edited in place."""
    from safetensors.torch import load_file, save_file

    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.name != SINGLE_FILE:
            os.symlink(file.resolve(), target / file.name)
    tensors = load_file(source / SINGLE_FILE)
    change(tensors)
    save_file(tensors, target / SINGLE_FILE, metadata={"format": "pt"})
    return target
