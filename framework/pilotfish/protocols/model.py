"""PipelineModel: what a model must offer, and what goes in and comes out of a pass.

Knows: ragged batches, caches by their contracts. Does not know: any architecture.
Axis letters: B requests, T packed tokens, D model width, V vocabulary, R rows of logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import attrs

from pilotfish.batch import check_ragged
from pilotfish.records import TensorRecord

if TYPE_CHECKING:
    import torch

    from pilotfish.batch import RequestContext
    from pilotfish.config import PipelineConfig
    from pilotfish.kernels import KernelBackend
    from pilotfish.state import KVCacheInputs, SlotCache, SlotStateSpec, StateSpec
    from pilotfish.weights import WeightSource


class ReturnLogits(StrEnum):
    """Which rows of logits `execute` returns; always float32."""

    LAST_TOKEN = "last_token"
    """[B, V]: the last row of each request."""
    VARIABLE = "variable"
    """[R, V]: the last `return_n_logits[b]` rows of each request, with offsets [B+1]."""
    ALL = "all"
    """[T, V]: every row."""


class ReturnHiddenStates(StrEnum):
    """Which hidden states `execute` returns."""

    NONE = "none"
    LAST = "last"
    """[B, D]: the last row of each request, before the final norm."""
    ALL = "all"
    """[T, D]: every row, before the final norm."""
    ALL_NORMALIZED = "all_normalized"
    """[T, D]: every row, after the final norm."""
    SELECTED = "selected"
    """[T, n*D]: the residual stream at the n named boundaries, in the order asked.

    Boundary 0 is the output of the embedding; boundary i is the stream after block i-1.
    """


@attrs.frozen(kw_only=True)
class ModelInputs(TensorRecord):
    """One ragged batch for `execute`; an architecture adds its fields in a subclass.

    tokens: [T] int64, the packed tokens of all requests.
    input_row_offsets: [B+1] int32, request b owns rows offsets[b] to offsets[b+1].
    return_n_logits: [1] or [B] int64 on the host, rows of logits wanted per request (VARIABLE);
        0 skips the head for a prefill chunk that is not the last.
    kv_cache_inputs: where each request's keys and values lie; None for a model without pages.
    hidden_states: [T, n*D] features of another model, for drafters; else None.
    data_parallel_splits: [D+1] int64 on the host, where a pass has requests of D replicas: those of
        replica d are numbers splits[d] to splits[d+1] of all. The other fields are of the requests
        that this model packed: its own replica's, which may have none, or all. None: of the
        requests of other replicas nothing is known.

    Raises ValueError when the offsets do not start at 0, fall, or do not end at T, when a dtype or
    device does not fit, and for splits that do not start at 0, or fall.
    """

    tokens: torch.Tensor
    input_row_offsets: torch.Tensor
    return_n_logits: torch.Tensor
    kv_cache_inputs: KVCacheInputs | None = None
    hidden_states: torch.Tensor | None = None
    data_parallel_splits: torch.Tensor | None = None

    def __attrs_post_init__(self) -> None:
        splits = self.data_parallel_splits
        check_ragged(
            self.tokens,
            self.input_row_offsets,
            self.return_n_logits,
            min_requests=1 if splits is None else 0,
        )
        if splits is not None:
            _check_splits(splits)

    @property
    def num_requests(self) -> int:
        """B."""
        return self.input_row_offsets.shape[0] - 1


def _check_splits(splits: torch.Tensor) -> None:
    listed = splits.tolist()
    kind = str(splits.dtype).removeprefix("torch.")
    is_flat = splits.ndim == 1 and len(listed) > 1
    is_on_host = splits.device.type == "cpu" and kind == "int64"
    if not is_flat or not is_on_host or listed[0] != 0 or listed != sorted(listed):
        raise ValueError(
            f"data_parallel_splits is {listed} in {kind} on {splits.device}; wanted [D+1] int64 on "
            "the host, numbers that start at 0 and never fall"
        )


@attrs.frozen(kw_only=True)
class ModelOutputs:
    """What `execute` returns.

    logits: [R, V] float32; R as the logit mode says.
    logit_offsets: [B+1] int64 on the host, where request b's rows of logits begin and end.
    hidden_states: as `ReturnHiddenStates` says, in the model's dtype; None for NONE.
    """

    logits: torch.Tensor
    logit_offsets: torch.Tensor
    hidden_states: torch.Tensor | None = None


class PipelineModel(Protocol):
    """A model that the engine can run: loads weights, prepares inputs, executes ragged batches.

    A model is made without weights:
    `Model(pipeline_config, arch_config, backend, device=..., return_logits=...,
    return_hidden_states=..., aux_hidden_state_layers=...)`, then `load_model(weights)`.
    Everything a layer needs arrives in the inputs; a model keeps no batch between calls. What it
    may have besides, and most have not, is in `OptionalOfModel`.
    """

    config_class: ClassVar[type[Any]]
    config: Any
    device: torch.device
    return_logits: ReturnLogits
    return_hidden_states: ReturnHiddenStates

    def __init__(
        self,
        pipeline_config: PipelineConfig,
        arch_config: Any,
        backend: KernelBackend,
        *,
        device: torch.device,
        return_logits: ReturnLogits = ReturnLogits.VARIABLE,
        return_hidden_states: ReturnHiddenStates = ReturnHiddenStates.NONE,
        aux_hidden_state_layers: Sequence[int] = (),
    ) -> None: ...

    @property
    def state(self) -> tuple[StateSpec, ...]:
        """The caches this model needs, as specs; the engine allocates them."""
        ...

    @property
    def row_multiple(self) -> int:
        """Rows of a pass are padded to this multiple so that each row's bits are its own."""
        ...

    def parameter_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every parameter, name -> shape, known before weights are read; `inspect` probes them."""
        ...

    def load_model(self, weights: WeightSource) -> None:
        """Fills every parameter; raises WeightsError naming missing, extra, misshapen tensors."""
        ...

    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[RequestContext]],
        kv_cache_inputs: KVCacheInputs | None = None,
        return_n_logits: int | Sequence[int] = 1,
    ) -> ModelInputs:
        """Packs the scheduled rows of each request into inputs.

        replica_batches: one batch; or one of each replica, of which a model of several replicas
        packs its own, and a model alone all, one after the other. The other arguments are of the
        requests that are packed.
        """
        ...

    def prepare_next_token_inputs(
        self, next_tokens: torch.Tensor, prev_model_inputs: ModelInputs
    ) -> ModelInputs:
        """Inputs of one more row per request, after the rows of `prev_model_inputs`.

        next_tokens: [B] int64. The caller has reserved the page of each new row.
        """
        ...

    def execute(self, model_inputs: ModelInputs) -> ModelOutputs:
        """Runs one pass; writes this pass's rows into the caches past the committed lengths."""
        ...

    def make_cache(
        self, spec: SlotStateSpec, *, max_slots: int, num_pages: int, poison: bool = False
    ) -> SlotCache:
        """The cache that a slot spec of `state` declares, on the model's device.

        The engine allocates paged caches itself; a cache of any other kind is the architecture's
        own, so it makes it, and finds its view of a pass in `kv_cache_inputs.slots`. Asked for
        slot specs only. max_slots: requests at once. num_pages: pages at whose ends state may be
        kept for prefix hits; 0 where nothing is to be kept. poison: fill what nobody may read with
        NaN; for tests. The model does not keep the cache.
        """
        ...

    def release(self, request_id: str) -> None:
        """Drops what the model itself keeps for a request; most keep nothing."""
        ...


@runtime_checkable
class SpeculativeTarget(Protocol):
    """What a target offers to any drafter: verify is `execute` with VARIABLE and SELECTED."""

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: [T] int64 -> [T, D], what enters block 0 (embedding multiplier included)."""
        ...

    def lm_head(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states: [T, D] after a final norm -> [T, V] float32 logits (scaling included)."""
        ...
