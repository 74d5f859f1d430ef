"""A Llama target and its EAGLE draft as one model: verify, accept and draft in one `execute`.

Knows: how a step is put together for callers that run steps themselves. Does not know: networks,
rules of acceptance, or schedules; `LLM(model, draft=...)` does without this module.
Axis letters: B requests, T packed tokens, G drafted tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import attrs
import torch

from pilotfish.batch import RaggedBatch, RequestContext
from pilotfish.config import ModelConfig, PipelineConfig, SpeculativeConfig
from pilotfish.errors import ConfigError
from pilotfish.kernels import KernelBackend
from pilotfish.plugins import load_registry
from pilotfish.protocols import ArchConfig, ModelInputs, PipelineModel, ReturnLogits
from pilotfish.registry import Registry
from pilotfish.sampling import Sampler
from pilotfish.sampling.acceptance import Accepted, VerifyRequest, acceptance_rule
from pilotfish.speculation import DraftBatch, DraftRequest, ProposerSetup
from pilotfish.state import KVCacheInputs, KVCacheParams, StateSpec
from pilotfish.weights import WeightSource
from pilotfish_eagle.config import EagleConfig
from pilotfish_eagle.inputs import UnifiedEagleLlama3Inputs, UnifiedEagleOutputs
from pilotfish_eagle.model import EagleModel
from pilotfish_eagle.step import DraftPages, Step

_TARGET = "LlamaForCausalLM"
_WIDTH = 3
"""Tokens drafted in a step where the options do not give a number."""


@attrs.frozen(kw_only=True)
class UnifiedEagleLlama3Config:
    """target: the Llama's own configuration. draft: the EAGLE draft's."""

    target: ArchConfig
    draft: EagleConfig
    speculative_config: SpeculativeConfig

    @classmethod
    def initialize(
        cls,
        pipeline_config: PipelineConfig,
        model_config: ModelConfig | None = None,
        *,
        registry: Registry | None = None,
    ) -> Self:
        """Both configurations. model_config: the target; None means `pipeline_config.model`.

        registry: where the Llama plugin is found; None loads the installed ones.
        Raises ConfigError for a target that is no Llama, and as both configurations do.
        """
        model = model_config or pipeline_config.model
        if model.architecture != _TARGET:
            raise ConfigError(
                f"the target's architecture is {model.architecture!r}; wanted {_TARGET!r}"
            )
        route = (registry or load_registry()).route(_TARGET)
        pair = attrs.evolve(pipeline_config, model=model)
        return cls(
            target=route.config_class().initialize(pair),
            draft=EagleConfig.initialize(pair),
            speculative_config=pipeline_config.speculative or SpeculativeConfig(method="eagle"),
        )

    def finalize(
        self,
        huggingface_config: Any,
        state_dict: Mapping[str, Any],
        draft_huggingface_config: Any,
        draft_state_dict: Mapping[str, Any],
    ) -> Self:
        """Both completed, each from its own tensors' names."""
        return attrs.evolve(
            self,
            target=self.target.finalize(huggingface_config, state_dict),
            draft=self.draft.finalize(draft_huggingface_config, draft_state_dict),
        )

    @property
    def width(self) -> int:
        """Tokens drafted in a step."""
        width = self.speculative_config.width
        return width if isinstance(width, int) else _WIDTH

    def get_kv_params(self) -> KVCacheParams:
        """The target's; the draft's are `draft.get_kv_params()`, over the same pages."""
        return self.target.get_kv_params()

    def get_state_specs(self) -> tuple[StateSpec, ...]:
        """The target's leaves and the draft's."""
        return (*self.target.get_state_specs(), *self.draft.get_state_specs())

    def get_max_seq_len(self) -> int:
        """The target's: past the draft's own limit the text goes on without a draft."""
        return self.target.get_max_seq_len()


