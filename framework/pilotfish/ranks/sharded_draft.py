"""ShardedDraft: this rank's shard of a drafter, whose passes all ranks run.

Knows: which calls of a drafter every rank must make. Does not know: how ranks are told, how tokens
are chosen, or what a shard is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import attrs

from pilotfish.kernels.device import current_device
from pilotfish.speculation.proposer import shared_calls_of

if TYPE_CHECKING:
    import torch

    from pilotfish.loading.draft import PreparedDraft
    from pilotfish.protocols import PipelineModel
    from pilotfish.ranks.ranks import Ranks
    from pilotfish.speculation import Proposer, ProposerSetup

DRAFT = "draft"
"""A worker's call that makes one of its drafter's."""


def on_all_ranks(draft: PreparedDraft, ranks: Ranks, target: PipelineModel) -> PreparedDraft:
    """The driver's drafter, whose passes every rank makes; as it is, where the first rank runs it.

    target: this rank's shard, of which passes borrow; all ranks make them together.
    """
    if draft.share is None:
        return draft

    def make(setup: ProposerSetup) -> Proposer:
        made: Any = draft.model_class(attrs.evolve(setup, target=target))
        made.__class__ = _sharded(type(made))
        made._ranks, made._device = ranks, setup.device
        return made  # type: ignore[no-any-return]

    return attrs.evolve(draft, model_class=make)


class ShardedDraft:
    """Stands in front of a drafter's class: its `shared_calls` are made on all ranks.

    Each raises RankError when a rank fails.
    """

    _ranks: Ranks
    _device: torch.device
    _is_within = False
    """Whether this rank makes its part of a call: what that calls in turn is a part too."""

    def release(self, request_id: str) -> None:
        """As the drafter's; workers hear of it with the next call."""
        self._ranks.log.append((DRAFT, ("release", request_id)))
        super().release(request_id)  # type: ignore[misc]

    def _call(self, own: Callable[..., Any], name: str, arguments: tuple[Any, ...]) -> Any:
        if self._is_within:
            return own(self, *arguments)

        def here() -> Any:
            self._is_within = True
            try:
                with current_device(self._device):
                    return own(self, *arguments)
            finally:
                self._is_within = False

        return self._ranks.call(DRAFT, (name, *arguments), here)


def _sharded(kind: type[Any]) -> type[Any]:
    """The class whose shared calls go to all ranks."""
    calls = {name: _on_all_ranks(name, getattr(kind, name)) for name in shared_calls_of(kind)}
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (ShardedDraft, kind), {**names, **calls})


def _on_all_ranks(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(own)
    def call(self: ShardedDraft, *arguments: Any) -> Any:
        return self._call(own, name, arguments)

    return call
