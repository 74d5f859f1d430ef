"""Fetching a checkpoint from the Hugging Face hub. Knows: hub ids. Does not know: formats."""

from __future__ import annotations

import re
from pathlib import Path

from pilotfish.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TEXT_FILES = ("*.json", "*.jinja", "*.model", "*.txt")


def looks_like_hub_id(model: str) -> bool:
    """Whether it has the form organisation/name."""
    return _HUB_ID.fullmatch(model) is not None


def fetch_from_hub(model: str) -> Path:
    """Downloads what is not yet in the local cache: config, tokenizer, safetensors or, failing
    those, torch files. Raises CheckpointError, with the hub's own exception as its cause.
    """
    from huggingface_hub import snapshot_download

    try:
        path = Path(snapshot_download(model, allow_patterns=[*_TEXT_FILES, "*.safetensors"]))
        if not any(path.glob("*.safetensors")):
            snapshot_download(model, allow_patterns=["pytorch_model*.bin"])
    except Exception as error:  # network, permissions, cache, unknown id: all end here
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{model}: no such file or directory, and it cannot be fetched from the hub "
            f"({reason[0]}); check the name and the network, or give a path"
        ) from error
    return path
