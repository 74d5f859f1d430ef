"""The contracts between the core and the architecture plugins.

Knows: what a config, inputs, a model and a cache must offer. Does not know: any architecture.
Axis letters: B requests, T packed tokens, D model width, V vocabulary, R rows of logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

import attrs

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from pilotfish.batch import RequestContext
    from pilotfish.config import ModelConfig, PipelineConfig
    from pilotfish.kernels import KernelBackend
    from pilotfish.state import (
        AttachedCache,
        CacheParams,
        KVCacheInputs,
        SlotStateSpec,
        StateSpec,
    )
    from pilotfish.weights import WeightSource


NO_LIMIT = 2**31 - 1
"""The longest context of a model that has no limit of its own: what counts its tokens has one."""


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


@runtime_checkable
class ArchConfig(Protocol):
    """An architecture's configuration: frozen, validated when it is made, in two phases.

    `initialize` needs no weights and is enough to plan memory; `finalize` reads what only the
    tensors can tell (a tied head, fused projections) and returns the completed configuration.
    Two attributes are optional, for models whose rows depend on the length of their request:
    `prefix_salt(num_tokens) -> bytes` and `recompute_length: int | None` (engine/length_rules.py).
    A config of an architecture that serves images has `get_image_memory() -> ImageMemory` too.
    """

    @classmethod
    def initialize(
        cls, pipeline_config: PipelineConfig, model_config: ModelConfig | None = None
    ) -> Self:
        """Builds the config from the Hugging Face config and the user's options.

        model_config: which model to read; None means `pipeline_config.model`.
        Raises ConfigError naming any option that changes the maths and is not understood.
        """
        ...

    def finalize(self, huggingface_config: Any, state_dict: Mapping[str, Any]) -> Self:
        """Returns the config completed with facts read from the tensors' names and shapes."""
        ...

    def get_kv_params(self) -> CacheParams:
        """The geometry of the paged cache."""
        ...

    def get_state_specs(self) -> tuple[StateSpec, ...]:
        """Every cache that a request of this architecture needs; the engine allocates them."""
        ...

    def get_max_seq_len(self) -> int:
        """The longest context in tokens, prompt and answer together; NO_LIMIT for any."""
        ...


@attrs.frozen(kw_only=True)
class TensorRecord:
    """A frozen record whose tensors can be listed in declared order.

    Fields may hold tensors, None, tuples of tensors, nested records, or plain host data.
    """

    @property
    def buffers(self) -> tuple[torch.Tensor, ...]:
        """The tensors in declared field order, nested records flattened in place.

        Graph capture copies these into persistent buffers; generated from the class.
        """
        import torch

        found: list[torch.Tensor] = []
        for field in attrs.fields(type(self)):
            value = getattr(self, field.name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, torch.Tensor):
                    found.append(item)
                elif isinstance(item, TensorRecord):
                    found.extend(item.buffers)
        return tuple(found)


@attrs.frozen(kw_only=True, eq=False)
class ImageFeatures(TensorRecord):
    """One image as a vision tower reads it: made by an ImageProcessor, or before by the caller.

    pixel_values: [P, ...] float, one item a patch, in the architecture's own layout.
    grid_thw: frames, rows and columns of patches; P is their product.
    """

    pixel_values: torch.Tensor
    grid_thw: tuple[int, int, int]


@attrs.frozen(kw_only=True)
class ImageMemory:
    """What images take, for the memory plan.

    bytes_per_token: of the embeddings of one placeholder token. max_tokens: of the largest image.
    max_patches: of the largest image, and of the vision tower's fullest pass.
    pass_bytes: of that pass.
    """

    bytes_per_token: int
    max_tokens: int
    max_patches: int
    pass_bytes: int

    def parts(self, kept_bytes: int, max_batch_tokens: int) -> dict[str, int]:
        """Bytes by part: embeddings kept, and the tower with an image and the rows of a pass."""
        rows = self.max_tokens + min(max_batch_tokens, self.max_tokens)
        return {
            "embeddings kept": kept_bytes,
            "tower": self.pass_bytes + rows * self.bytes_per_token,
        }


