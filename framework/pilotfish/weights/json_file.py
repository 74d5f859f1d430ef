"""Reading a JSON object from a checkpoint's directory, with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pilotfish.errors import CheckpointError
from pilotfish.weights.anew import get_again


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError when it cannot be read or is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path}: not UTF-8 text; wanted a JSON object: {get_again(path)}"
        ) from error
    try:
        value = json.loads(text, object_hook=_special_float)
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); {get_again(path)}") from error
    except RecursionError as error:
        raise CheckpointError(
            f"{path}: nests more deeply than can be read; wanted a JSON object: {get_again(path)}"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}; wanted a JSON object")
    return value


_FLOAT = "__float__"
_FLOATS = ("Infinity", "-Infinity", "NaN")


def _special_float(value: dict[str, Any]) -> Any:
    """transformers writes numbers that JSON does not have as {"__float__": "Infinity"}."""
    if value.keys() == {_FLOAT} and value[_FLOAT] in _FLOATS:
        return float(value[_FLOAT])
    return value
