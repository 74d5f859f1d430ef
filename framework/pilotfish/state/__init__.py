"""State of requests: pages, the caches cut from them, and the lifecycle that joins them.

Import-light: names that need numpy or torch are resolved on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfish.lazy import lazy_names
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
    from pilotfish.state.inputs import KVCacheInputs, SlotInputs
    from pilotfish.state.manager import StateManager
    from pilotfish.state.memory import MemoryPlan, activation_bytes
    from pilotfish.state.paged import PagedCache
    from pilotfish.state.slot_caches import SlotCache

__all__ = [
    "SlotCache",
    "CacheParams",
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
]

_HOMES = {
    "SlotCache": "slot_caches",
    "KVCacheInputs": "inputs",
    "MemoryPlan": "memory",
    "PagedCache": "paged",
    "SlotInputs": "inputs",
    "StateManager": "manager",
    "activation_bytes": "memory",
}

__getattr__ = lazy_names(__name__, _HOMES)