class ImageProcessor(Protocol):
    """Turns images into features, and says how many placeholder tokens each becomes.

    A prompt has one placeholder for each of its images; the engine puts `num_tokens` in its place.
    placeholder_token_id: that token, in the model's vocabulary.
    unserved_token_ids: ids that stand for another kind of input, e.g. "video" -> its id; a prompt
        that has one is refused by that name.
    """

    placeholder_token_id: int
    unserved_token_ids: Mapping[str, int]

    @classmethod
    def from_checkpoint(cls, config: Any, directory: Path) -> Self | None:
        """config: the architecture's, complete. directory: of the checkpoint; may hold options.

        None for a checkpoint of text only, of an architecture that may serve images.

        Raises ConfigError naming an option that changes the pixels and is not understood.
        """
        ...

    def preprocess(self, pixels: torch.Tensor) -> ImageFeatures:
        """pixels: [3, H, W] uint8 on the host, RGB, not empty -> what the tower reads."""
        ...

    def grid_of(self, height: int, width: int) -> tuple[int, int, int]:
        """The grid of an image of so many pixels, as `preprocess` makes it."""
        ...

    def check(self, features: ImageFeatures) -> None:
        """Raises RequestError when features from elsewhere do not fit the tower."""
        ...

    def num_tokens(self, grid_thw: tuple[int, int, int]) -> int:
        """Placeholder tokens that an image of this grid becomes."""
        ...


@attrs.frozen(kw_only=True)
class ModelInputs(TensorRecord):
    """One ragged batch for `execute`; an architecture adds its fields in a subclass.

    tokens: [T] int64, the packed tokens of all requests.
    input_row_offsets: [B+1] int32, request b owns rows offsets[b] to offsets[b+1].
    return_n_logits: [1] or [B] int64 on the host, rows of logits wanted per request (VARIABLE);
        0 skips the head for a prefill chunk that is not the last.
    kv_cache_inputs: where each request's keys and values lie; None for a model without pages.
    hidden_states: [T, n*D] features of another model, for drafters; else None.

    Raises ValueError when the offsets do not start at 0, fall, or do not end at T, and when a
    dtype or device does not fit.
    """

    tokens: torch.Tensor
    input_row_offsets: torch.Tensor
    return_n_logits: torch.Tensor
    kv_cache_inputs: KVCacheInputs | None = None
    hidden_states: torch.Tensor | None = None

    def __attrs_post_init__(self) -> None:
        from pilotfish.batch import check_ragged

        check_ragged(self.tokens, self.input_row_offsets, self.return_n_logits)


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
    return_hidden_states=..., hidden_state_boundaries=...)`, then `load_model(weights)`.
    Everything a layer needs arrives in the inputs; a model keeps no batch between calls.
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
        hidden_state_boundaries: Sequence[int] = (),
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

    # Not needed: `plan_load(infos: Mapping[str, TensorInfo]) -> object`, which raises as
    # `load_model` does, from the headers: `inspect` says it too then, and no weights are fetched.

    def load_model(self, weights: WeightSource) -> None:
        """Fills every parameter; raises WeightsError naming missing, extra, misshapen tensors."""
        ...

    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[RequestContext]],
        kv_cache_inputs: KVCacheInputs | None = None,
        return_n_logits: int | Sequence[int] = 1,
    ) -> ModelInputs:
        """Packs the scheduled rows of each request into inputs. One replica until sharding."""
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
    ) -> AttachedCache:
        """The cache that a slot spec of `state` declares, on the model's device.

        The engine allocates paged leaves itself; a cache of any other kind is the architecture's
        own, so it makes it, and finds its view of a pass in `kv_cache_inputs.slots`. Asked for
        slot specs only. max_slots: requests at once. num_pages: pages at whose ends state may be
        kept for prefix hits; 0 where nothing is to be kept. poison: fill what nobody may read with
        NaN; for tests. The model does not keep the cache.
        """
        ...

    def release(self, request_id: str) -> None:
        """Drops what the model itself keeps for a request; most keep nothing."""
        ...


class StateCache(Protocol):
    """One lifecycle for every kind of cache.

    claim -> [reserve n -> forward writes rows len..len+n -> commit a <= n]* -> release. After
    commit the state is what feeding only the committed tokens would have left. Rows past the
    committed length are scratch: nobody may read them.
    """

    def claim(self, request_id: str) -> None:
        """Registers a request. Raises StateError when it is already claimed."""
        ...

    def reserve(self, request_id: str, num_tokens: int) -> None:
        """Makes room for n rows after the committed ones. Raises OutOfPagesError when full."""
        ...

    def commit(self, request_id: str, num_tokens: int) -> None:
        """Keeps the first a of the reserved rows; the others never happened."""
        ...

    def release(self, request_id: str) -> None:
        """Gives everything back. Raises StateError for a request that is not claimed."""
        ...

    def num_committed(self, request_id: str) -> int:
        """Rows that count."""
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


class Proposer(Protocol):
    """What a drafter offers to the speculative step; filled by the speculation drivers."""

    taps: tuple[int, ...]
    """Boundaries of the target's residual stream it reads, in its own order."""
