"""ShardedModel: this rank's shard of a model, whose passes all ranks run.

Knows: which calls of a model every rank must make. Does not know: how ranks are told, or what a
shard is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pilotfish.kernels.device import current_device
from pilotfish.ranks.mirrored_cache import MirroredCache

if TYPE_CHECKING:
    import torch

    from pilotfish.protocols import ModelInputs, ModelOutputs, PipelineModel
    from pilotfish.ranks.ranks import Ranks
    from pilotfish.state import SlotCache, SlotStateSpec, StateManager, StateSpec


class ShardedModel:
    """A `PipelineModel` and a `SpeculativeTarget`, as `model` is; the driver's.

    Whatever is not here is the model's own. Its passes raise RankError when a rank fails.
    """

    def __init__(self, model: PipelineModel, ranks: Ranks) -> None:
        self.model, self.ranks = model, ranks
        self._blocks: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        if name == "model":  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.model, name)

    def attach(self, state: StateManager, specs: Iterable[StateSpec]) -> None:
        """The state whose paged caches passes read: what other ranks have in their place.

        specs: of its caches.
        """
        from pilotfish.state import PagedStateSpec

        for spec in specs:
            if isinstance(spec, PagedStateSpec) and spec.num_layers:
                blocks = state.paged_cache(spec.name).blocks
                self._blocks.append(blocks)  # alive, so that nothing else has its id
                self.ranks.keys[id(blocks)] = spec.name

    def make_cache(
        self, spec: SlotStateSpec, *, max_slots: int, num_pages: int, poison: bool = False
    ) -> SlotCache:
        """The model's own, whose calls workers hear of."""
        own = self.model.make_cache(spec, max_slots=max_slots, num_pages=num_pages, poison=poison)
        made: Any = MirroredCache(own, spec.name, self.ranks.log, self.ranks.keys)
        return made  # type: ignore[no-any-return]

    def execute(self, model_inputs: ModelInputs) -> ModelOutputs:
        """Runs one pass, on all ranks. Raises ValueError for inputs of another state."""
        kv = model_inputs.kv_cache_inputs
        for part in () if kv is None else (kv.blocks, *kv.slots):
            if part and id(part) not in self.ranks.keys:
                raise ValueError(
                    "kv_cache_inputs are of a state that other ranks do not have; wanted those of "
                    "the state that was attached"
                )
        made: ModelOutputs = self._call("execute", model_inputs)
        return made

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """As the model's, on all ranks."""
        made: torch.Tensor = self._call("embed", tokens)
        return made

    def lm_head(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """As the model's, on all ranks."""
        made: torch.Tensor = self._call("lm_head", hidden_states)
        return made

    def idle_round(self, joins: int) -> bool:
        """As the model's, on all ranks."""
        made: bool = self._call("idle_round", joins)
        return made

    def release(self, request_id: str) -> None:
        """As the model's; workers hear of it with the next call."""
        self.ranks.log.append(("release", (request_id,)))
        self.model.release(request_id)

    def _call(self, name: str, argument: Any) -> Any:
        own, device = getattr(self.model, name), self.model.device

        def here() -> Any:
            with current_device(device):
                return own(argument)

        return self.ranks.call(name, (argument,), here)
