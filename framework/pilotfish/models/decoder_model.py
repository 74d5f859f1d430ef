"""DecoderModel: everything a decoder-only text model does that is not its architecture.

Knows: padding, row selection, logit and hidden modes. Does not know: any architecture (a
plugin subclasses it and says which network to build and how weights are named), or how what it
claims of its rows' bits is found (`claims.py`), or how weights come (`loads_decoder.py`).
Axis letters: B requests, T packed tokens, T' rows with padding, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, ClassVar, Literal, TypeAlias

import torch

from pilotfish.batch import RequestContext
from pilotfish.config import PipelineConfig
from pilotfish.errors import ConfigError
from pilotfish.invariance.rows import padded, wanted_rows
from pilotfish.kernels import KernelBackend
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.models.decoder import Decoder, Residual
from pilotfish.models.inputs import DecoderInputs, initial_inputs, next_inputs
from pilotfish.models.loads_decoder import LoadsDecoder
from pilotfish.models.native_pass import NativePass, why_called
from pilotfish.models.replicas import SharedByReplicas
from pilotfish.parallel.group import Groups
from pilotfish.protocols import ModelInputs, ModelOutputs, ReturnHiddenStates, ReturnLogits
from pilotfish.state import KVCacheInputs, PagedStateSpec, SlotCache, SlotStateSpec

_HIDDEN = ReturnHiddenStates
_Laid: TypeAlias = tuple[ReturnHiddenStates, tuple[int, ...], torch.dtype, object]
"""What a planned pass was laid down for: what it keeps of the stream, and its caches' dtype."""


