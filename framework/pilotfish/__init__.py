"""Pilotfish: model architectures and the drafters that swim ahead of them, as plugins.

The public names, nothing else. They are resolved on first use: importing this package imports
no torch.
"""

from __future__ import annotations

from importlib import import_module
from sys import _getframe
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pilotfish.config import (
        CacheConfig,
        ModelConfig,
        PipelineConfig,
        RuntimeConfig,
        SamplingParams,
        SpeculativeConfig,
    )
    from pilotfish.engine import LLM, MultimodalPrompt, RequestOutput
    from pilotfish.errors import PilotfishError, UserError
    from pilotfish.hookspecs import hookimpl
    from pilotfish.plugins import load_registry
    from pilotfish.registry import ArchitectureSpec, Registry, Route, SpeculatorSpec

__version__ = "0.1.0"

_HOMES = {
    "ArchitectureSpec": "registry",
    "CacheConfig": "config",
    "LLM": "engine",
    "ModelConfig": "config",
    "MultimodalPrompt": "engine",
    "PilotfishError": "errors",
    "PipelineConfig": "config",
    "Registry": "registry",
    "RequestOutput": "engine",
    "Route": "registry",
    "RuntimeConfig": "config",
    "SamplingParams": "config",
    "SpeculativeConfig": "config",
    "SpeculatorSpec": "registry",
    "UserError": "errors",
    "hookimpl": "hookspecs",
    "load_registry": "plugins",
}

__all__ = [
    "ArchitectureSpec",
    "CacheConfig",
    "LLM",
    "ModelConfig",
    "MultimodalPrompt",
    "PilotfishError",
    "PipelineConfig",
    "Registry",
    "RequestOutput",
    "Route",
    "RuntimeConfig",
    "SamplingParams",
    "SpeculativeConfig",
    "SpeculatorSpec",
    "UserError",
    "__version__",
    "hookimpl",
    "load_registry",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise _unknown(name, is_imported=_getframe(1).f_code.co_name == "_handle_fromlist")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def _unknown(name: str, *, is_imported: bool) -> Exception:
    """is_imported: by `from pilotfish import name`, which drops the text of an AttributeError."""
    if name[:1].isupper():
        from pilotfish.config.peer_attributes import OF_PACKAGE, said_of

        if name in OF_PACKAGE:
            return (ImportError if is_imported else AttributeError)(
                said_of(__name__, name, OF_PACKAGE)
            )
    return AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
