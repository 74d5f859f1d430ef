"""The engine: requests, scheduler, runner and the loop that joins them, behind `LLM`.

Import-light: names are resolved on first use, since they need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfish.lazy import lazy_names

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

__getattr__ = lazy_names(__name__, _HOMES)
