"""The hooks that a plugin implements, and the markers for both sides.

Knows: names and signatures of the hooks. Does not know: who implements them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pilotfish.registry import ArchitectureSpec, SpeculatorSpec

hookspec = pluggy.HookspecMarker("pilotfish")
hookimpl = pluggy.HookimplMarker("pilotfish")


class PilotfishHooks:
    """What a plugin module may implement; every hook is optional, one at least is wanted."""

    @hookspec
    def pilotfish_architectures(self) -> Sequence[ArchitectureSpec]:  # type: ignore[empty-body]
        """Returns the architectures that the plugin serves. Called once, must not import torch."""

    @hookspec
    def pilotfish_speculators(self) -> Sequence[SpeculatorSpec]:  # type: ignore[empty-body]
        """Returns the speculation methods that the plugin offers. Must not import torch."""
