"""Serve: what a worker makes of the driver's options, and the calls that it makes on it.

Knows: how a model is prepared, loaded and given its state. Does not know: how calls come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import attrs

from pilotfish.kernels.device import current_device
from pilotfish.parallel.gloo import Gloo
from pilotfish.ranks.cache_copies import CacheCopies
from pilotfish.ranks.start_up import meet_replicas
from pilotfish.state import PagedStateSpec

if TYPE_CHECKING:
    import torch

    from pilotfish.loading.prepared import Prepared
    from pilotfish.parallel.group import Groups
    from pilotfish.protocols import ModelInputs, PipelineModel
    from pilotfish.ranks.messages import Key
    from pilotfish.ranks.start_up import StartUp
    from pilotfish.state import SlotCache, SlotStateSpec


def make_model(start: StartUp, groups: Groups) -> Served:
    """A rank's shard, loaded, with memory for as many requests as the driver has.

    start: its options are those of `prepare_from_options` that the driver had.
    """
    from pilotfish.loading.prepare import prepare_from_options
    from pilotfish.platform.heap import keep_freed_memory

    options, plan = dict(start.options), start.memory_plan
    if plan.note:  # the driver lowered them, so this rank is not asked
        options |= {"max_length": plan.max_seq_len, "max_batch_size": plan.max_batch_size}
    prepared = prepare_from_options(
        **options, parallel=start.parallel, groups=groups, must_fit=False
    )
    if prepared.device.type == "cpu":
        keep_freed_memory()
    draft = prepared.draft
    if draft is not None and draft.share is None:  # the driver runs it alone
        draft = None
    return Served(attrs.evolve(prepared, memory_plan=plan, draft=draft))


class _Listening:
    """A model whose slot caches are kept at hand."""

    def __init__(self, model: Any) -> None:
        self.slot_caches: dict[str, SlotCache] = {}
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def make_cache(self, spec: SlotStateSpec, **options: Any) -> SlotCache:
        made: SlotCache = self._model.make_cache(spec, **options)
        self.slot_caches[spec.name] = made
        return made


class Served(CacheCopies):
    """The calls that a worker makes, each after one of the driver's.

    proposer: its shard of the drafter; None where the driver runs that alone, or there is none.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.device, self._groups = prepared.device, prepared.groups
        self._parallel = prepared.pipeline_config.parallel
        self._model: Any = prepared.model
        model = _Listening(prepared.model)
        state = attrs.evolve(prepared, model=cast("PipelineModel", model)).load()
        pages = [spec for spec in prepared.state_specs if isinstance(spec, PagedStateSpec)]
        self._paged = {spec.name: state.paged_cache(spec.name).blocks for spec in pages}
        draft = prepared.draft
        self.proposer = None if draft is None else prepared.load_proposer(draft.registry)
        super().__init__(model.slot_caches)

    def execute(self, model_inputs: ModelInputs) -> None:
        """One pass of this shard."""
        self._do(self._model.execute, model_inputs)

    def embed(self, tokens: torch.Tensor) -> None:
        """This shard's part of the rows."""
        self._do(self._model.embed, tokens)

    def lm_head(self, hidden_states: torch.Tensor) -> None:
        """This shard's part of the logits."""
        self._do(self._model.lm_head, hidden_states)

    def idle_round(self, joins: int) -> None:
        """This rank's part of a round of other replicas."""
        self._do(self._model.idle_round, joins)

    def meet(self, host: str, port: int) -> None:
        """Meets the ranks of other replicas that share experts."""
        transport = self._groups.tensor.carrier
        assert isinstance(transport, Gloo)
        meet_replicas(self._groups, (host, port), self._parallel, transport.host)

    def draft(self, name: str, *arguments: Any) -> None:
        """A call of the drafter's: this shard's part of a pass."""
        self._do(getattr(self.proposer, name), *arguments)

    def release(self, request_id: str) -> None:
        """Drops what this shard keeps for a request."""
        self._model.release(request_id)

    def known(self, key: Key) -> Any:
        """What this rank has in the place of the driver's."""
        if isinstance(key, str) and key in self._paged:
            return self._paged[key]
        return self.views[key]

    def _do(self, call: Callable[..., Any], *arguments: Any) -> None:
        import torch

        with torch.inference_mode(), current_device(self.device):
            call(*arguments)
