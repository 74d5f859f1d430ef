"""The engine: requests, scheduler, runner and the loop that joins them, behind `LLM`.

Import-light: names are resolved on first use, since they need torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pilotfish.engine.llm import LLM
    from pilotfish.engine.outputs import Delta, RequestOutput, Timing
    from pilotfish.engine.prompt import MultimodalPrompt

_HOMES = {
    "Delta": "outputs",
    "LLM": "llm",
    "MultimodalPrompt": "prompt",
    "RequestOutput": "outputs",
    "Timing": "outputs",
}

__all__ = ["Delta", "LLM", "MultimodalPrompt", "RequestOutput", "Timing"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
