"""Prepared: all that is decided of a run before weights are read.

Knows: how its model gets its weights and its state. Does not know: how it was decided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import attrs

from pilotfish.config import PipelineConfig
from pilotfish.errors import CheckpointError
from pilotfish.kernels import KernelBackend
from pilotfish.loading.draft import PreparedDraft
from pilotfish.loading.share import Share
from pilotfish.parallel.group import Groups
from pilotfish.protocols import ImageProcessor, PipelineModel
from pilotfish.protocols.optional import of_config, of_model
from pilotfish.registry import Registry, Route
from pilotfish.speculation import Proposer, ProposerSetup
from pilotfish.state import (
    MemoryPlan,
    PagedStateSpec,
    SlotStateSpec,
    StateManager,
    StateSpec,
)
from pilotfish.weights import Checkpoint, WeightSource
from pilotfish.weights.absent import AbsentWeights
from pilotfish.weights.int4 import num_parameters

if TYPE_CHECKING:
    import torch


def _as_it_is(weights: WeightSource) -> WeightSource:
    return weights


@attrs.frozen(kw_only=True)
class Prepared:
    """Everything that is decided before weights are read. Made by `prepare`.

    pipeline_config: the options with every "auto" resolved. model: without weights; its config is
    complete. share: what this rank has of it. weights: the checkpoint's tensors, unread.
    vocab_size: ids that the model knows. image_processor: None for text only.
    """

    checkpoint: Checkpoint
    route: Route
    pipeline_config: PipelineConfig
    model: PipelineModel
    share: Share
    backend: KernelBackend
    device: torch.device
    weights: WeightSource
    draft: PreparedDraft | None = None
    vocab_size: int
    memory_plan: MemoryPlan
    image_processor: ImageProcessor | None = None

    @property
    def groups(self) -> Groups:
        """The ranks that share the model."""
        return self.share.groups

    @property
    def dtype(self) -> str:
        """Of weights and activations."""
        return self.pipeline_config.runtime.dtype

    @property
    def modalities(self) -> frozenset[str]:
        """Kinds of input that this checkpoint serves, of those of its architecture."""
        served = self.route.architecture.modalities
        return served if self.image_processor is not None else served - {"image"}

    @property
    def unserved_token_ids(self) -> Mapping[str, int]:
        """Placeholders, by kind, of inputs that the checkpoint has no part for."""
        return of_config(self.model.config).unserved_token_ids

    @property
    def num_parameters(self) -> int:
        """Numbers in the checkpoint's tensors; those that are packed, each by itself."""
        return num_parameters(self.weights.infos)

    @property
    def absent(self) -> CheckpointError | None:
        """Why the weights are not there, in a plan from the config alone; None where they are."""
        return self.weights.error if isinstance(self.weights, AbsentWeights) else None

    @property
    def state_specs(self) -> tuple[StateSpec, ...]:
        """The caches of the model and of its drafter."""
        drafter = () if self.draft is None else self.draft.state_specs
        return (*self.model.state, *drafter)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The weights that `load` and `load_proposer` read."""
        drafts = None if self.draft is None else self.draft.weights
        return (self.weights,) if drafts is None else (self.weights, drafts)

    def load_proposer(
        self, registry: Registry, counted: Callable[[WeightSource], WeightSource] = _as_it_is
    ) -> Proposer | None:
        """The drafter with its weights, after `load`; None without one. Raises WeightsError."""
        proposer = self.make_proposer(registry)
        if proposer is None or self.draft is None:
            return None
        from pilotfish.kernels.device import current_device

        with current_device(self.device):
            weights = self.draft.weights
            proposer.load_model(None if weights is None else counted(weights))
            of_model(proposer).plan_pass()
        return proposer

    def make_proposer(self, registry: Registry, groups: Groups | None = None) -> Proposer | None:
        """The drafter without weights; None without one. groups: this rank's, unless others."""
        if self.draft is None:
            return None
        setup = ProposerSetup(
            pipeline_config=self.pipeline_config,
            config=self.draft.config,
            backend=self.backend,
            device=self.device,
            target=self.model,
            registry=registry,
        )
        return self.draft.make(setup, groups or self.groups)

    def load(self, counted: Callable[[WeightSource], WeightSource] = _as_it_is) -> StateManager:
        """Reads the weights into `model` and allocates its state.

        counted: makes of the checkpoint's weights those that are read (`LoadingBar.counted`).
        Raises WeightsError naming tensors that do not fit.
        """
        from pilotfish.kernels.device import current_device

        with current_device(self.device):
            self.model.load_model(counted(self.weights))
            of_model(self.model).plan_pass()
            return self.allocate()

    def allocate(self, *, poison: bool = False) -> StateManager:
        """Allocates the state that `model` declares. poison: see StateManager; for tests."""
        plan, prefix_caching = self.memory_plan, self.pipeline_config.cache.prefix_caching
        slot_caches = [
            self.model.make_cache(
                spec,
                max_slots=plan.max_batch_size,
                num_pages=plan.num_pages if prefix_caching else 0,
                poison=poison,
            )
            for spec in self.model.state
            if isinstance(spec, SlotStateSpec)
        ]
        return StateManager(
            [spec for spec in self.state_specs if isinstance(spec, PagedStateSpec)],
            num_pages=plan.num_pages,
            page_size_tokens=plan.page_size_tokens,
            device=self.device,
            prefix_caching=prefix_caching,
            slot_caches=slot_caches,
            lookahead=0 if self.draft is None else self.draft.config.lookahead,
            poison=poison,
        )
