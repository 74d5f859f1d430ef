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
from pilotfish.weights.formats.safetensors import SINGLE_FILE
from pilotfish.weights.hf_config import CONFIG_FILE

if TYPE_CHECKING:
    import torch

    from pilotfish.registry import Registry

WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size")
"""What options call the number of keys that a row sees."""
WINDOW = 9
"""Keys: two pages of the kit's and one, fewer than a long prompt of it has tokens."""
MANY_LAYERS = 48
"""Enough for every kind of layer that a class has by default to come."""
ORIGINAL, ORIGINAL_LENGTH = "original_max_position_embeddings", 16

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
    architecture: str,
    options: Mapping[str, Any],
    sizes: Mapping[str, Any] = MappingProxyType({}),
    base: Mapping[str, Any] = SMALL,
) -> dict[str, Any]:
    """A whole example: `base` with the options over it, at the depth where they belong.

    sizes: over both.
    """
    found = {**base, **copy.deepcopy(dict(options)), "architectures": [architecture]}
    if "text_config" in found:
        found["text_config"] = {**base, **found["text_config"], **sizes}
        return found
    return {**found, **sizes}


def save_tiny(
    architecture: str,
    name: str,
    folder: Path,
    registry: Registry,
    sizes: Mapping[str, Any] = MappingProxyType({}),
    *,
    base: Mapping[str, Any] = SMALL,
    shows_all: bool = False,
) -> Path:
    """Writes the example `name` of an architecture into a folder of its own; returns that.

    sizes: options over the example's own. base: under them. shows_all: with small options of the
    class's own (see `shrunk`) where the example says nothing: what the conformance kit tries.
    Raises ConfigError for an architecture that neither its plugin nor transformers can write, and
    for an example that the plugin does not have.
    """
    examples = examples_of(architecture, registry)
    if name not in examples.configs:
        raise ConfigError(
            f"{architecture} has no example {name!r}; wanted one of {', '.join(examples.configs)}"
        )
    path = folder / f"{architecture}-{name}"
    path.mkdir(parents=True)
    options = tiny_config(architecture, examples.configs[name], sizes, base)
    if examples.save is not None:
        examples.save(options, path)
    else:
        save_with_transformers(options, path, shows_all=shows_all)
    return path


def with_more_heads(sizes: Mapping[str, Any], example: Mapping[str, Any]) -> dict[str, Any]:
    """Wide sizes with heads as wide as the example's, for options that depend on a head's width.

    A little narrower, where heads of that width do not fill them. As they are where they name the
    width in words of their own.
    """
    if "hidden_size" not in sizes:
        return dict(sizes)
    small = {**SMALL, **example, **example.get("text_config", {})}
    width = small["hidden_size"] // small["num_attention_heads"]
    pairs = sizes["hidden_size"] // width // 2  # a head of keys serves two
    return {
        **sizes,
        "hidden_size": 2 * pairs * width,
        "num_attention_heads": 2 * pairs,
        "num_key_value_heads": pairs,
    }


def shrunk(config_class: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, and small ones for what the class has of its own accord and they do not say.

    Windows are shorter than the kit's texts, there is a layer of each kind, and rope is scaled
    beyond an original length that texts go past. What the options say is left alone.
    """
    found = dict(options)
    inner = found.get("text_config")
    if isinstance(inner, Mapping):
        classes = getattr(config_class, "sub_configs", {})
        if "text_config" in classes:
            found["text_config"] = shrunk(classes["text_config"], inner)
        return found
    usual = config_class(**options)
    for name in WINDOWS:
        if name not in options and isinstance(getattr(usual, name, None), int):
            found[name] = WINDOW
    if "layer_types" not in options and getattr(usual, "layer_types", None):
        deep = config_class(**{**options, "num_hidden_layers": MANY_LAYERS})
        kinds = list(dict.fromkeys(deep.layer_types))
        if not set(kinds) <= set(usual.layer_types):
            found |= {"num_hidden_layers": len(kinds), "layer_types": kinds}
    rope = getattr(usual, "rope_parameters", None)
    if "rope_parameters" not in options and isinstance(rope, Mapping):
        found["rope_parameters"] = _with_short_original(rope)
    return found


def _with_short_original(rope: Mapping[str, Any]) -> dict[str, Any]:
    made = {
        name: _with_short_original(value) if isinstance(value, Mapping) else value
        for name, value in rope.items()
    }
    if ORIGINAL in made:
        made[ORIGINAL] = ORIGINAL_LENGTH
    return made


def save_with_transformers(
    options: Mapping[str, Any], folder: Path, *, shows_all: bool = False
) -> None:
    """A random model of transformers' class, float32; norms and biases are random too.

    shows_all: see `save_tiny`.
    """
    import torch
    import transformers

    from pilotfish.testing.quiet import quiet

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
            config_class = model_class.config_class
            config = config_class(**(shrunk(config_class, options) if shows_all else options))
        except Exception as error:  # each refuses in a way of its own
            raise ConfigError(
                f"the config of {architecture} refuses its options: {error}; where it is about "
                "sizes, the spec's `examples` can say which fit (pilotfish.testing.Examples)"
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
        elif name.endswith("correction_bias"):
            tensor.copy_(0.2 * noise)  # of scores from 0 to 1: every expert can still be chosen
        elif name.endswith("bias"):
            tensor.copy_(0.3 * noise)
        else:
            tensor.copy_(1 + 0.2 * noise)


def copy_with_config(source: Path, target: Path, changes: Mapping[str, Any]) -> Path:
    """The checkpoint with other options and the same weights (links to them)."""
    _link_but(CONFIG_FILE, source, target)
    config = json.loads((source / CONFIG_FILE).read_text())
    (target / CONFIG_FILE).write_text(json.dumps({**config, **changes}))
    return target


def copy_with_weights(
    source: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], None]
) -> Path:
    """The checkpoint with changed tensors. change: gets name -> tensor, to be edited in place."""
    from safetensors.torch import load_file, save_file

    _link_but(SINGLE_FILE, source, target)
    tensors = load_file(source / SINGLE_FILE)
    change(tensors)
    save_file(tensors, target / SINGLE_FILE, metadata={"format": "pt"})
    return target


def _link_but(name: str, source: Path, target: Path) -> None:
    """Links to all files of a folder but one, in a new one."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.name != name:
            os.symlink(file.resolve(), target / file.name)
