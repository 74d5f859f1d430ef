"""State of requests: pages, the caches cut from them, and the lifecycle that joins them.

Import-light: names that need numpy or torch are resolved on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pilotfish.state.pages import PagePool
from pilotfish.state.prefix import PrefixIndex
from pilotfish.state.slots import SlotPool
from pilotfish.state.specs import (
    CacheParams,
    KVCacheParams,
    LatentCacheParams,
    PagedStateSpec,
    SlotStateSpec,
    StateSpec,
)

if TYPE_CHECKING:
    from pilotfish.state.attached import AttachedCache
    from pilotfish.state.embeddings import EmbeddingCache
    from pilotfish.state.inputs import KVCacheInputs, SlotInputs
    from pilotfish.state.manager import StateManager
    from pilotfish.state.memory import MemoryPlan, activation_bytes, available_bytes
    from pilotfish.state.paged import PagedCache

__all__ = [
    "AttachedCache",
    "CacheParams",
    "EmbeddingCache",
    "KVCacheInputs",
    "KVCacheParams",
    "LatentCacheParams",
    "MemoryPlan",
    "PagePool",
    "PagedCache",
    "PagedStateSpec",
    "PrefixIndex",
    "SlotInputs",
    "SlotPool",
    "SlotStateSpec",
    "StateManager",
    "StateSpec",
    "activation_bytes",
    "available_bytes",
]

_LAZY = {
    "AttachedCache": "attached",
    "EmbeddingCache": "embeddings",
    "KVCacheInputs": "inputs",
    "MemoryPlan": "memory",
    "PagedCache": "paged",
    "SlotInputs": "inputs",
    "StateManager": "manager",
    "activation_bytes": "memory",
    "available_bytes": "memory",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"pilotfish.state.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