class UnifiedEagleLlama3Model:
    """Target and draft; made without weights.

    Logits and hidden states that `execute` needs are asked of the target here, so there are no
    modes to choose.
    """

    config_class: ClassVar[type[UnifiedEagleLlama3Config]] = UnifiedEagleLlama3Config
    return_logits = ReturnLogits.VARIABLE

    def __init__(
        self,
        pipeline_config: PipelineConfig,
        config: UnifiedEagleLlama3Config,
        backend: KernelBackend,
        *,
        device: torch.device,
        registry: Registry | None = None,
    ) -> None:
        registry = registry or load_registry()
        self.config = config
        self.device = torch.device(device)
        self.target: PipelineModel = registry.route(_TARGET).model_class()(
            pipeline_config,
            config.target,
            backend,
            device=self.device,
            return_logits=self.return_logits,
            return_hidden_states=config.draft.return_hidden_states,
            hidden_state_boundaries=config.draft.taps,
        )
        self.draft = EagleModel(
            ProposerSetup(
                pipeline_config=pipeline_config,
                config=config.draft,
                backend=backend,
                device=self.device,
                target=self.target,
                registry=registry,
            )
        )
        self._acceptance = acceptance_rule(config.speculative_config, Sampler())

    @classmethod
    def calculate_max_seq_len(cls, pipeline_config: PipelineConfig, huggingface_config: Any) -> int:
        """The longest context in tokens. huggingface_config: of the target."""
        model = attrs.evolve(pipeline_config.model, huggingface_config=huggingface_config)
        return cls.config_class.initialize(pipeline_config, model).get_max_seq_len()

    def get_kv_params(self) -> KVCacheParams:
        """The geometry of the target's leaf."""
        return self.config.get_kv_params()

    @property
    def state(self) -> tuple[StateSpec, ...]:
        """The caches of both."""
        return self.config.get_state_specs()

    def load_model(self, weights: WeightSource, draft_weights: WeightSource) -> None:
        """Fills both. Raises WeightsError naming tensors that do not fit."""
        self.target.load_model(weights)
        self.draft.load_model(draft_weights)

    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[RequestContext]],
        kv_cache_inputs: KVCacheInputs | None = None,
        return_n_logits: int | Sequence[int] = 1,
        **fields: Any,
    ) -> UnifiedEagleLlama3Inputs:
        """Packs the scheduled tokens that count; fields: further ones of the inputs."""
        if len(replica_batches) != 1:
            raise ValueError(f"got {len(replica_batches)} replica batches; wanted one replica")
        batch = replica_batches[0]
        rows = [context.scheduled_tokens for context in batch]
        ends = [context.num_computed + context.num_scheduled for context in batch]
        following = [[*c.tokens[end : end + 1], -1][0] for c, end in zip(batch, ends, strict=True)]
        ragged = RaggedBatch.pack(rows, self.device)
        wanted = [return_n_logits] if isinstance(return_n_logits, int) else list(return_n_logits)
        return UnifiedEagleLlama3Inputs(
            tokens=ragged.tokens,
            input_row_offsets=ragged.input_row_offsets,
            return_n_logits=torch.tensor(wanted, dtype=torch.int64),
            kv_cache_inputs=kv_cache_inputs,
            following_tokens=torch.tensor(following, dtype=torch.int64, device=self.device),
            **fields,
        )

    def prepare_next_token_inputs(
        self,
        next_tokens: torch.Tensor,
        prev_model_inputs: UnifiedEagleLlama3Inputs,
        kv_cache_inputs: KVCacheInputs | None = None,
        draft_tokens: torch.Tensor | None = None,
    ) -> UnifiedEagleLlama3Inputs:
        """next_tokens: [B] int64, each request's newest; draft_tokens: [B, G] that may follow.

        kv_cache_inputs: of the rows of both, reserved after the last step was committed.
        """
        return attrs.evolve(
            prev_model_inputs,
            tokens=next_tokens,
            input_row_offsets=torch.arange(
                next_tokens.shape[0] + 1, dtype=torch.int32, device=next_tokens.device
            ),
            return_n_logits=torch.ones(1, dtype=torch.int64),
            kv_cache_inputs=kv_cache_inputs,
            draft_tokens=draft_tokens,
            following_tokens=None,
        )

    @torch.inference_mode()
    def execute(self, model_inputs: ModelInputs) -> UnifiedEagleOutputs:
        """One step: verify, accept, take the rows that count into the draft, draft on."""
        if not isinstance(model_inputs, UnifiedEagleLlama3Inputs):
            raise ValueError(
                f"the inputs are {type(model_inputs).__name__}; wanted UnifiedEagleLlama3Inputs"
            )
        kv, blocks = model_inputs.kv_cache_inputs, model_inputs.draft_kv_blocks
        if kv is None or blocks is None:
            raise ValueError("kv_cache_inputs and draft_kv_blocks are needed and one is None")
        step = Step.of(model_inputs, kv)
        outputs = self.target.execute(self._verify_inputs(step, kv))
        accepted = self._accept(step, outputs.logits)
        hidden = outputs.hidden_states
        assert hidden is not None
        counted = step.counted_rows(accepted)
        proposals = self.draft.propose(
            DraftBatch(
                requests=[self._request(step, place, accepted) for place in range(len(step.rows))],
                features=hidden[torch.tensor(counted, device=hidden.device)],
                kv_inputs=DraftPages(kv, blocks).view,
            )
        )
        return UnifiedEagleOutputs(
            num_accepted=tuple(one.num_accepted for one in accepted),
            tokens=tuple(one.tokens for one in accepted),
            num_committed=tuple(
                len(rows) + one.num_accepted for rows, one in zip(step.rows, accepted, strict=True)
            ),
            next_draft_tokens=tuple(tuple(proposal.tokens) for proposal in proposals),
        )

    def release(self, request_id: str) -> None:
        """Both drop what they keep outside the caches."""
        self.target.release(request_id)
        self.draft.release(request_id)

    def _verify_inputs(self, step: Step, kv: KVCacheInputs) -> ModelInputs:
        contexts = [
            RequestContext(
                request_id=str(place),
                tokens=[0] * length + rows,
                num_computed=length,
                num_scheduled=len(rows) + len(drafts),
                draft_tokens=drafts,
            )
            for place, (length, rows, drafts) in enumerate(
                zip(kv.lengths, step.rows, step.drafts, strict=True)
            )
        ]
        counts = [
            len(drafts) + 1 if wants else 0
            for drafts, wants in zip(step.drafts, step.wants, strict=True)
        ]
        return self.target.prepare_initial_token_inputs([contexts], kv, counts)

    def _accept(self, step: Step, logits: torch.Tensor) -> list[Accepted]:
        """In the order of the requests; nothing for those that want no logits."""
        asked = [place for place, wants in enumerate(step.wants) if wants]
        verify = [
            VerifyRequest(
                rows=[step.sampling_row(place, i) for i in range(len(step.drafts[place]) + 1)],
                drafts=step.drafts[place],
            )
            for place in asked
        ]
        decided = self._acceptance.decide(logits, verify) if asked else []
        found = [Accepted(num_accepted=0, tokens=(), logprobs=())] * len(step.wants)
        for place, one in zip(asked, decided, strict=True):
            found[place] = one
        return found

    def _request(self, step: Step, place: int, accepted: Sequence[Accepted]) -> DraftRequest:
        one = accepted[place]
        num_new = len(step.rows[place]) + one.num_accepted
        return DraftRequest(
            request_id=str(place),
            tokens=step.tokens_after(place, one),
            num_before=step.lengths[place],
            num_new=num_new,
            width=self.config.width if one.tokens else 0,
            sampling_row=lambda drafted: step.sampling_row(place, len(one.tokens) + len(drafted)),
        )