class DecoderModel(SharedByReplicas, LoadsDecoder):
    """Base of decoder-only models; `PipelineModel` and `SpeculativeTarget` in one.

    A subclass sets `config_class` (and `inputs_class` if it adds fields) and implements
    `build_network` and `weight_rules`. It needs of its config: `get_state_specs()`, `dtype`,
    `num_hidden_layers`, `hidden_size`.
    """

    config_class: ClassVar[type[Any]]
    inputs_class: ClassVar[type[DecoderInputs]] = DecoderInputs
    plans_passes: bool = True
    """Whether passes are laid down as native calls where kernels are native; for tests."""

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
    ) -> None:
        self.pipeline_config = pipeline_config
        self.config = arch_config
        self.backend = backend
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, arch_config.dtype)
        self.return_logits = return_logits
        self.return_hidden_states = return_hidden_states
        self.aux_hidden_state_layers = tuple(aux_hidden_state_layers)
        self._check_boundaries()
        self.network = self.build_network()
        self.groups = Groups()
        self._native_passes: dict[_Laid, NativePass | Literal[False]] = {}

    # What a plugin writes.

    def build_network(self) -> Decoder:
        """The network of `self.config`, without weights."""
        raise NotImplementedError

    def make_cache(
        self, spec: SlotStateSpec, *, max_slots: int, num_pages: int, poison: bool = False
    ) -> SlotCache:
        """The cache of a slot spec; only for architectures that declare one."""
        raise NotImplementedError(f"{type(self).__name__} makes no cache for {spec.name!r}")

    # Planning.

    def plan_pass(self) -> None:
        """Lays the pass down as native calls, where it may be; else the first pass does it."""
        pages = [spec for spec in self.state if isinstance(spec, PagedStateSpec)]
        if self.plans_passes:
            self._lay_down(getattr(torch, pages[0].dtype) if pages else self.dtype)

    # Inputs.

    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[RequestContext]],
        kv_cache_inputs: KVCacheInputs | None = None,
        return_n_logits: int | Sequence[int] = 1,
    ) -> DecoderInputs:
        """Packs the scheduled rows of each request of the one replica.

        replica_batches: see `PipelineModel`. return_n_logits: rows of logits wanted, of all
        requests that are packed or of each.
        """
        splits: torch.Tensor | None = None
        if len(replica_batches) == 1:
            contexts = replica_batches[0]
        else:
            packed = self.packed_batch(replica_batches)
            contexts, splits = packed.contexts, packed.splits
        return initial_inputs(
            self.inputs_class,
            contexts,
            kv_cache_inputs,
            return_n_logits,
            device=self.device,
            with_lengths=self.network.turns_by_length,
            data_parallel_splits=splits,
        )

    def prepare_next_token_inputs(
        self, next_tokens: torch.Tensor, prev_model_inputs: ModelInputs
    ) -> DecoderInputs:
        """next_tokens: [B] int64 -> inputs of one more row per request, its page reserved."""
        return next_inputs(next_tokens, self._own(prev_model_inputs))

    def release(self, request_id: str) -> None:
        """A decoder keeps nothing between calls."""

    # Running.

    @torch.inference_mode()
    def execute(self, model_inputs: ModelInputs) -> ModelOutputs:
        """Runs one pass; writes its keys and values past the committed lengths.

        Logits are computed for the wanted rows only; hidden states as the mode says. Where replicas
        share experts it is a round of all of them.
        """
        if model_inputs.data_parallel_splits is not None and not model_inputs.num_requests:
            return self.idle_outputs(model_inputs)
        kv = model_inputs.kv_cache_inputs
        if kv is None:
            raise ValueError(
                "kv_cache_inputs is None; wanted the pages of every request: a model without keys "
                "lists KVCacheParams(num_layers=0, num_kv_heads=1, head_dim=1).spec among its "
                "state specs, whose pages hold nothing and count its rows"
            )
        inputs, mode = self._own(model_inputs), self.return_hidden_states
        run = ForwardPass.start(
            kv,
            inputs.input_row_offsets,
            backend=self.backend,
            rotary=self.network.rotary,
            row_multiple=self.padding.body,
            attention_multiple=self.padding.attention,
            prompt_lengths=inputs.rope_lengths,
            lay_outs=self.network.lay_outs,
        )
        tokens = inputs.tokens.contiguous()
        short = run.positions.shape[0] - tokens.shape[0]
        if short:
            tokens = torch.nn.functional.pad(tokens, (0, short))
        wanted = wanted_rows(
            self.return_logits, kv.row_counts, model_inputs.return_n_logits.tolist()
        )
        is_shared = self.lockstep is not None or inputs.data_parallel_splits is not None
        if is_shared:
            self.begin_round(inputs)
        planned, hidden, entering = self._planned(run), None, tokens
        if planned is None or not planned.takes_tokens:
            entering = self.embed_inputs(inputs, tokens).contiguous()
        if planned is None:
            asked = frozenset(self.aux_hidden_state_layers)
            state, kept = self.network.run(entering, run, asked)
            if mode is not _HIDDEN.NONE:  # the head closes the stream
                hidden = self._hidden_states(state, kept, kv.row_counts)
            logits = self._logits(state, wanted.indices)
        else:
            logits, kept = planned(entering, run, wanted.indices)
            if mode is not _HIDDEN.NONE:
                # The last boundary is kept where a mode wants the rows that leave the last block.
                last = kept.get(len(self.network.layers), entering)
                hidden = self._hidden_states(Residual(last, None, 1.0), kept, kv.row_counts)
        return ModelOutputs(
            logits=logits, logit_offsets=torch.tensor(wanted.offsets), hidden_states=hidden
        )

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: [T] int64 -> [T, D], what enters block 0."""
        return self.network.embed_tokens(tokens)

    def embed_inputs(self, inputs: DecoderInputs, tokens: torch.Tensor) -> torch.Tensor:
        """What enters block 0 in a pass: a new [T', D]; tokens: [T'] int64, padded.

        For architectures whose rows are not all looked up by token: images, say.
        """
        del inputs
        return self.embed(tokens)

    def lm_head(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states: [T, D] after a final norm -> [T, V] float32 logits."""
        num_rows = hidden_states.shape[0]
        short = padded(num_rows, self.padding.head) - num_rows
        if short:
            hidden_states = torch.nn.functional.pad(hidden_states, (0, 0, 0, short))
        return self.network.logits(hidden_states, self.backend)[:num_rows]

    def _own(self, inputs: ModelInputs) -> DecoderInputs:
        if not isinstance(inputs, self.inputs_class):
            raise ValueError(
                f"the inputs are {type(inputs).__name__}; wanted {self.inputs_class.__name__}: "
                "make them with prepare_initial_token_inputs"
            )
        return inputs

    @property
    def has_planned(self) -> bool:
        """Whether a pass was laid down as native calls."""
        return any(planned is not False for planned in self._native_passes.values())

    @property
    def why_called(self) -> str:
        """What makes passes call its layers one by one, in words; "" where they may be planned."""
        if self.backend.name != "native":
            return f"the backend is {self.backend.name}"
        if not self._is_as_written("_logits"):
            return f"{type(self).__name__} has a `_logits` of its own"
        if not self.plans_passes:
            return f"{type(self).__name__}.plans_passes is false"
        return why_called(self.network, self.dtype)

    def _planned(self, run: ForwardPass) -> NativePass | None:
        """The pass as native calls; None where it is not planned, or serves this pass ill."""
        # Asked in every pass: a method may be put in place of one at any time.
        dtypes = set(map(attrgetter("dtype"), run.caches)) or {self.dtype}
        if not self.plans_passes or not self._is_as_written("_logits") or len(dtypes) > 1:
            return None
        is_usual = self._is_as_written("embed") and self._is_as_written("embed_inputs")
        embeds = self.network.embed_tokens if is_usual else None
        [dtype] = dtypes
        laid = self.return_hidden_states, self.aux_hidden_state_layers, dtype, embeds
        planned = self._native_passes.get(laid)
        if planned is None:
            planned = self._lay_down(dtype)
        return planned if planned and planned.serves(run) else None

    def _lay_down(self, cache_dtype: torch.dtype) -> NativePass | Literal[False] | None:
        """The planned pass; False where there is none, None where that is not known yet.

        There is none on another backend, and for a network that runs its layers, or a model that
        makes logits, in its own way.
        """
        mode, kept = self.return_hidden_states, set(self.aux_hidden_state_layers)
        if mode not in (_HIDDEN.NONE, _HIDDEN.SELECTED):
            kept.add(len(self.network.layers))
        is_usual = self._is_as_written("embed") and self._is_as_written("embed_inputs")
        embeds = self.network.embed_tokens if is_usual else None
        planned: NativePass | Literal[False] | None = False
        if self.backend.name == "native" and self._is_as_written("_logits"):
            planned = NativePass.of(
                self.network,
                self.backend,
                dtype=self.dtype,
                cache_dtype=cache_dtype,
                boundaries=kept,
                embeds=embeds is not None,
            )
        if planned is not None:
            self._native_passes[mode, self.aux_hidden_state_layers, cache_dtype, embeds] = planned
        return planned

    def _is_as_written(self, method: str) -> bool:
        """Whether neither a subclass nor a patch has a method of its own in its place."""
        return getattr(getattr(self, method), "__func__", None) is DecoderModel._written[method]

    def _logits(self, state: Residual, indices: list[int]) -> torch.Tensor:
        """The head on some rows of the pass: [R, V] float32."""
        count = len(indices)
        if not count:
            vocab = self.network.lm_head.out_features
            return torch.empty(0, vocab, dtype=torch.float32, device=self.device)
        filled = indices + [indices[-1]] * (-count % self.padding.head)
        if len(filled) != state.x.shape[0] or indices[-1] != count - 1:
            state = state.rows(torch.tensor(filled, device=self.device))
        normed = self.network.finish(state, self.backend)
        return self.network.logits(normed, self.backend)[:count]

    def _hidden_states(
        self, state: Residual, kept: Mapping[int, torch.Tensor], row_counts: Sequence[int]
    ) -> torch.Tensor:
        """What the hidden mode asks for, padding rows cut off."""
        mode, num_rows = self.return_hidden_states, sum(row_counts)
        if mode is _HIDDEN.SELECTED:
            columns = [kept[boundary][:num_rows] for boundary in self.aux_hidden_state_layers]
            return torch.cat(columns, dim=1)
        if mode is _HIDDEN.LAST:
            last = wanted_rows(ReturnLogits.LAST_TOKEN, row_counts, ()).indices
            return state.rows(torch.tensor(last, device=self.device)).sum(self.backend)
        whole = state.sum(self.backend)
        if mode is _HIDDEN.ALL_NORMALIZED:
            whole = self.network.norm(whole, self.backend)
        return whole[:num_rows]

    def _check_boundaries(self) -> None:
        asked, last = self.aux_hidden_state_layers, self.config.num_hidden_layers
        selects = self.return_hidden_states is _HIDDEN.SELECTED
        if selects != bool(asked) or any(not 0 <= boundary <= last for boundary in asked):
            raise ConfigError(
                f"aux_hidden_state_layers is {list(asked)} with "
                f"{self.return_hidden_states!r}; wanted numbers from 0 to {last} with "
                "ReturnHiddenStates.SELECTED, and none with another mode"
            )
