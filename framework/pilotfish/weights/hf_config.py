"""A Hugging Face config: attribute access to config.json, with the defaults of its model type.

Knows: transformers' config classes and how to do without one. Does not know: what options mean.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pilotfish.config.checks import is_int
from pilotfish.errors import CheckpointError, ConfigError
from pilotfish.weights.config_values import ROPE_OPTIONS, check_values
from pilotfish.weights.json_file import read_json_object
from pilotfish.weights.quantized import with_quantization

CONFIG_FILE = "config.json"


class _Section(dict[str, Any]):
    """A nested object: a dict whose keys can also be read as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the config section has no {name!r}") from None


class PlainConfig:
    """The values of a config as they stand in the file, for a model type without a class.

    Values are read as attributes; objects inside are dicts with attribute access. A value that is
    not in the file is no attribute: there are no defaults. Never changes.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(_wrap(copy.deepcopy(dict(values))))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the checkpoint's config has no {name!r}")

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"the config of a checkpoint never changes; {name} was set")

    def __repr__(self) -> str:
        return f"PlainConfig({self.__dict__!r})"

    def to_dict(self) -> dict[str, Any]:
        """A copy of the values as plain dicts and lists."""
        plain: dict[str, Any] = _unwrap(self.__dict__)
        return plain


def read_config(directory: Path) -> Any:
    """The config of a checkpoint's directory; code beside the weights is never run.

    A transformers config where transformers has a class for `model_type`, which fills in that
    type's defaults; else a PlainConfig. Raises CheckpointError when config.json is missing, is no
    JSON object, or has values that cannot be right or that its model type does not take.
    """
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{directory}: no {CONFIG_FILE}; wanted a directory with a config and safetensors"
            f"{what_else_it_is(directory)}"
        )
    values = with_quantization(read_json_object(path), directory)
    check_values(values, str(path))
    model_type = values.get("model_type")
    if not isinstance(model_type, str):
        return PlainConfig(values)
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return PlainConfig(values)
    return config_of_type(model_type, values, str(path))


def config_of_type(model_type: str, values: Mapping[str, Any], whose: str) -> Any:
    """The transformers config of a model type that it knows, with that type's defaults.

    What transformers warns of is left out: what we do not understand is refused where it is read.
    Raises CheckpointError, with `whose` in front, for values that the type does not take.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.utils import logging as hf_logging

    check_values(values, whose)
    values = _with_rope_names(values)
    kind = CONFIG_MAPPING[model_type]
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity(logging.CRITICAL)
    try:
        return kind.from_dict(_with_floats(kind, values))
    except (StrictDataclassError, *_REFUSALS) as error:
        raise CheckpointError(
            f"{whose}: transformers refuses it as a {model_type} config: "
            f"{_reason(error, values)}; check it against the published file"
        ) from error
    finally:
        hf_logging.set_verbosity(level)


_REFUSALS = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError),
    *(RuntimeError, ImportError),
)
"""What config classes raise for values they do not take; an alarm or a full memory is none."""


def _reason(error: Exception, values: Mapping[str, Any]) -> str:
    """What a config class said, on one line; the exception's name where that says nothing."""
    if isinstance(error, ZeroDivisionError):
        zeros = [name for name, value in values.items() if value == 0 and value is not False]
        return f"{' and '.join(zeros)} is 0; wanted a whole number >= 1"
    said = " ".join(str(error).split()).rstrip(".;")
    if not said or isinstance(error, LookupError | AttributeError):
        return f"{type(error).__name__} {said}".strip()
    return said


_ROPE_NAMES = {"su": "longrope"}
"""Early names of rope types, by which config classes do not know what stands beside them."""


def _with_rope_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the names that rope types have since; never changes them in place."""
    found = dict(values)
    for name in ROPE_OPTIONS:
        options = found.get(name)
        if isinstance(options, Mapping):
            found[name] = {
                key: _ROPE_NAMES.get(str(value), value) if key in ("type", "rope_type") else value
                for key, value in options.items()
            }
    return found


def _with_floats(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, whole numbers as floats where the class wants floats and would refuse them."""
    found = dict(values)
    for name, field in getattr(kind, "__dataclass_fields__", {}).items():
        if field.type in (float, "float", "float | None") and is_int(found.get(name)):
            try:
                found[name] = float(found[name])
            except OverflowError:  # it is refused as it stands
                continue
    return found


def config_of_section(options: Any, name: str, model_types: Sequence[str], whose: str) -> Any:
    """The section of a config that is a model's own config and leaves defaults out, with them.

    options: the whole config. name: of the section. model_types: that are read; the first where it
    names none. Raises ConfigError for another type and where there is no section, and as
    `config_of_type`.
    """
    section = getattr(options, name, None)
    if section is not None and not isinstance(section, Mapping):
        raise ConfigError(f"{whose} {name} is {section!r:.60}; wanted an object of options")
    if section is None:
        raise ConfigError(f"{whose} config has no {name}, which its format needs; it is incomplete")
    kind = section.get("model_type", model_types[0])
    if kind not in model_types:
        raise ConfigError(
            f"{whose} {name} has model_type {kind!r}; wanted {' or '.join(map(repr, model_types))}"
        )
    return config_of_type(kind, section, f"{whose} {name}")


def what_else_it_is(directory: Path) -> str:
    """What to do about a directory without a config, to be put behind a phrase; "" for no idea."""
    ggufs = sorted(path.name for path in directory.glob("*.gguf"))
    if ggufs:
        return f"; it has {', '.join(ggufs)}: give that file itself"
    if (directory / "adapter_config.json").is_file():
        base = read_json_object(directory / "adapter_config.json").get("base_model_name_or_path")
        return (
            f"; it is an adapter of {base or 'another model'}, which is not served by itself: "
            "merge it into that model and save the whole"
        )
    if (directory / "snapshots").is_dir():
        found = sorted(path.name for path in (directory / "snapshots").iterdir())
        return f"; it is the hub's cache: give one of snapshots/{', snapshots/'.join(found)}"
    if (directory / "params.json").is_file():
        return "; it has Mistral's own params.json: take the files of the transformers format"
    return ""


def _wrap(value: Any) -> Any:
    if isinstance(value, dict):
        return _Section((key, _wrap(item)) for key, item in value.items())
    if isinstance(value, list):
        return [_wrap(item) for item in value]
    return value


def _unwrap(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unwrap(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unwrap(item) for item in value]
    return value
