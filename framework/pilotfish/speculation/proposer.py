"""What a drafter is to the speculative step: the records that pass between them, and the contract.

Knows: requests as token lists and row counts. Does not know: any drafter, target or sampler.
Axis letters: B requests, T packed rows, D model width, G drafted tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import attrs

from pilotfish.batch import Proposal
from pilotfish.protocols import PipelineModel, ReturnHiddenStates

if TYPE_CHECKING:
    import torch

    from pilotfish.config import ModelConfig, PipelineConfig
    from pilotfish.kernels import KernelBackend
    from pilotfish.registry import Registry
    from pilotfish.sampling import SamplingRow
    from pilotfish.state import KVCacheInputs, StateSpec
    from pilotfish.weights import WeightSource


@attrs.frozen(kw_only=True)
class DraftRequest:
    """One request after the target has run: what counts now, and how much may be drafted.

    request_id: of the request. tokens: everything that counts, the newest token included.
    num_before: rows committed in every cache before this step. num_new: rows of this step that
        count. Row i belongs to tokens[i], so tokens[num_before + num_new] is the newest token,
        whose row no cache has yet; only a text that is scored ends without one.
    num_draft_tokens: most tokens to propose; 0 asks only that the rows be taken in.
    sampling_row: drafted tokens -> the SamplingRow of the token after `tokens` and those.
    num_started_tokens: tokens known when its rows were first computed (m of config/rope.py); only
        drafts whose rotary angles depend on it read it.
    """

    request_id: str
    tokens: Sequence[int]
    num_before: int
    num_new: int
    num_draft_tokens: int
    sampling_row: Callable[[Sequence[int]], SamplingRow]
    num_started_tokens: int = 0

    @property
    def num_after(self) -> int:
        """Rows that will be committed when this step is."""
        return self.num_before + self.num_new


@attrs.frozen(kw_only=True)
class DraftBatch:
    """The requests of one step.

    requests: B of them, in the order of the target's pass.
    features: [T, F], the target's hidden states as the proposer asked for them, rows that count
        only, packed in the order of the requests; None when it asked for none.
    kv_inputs: (request ids, rows of each, cache name, rows to skip of each) -> the view of one pass
        of the draft over a paged cache of its own. Rows num_before .. num_after of a request are
        reserved, and as many scratch rows after them as the proposer asked for.
    """

    requests: Sequence[DraftRequest]
    features: torch.Tensor | None
    kv_inputs: Callable[[Sequence[str], Sequence[int], str, Sequence[int]], KVCacheInputs]


class SpeculatorConfig(Protocol):
    """The configuration of a drafter: what `SpeculatorSpec.config` names.

    `initialize` and `finalize` as an ArchConfig's, and what follows.
    """

    @classmethod
    def initialize(
        cls,
        pipeline_config: PipelineConfig,
        model_config: ModelConfig | None = None,
        *,
        registry: Registry | None = None,
    ) -> Self:
        """Reads `pipeline_config.model` (the target), `.draft_model` and `.speculative`.

        model_config: the draft; None means `pipeline_config.draft_model`, which is None for a
        method without a draft. registry: for drafters that run an architecture of another plugin.
        Raises ConfigError for a draft that was made for another target.
        """
        ...

    def finalize(self, huggingface_config: Any, state_dict: Mapping[str, Any]) -> Self:
        """Returns the config completed from the draft's tensors; called only if it has any."""
        ...

    return_hidden_states: ReturnHiddenStates
    """What it reads of the target: NONE, ALL_NORMALIZED or SELECTED."""
    aux_hidden_state_layers: tuple[int, ...]
    """With SELECTED: boundaries of the target's residual stream, in the drafter's own order."""
    max_draft_tokens: int | None
    """Most tokens a step that it was trained for; None: any number."""
    lookahead: int
    """1 where the draft's row of a token depends on the next token, so that shared pages must
    agree on it; else 0."""

    # Not needed:
    # `num_repeated_weights: int`, for the memory plan, where weights are held more than once: how
    # many numbers more than the file's.
    # `learns_across_requests: bool`, where what is drafted for a request depends on others: the
    # conformance kit then asks for nothing that it cannot promise.

    def num_scratch_rows(self, width: int) -> int:
        """Rows past the committed ones that drafting `width` tokens writes in its paged caches."""
        ...

    def get_state_specs(self) -> tuple[StateSpec, ...]:
        """Paged caches of its own; they share page ids with the target's."""
        ...


@attrs.frozen(kw_only=True)
class ProposerSetup:
    """Everything that a proposer is made from.

    config: its own, finalized. target: loaded before the proposer; it offers what the spec's
    `needs` name. registry: for drafters that run an architecture of another plugin.
    """

    pipeline_config: PipelineConfig
    config: Any
    backend: KernelBackend
    device: torch.device
    target: PipelineModel
    registry: Registry


class Proposer(Protocol):
    """A drafter: what `SpeculatorSpec.model` names. Made as `Model(setup)`, without weights.

    It proposes and keeps its own caches; it decides nothing about the text.
    """

    config_class: ClassVar[type[Any]]

    # Not needed: `plan_load(infos)`, `staying(infos)`, `without_ignored(infos)`, `plan_pass()` and
    # `shard(groups)`, as a model's (`OptionalOfModel`).
    # `shared_calls: ClassVar[tuple[str, ...]]`, beside `shard`: see `shared_calls_of`.

    def load_model(self, weights: WeightSource | None) -> None:
        """Fills its parameters; weights: the draft's, None for a method without a draft.

        Raises WeightsError naming missing, extra and misshapen tensors.
        """
        ...

    def propose(self, batch: DraftBatch) -> Sequence[Proposal]:
        """Takes in the rows that count and drafts; one Proposal a request, in their order.

        Called once a step, before the step is committed; after an exception it may be called again
        for the same rows. Text cannot depend on what it proposes.
        """
        ...

    def release(self, request_id: str) -> None:
        """Drops what it keeps for a request outside its caches.

        Called when its state is given up: at its end, and at every preemption, after which the
        request may come again under the same id.
        """
        ...


def shared_calls_of(drafter: type[Any]) -> tuple[str, ...]:
    """Methods of a drafter that every rank of its target calls; () where the first runs it alone.

    They are those that `shared_calls` names, where the class has a `shard` too; a subclass with a
    `propose` of its own names them anew. Each rank computes its part, of arguments that the first
    rank gives all: tensors, plain values and records, by position.
    """
    if not callable(getattr(drafter, "shard", None)):
        return ()
    for kind in drafter.__mro__:
        if "shared_calls" in vars(kind):
            return tuple(vars(kind)["shared_calls"])
        if "propose" in vars(kind):
            return ()
    return ()
