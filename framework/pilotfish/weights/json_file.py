"""Reading a JSON object from a checkpoint's directory, with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pilotfish.errors import CheckpointError


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError when it cannot be read or is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 text; wanted a JSON object") from error
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); get the file again") from error
    except RecursionError as error:
        raise CheckpointError(
            f"{path}: nests more deeply than can be read; wanted a JSON object: get the file again"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}; wanted a JSON object")
    return value
