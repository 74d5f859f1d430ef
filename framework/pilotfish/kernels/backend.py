"""KernelBackend: which implementation every kernel uses; chosen once at load, never silently."""

from __future__ import annotations

from typing import Literal

import attrs


@attrs.frozen
class KernelBackend:
    """name: "torch" or "triton". invariant: rows' bits independent of what is computed beside."""

    name: Literal["torch", "triton"] = "torch"
    invariant: bool = True

    @classmethod
    def choose(cls, name: str, device_type: str, arithmetic: str) -> KernelBackend:
        """name: "auto", "torch" or "triton"; auto is triton on a GPU and torch elsewhere."""
        if name == "auto":
            name = "triton" if device_type == "cuda" else "torch"
        assert name in ("torch", "triton"), name
        return cls("triton" if name == "triton" else "torch", arithmetic == "invariant")
