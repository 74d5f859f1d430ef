"""UnifiedModel: a target and its draft as one model: verify, accept and draft in one `execute`.

Knows: how a step is put together for callers that run steps themselves. Does not know: networks,
rules of acceptance, or schedules; `LLM(model, draft=...)` does without this module.
Axis letters: B requests, T packed tokens, G drafted tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import attrs
import torch

from pilotfish.batch import NO_DRAFT, RequestContext
from pilotfish.config import PipelineConfig
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.device import current_device
from pilotfish.models.inputs import PackedBatch, initial_inputs
from pilotfish.parallel.group import Group, Groups
from pilotfish.plugins import load_registry
from pilotfish.protocols import ModelInputs, PipelineModel, ReturnLogits
from pilotfish.protocols.optional import of_model
from pilotfish.registry import Registry
from pilotfish.sampling import Sampler
from pilotfish.sampling.bitmask import apply_bitmask
from pilotfish.speculation.acceptance import Accepted
from pilotfish.speculation.acceptance_rules import acceptance_rule
from pilotfish.speculation.proposer import (
    DraftRequest,
    Proposer,
    ProposerSetup,
    shared_calls_of,
)
from pilotfish.speculation.step import propose, verify
from pilotfish.speculation.unified.config import UnifiedConfig
from pilotfish.speculation.unified.inputs import NOTHING, UnifiedInputs, UnifiedOutputs
from pilotfish.speculation.unified.step import DraftPages, Step
from pilotfish.state import CacheParams, KVCacheInputs, StateSpec
from pilotfish.weights import WeightSource


class UnifiedModel:
    """Target and draft; made without weights.

    Logits and hidden states that `execute` needs are asked of the target here, so there are no
    modes to choose. A subclass names `config_class` and, if it adds fields, `inputs_class`; with
    inputs for the target among them it overrides `target_inputs`.
    """

    config_class: ClassVar[type[UnifiedConfig]]
    inputs_class: ClassVar[type[UnifiedInputs]] = UnifiedInputs
    return_logits = ReturnLogits.VARIABLE

    def __init__(
        self,
        pipeline_config: PipelineConfig,
        config: UnifiedConfig,
        backend: KernelBackend,
        *,
        device: torch.device,
        registry: Registry | None = None,
    ) -> None:
        registry = registry or load_registry()
        route = config.route(pipeline_config, registry)
        self.config = config
        self.device = torch.device(device)
        self.target: PipelineModel = route.model_class()(
            pipeline_config,
            config.target,
            backend,
            device=self.device,
            return_logits=self.return_logits,
            return_hidden_states=config.draft.return_hidden_states,
            aux_hidden_state_layers=config.draft.aux_hidden_state_layers,
        )
        self.draft: Proposer = route.speculator_model_class()(
            ProposerSetup(
                pipeline_config=pipeline_config,
                config=config.draft,
                backend=backend,
                device=self.device,
                target=self.target,
                registry=registry,
            )
        )
        self._acceptance = acceptance_rule(config.speculative_config, Sampler(), backend)
        self.groups = Groups()

    @classmethod
    def calculate_max_seq_len(cls, pipeline_config: PipelineConfig, huggingface_config: Any) -> int:
        """The longest context in tokens. huggingface_config: of the target."""
        model = attrs.evolve(pipeline_config.model, huggingface_config=huggingface_config)
        return cls.config_class.initialize(pipeline_config, model).get_max_seq_len()

    def shard(self, groups: Groups) -> None:
        """Leaves this rank its part of target and draft; once, before `load_model`.

        A draft that ranks cannot share is whole on each. Given the same inputs, all of them make
        the same step. Raises ConfigError naming the layer that cannot be split so.
        """
        self.groups = attrs.evolve(groups, logits_everywhere=True)
        of_model(self.target).shard(self.groups)
        if not groups.within_replica.is_trivial and shared_calls_of(type(self.draft)):
            of_model(self.draft).shard(self.groups.within_replica)

    @property
    def signal_buffers(self) -> Group:
        """The ranks of this replica, through which its layers tell one another their parts."""
        return self.groups.tensor

    @property
    def ep_inputs(self) -> Group:
        """The ranks that share experts, through which rows go to them."""
        return self.groups.expert

    def get_kv_params(self) -> CacheParams:
        """The geometry of the target's paged cache, of this rank's part."""
        return self.config.get_kv_params().of_rank(self.groups.tensor.size)

    @property
    def state(self) -> tuple[StateSpec, ...]:
        """The caches of both, of this rank's part."""
        of_draft = self.config.draft.get_state_specs()
        size = self.groups.tensor.size if shared_calls_of(type(self.draft)) else 1
        return (*self.target.state, *(spec.of_rank(size) for spec in of_draft))

    def load_model(self, weights: WeightSource, draft_weights: WeightSource) -> None:
        """Fills both. Raises WeightsError naming tensors that do not fit."""
        self.target.load_model(weights)
        of_model(self.target).plan_pass()
        self.draft.load_model(draft_weights)
        of_model(self.draft).plan_pass()

    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[RequestContext]],
        kv_cache_inputs: KVCacheInputs | None = None,
        return_n_logits: int | Sequence[int] = 1,
        **fields: Any,
    ) -> UnifiedInputs:
        """Packs the scheduled tokens that count; fields: further ones of the inputs.

        replica_batches: see `PipelineModel`.
        """
        packed = PackedBatch.of(replica_batches, self.groups.data)
        batch = packed.contexts
        ends = [context.num_computed + context.num_scheduled for context in batch]
        following = [[*c.tokens[end : end + 1], -1][0] for c, end in zip(batch, ends, strict=True)]
        return initial_inputs(
            self.inputs_class,
            batch,
            kv_cache_inputs,
            return_n_logits,
            device=self.device,
            data_parallel_splits=packed.splits,
            following_tokens=torch.tensor(following, dtype=torch.int64, device=self.device),
            **fields,
        )

    def prepare_next_token_inputs(
        self,
        next_tokens: torch.Tensor,
        prev_model_inputs: UnifiedInputs,
        kv_cache_inputs: KVCacheInputs | None = None,
        draft_tokens: torch.Tensor | None = None,
    ) -> UnifiedInputs:
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
    def execute(self, model_inputs: ModelInputs) -> UnifiedOutputs:
        """One step: verify, accept, take the rows that count into the draft, draft on."""
        with current_device(self.target.device):
            return self._execute(model_inputs)

    def _execute(self, model_inputs: ModelInputs) -> UnifiedOutputs:
        if not isinstance(model_inputs, self.inputs_class):
            raise ValueError(
                f"the inputs are {type(model_inputs).__name__}; wanted "
                f"{self.inputs_class.__name__}: make them with prepare_initial_token_inputs"
            )
        if not model_inputs.num_requests:
            self.target.execute(model_inputs)  # others' rows go through its experts
            return NOTHING
        kv, blocks = model_inputs.kv_cache_inputs, model_inputs.draft_kv_blocks
        if kv is None or blocks is None:
            raise ValueError("kv_cache_inputs and draft_kv_blocks are needed and one is None")
        step = Step.of(model_inputs, kv)
        outputs = self.target.execute(self._verify_inputs(step, kv, model_inputs))
        logits = outputs.logits
        if model_inputs.token_bitmasks is not None:
            logits = apply_bitmask(logits, model_inputs.token_bitmasks)
        accepted = self._accept(step, logits, outputs.logit_offsets.tolist()[1:])
        found = propose(
            self.draft,
            [self._request(step, place, one) for place, one in enumerate(accepted)],
            row_counts=kv.row_counts,
            hidden_states=outputs.hidden_states,
            kv_inputs=DraftPages(kv, blocks).view,
            vocab_size=logits.shape[1],
        )
        proposals = [proposal or NO_DRAFT for proposal in found]
        return UnifiedOutputs(
            num_accepted=tuple(one.num_accepted for one in accepted),
            tokens=tuple(one.tokens for one in accepted),
            num_committed=tuple(
                len(rows) + one.num_accepted for rows, one in zip(step.rows, accepted, strict=True)
            ),
            next_draft_tokens=tuple(tuple(proposal.tokens) for proposal in proposals),
            next_draft_probs=tuple(proposal.probs for proposal in proposals),
        )

    def release(self, request_id: str) -> None:
        """Both drop what they keep outside the caches."""
        self.target.release(request_id)
        self.draft.release(request_id)

    def _verify_inputs(
        self, step: Step, kv: KVCacheInputs, model_inputs: UnifiedInputs
    ) -> ModelInputs:
        contexts = [
            RequestContext(
                request_id=str(place),
                tokens=[0] * length + rows,
                num_computed=length,
                num_scheduled=len(rows) + len(proposal.tokens),
                draft=proposal,
            )
            for place, (length, rows, proposal) in enumerate(
                zip(kv.lengths, step.rows, step.drafts, strict=True)
            )
        ]
        counts = [
            len(proposal.tokens) + 1 if wants else 0
            for proposal, wants in zip(step.drafts, step.wants, strict=True)
        ]
        made = self.target_inputs(contexts, kv, counts, model_inputs)
        return attrs.evolve(made, data_parallel_splits=model_inputs.data_parallel_splits)

    def target_inputs(
        self,
        contexts: Sequence[RequestContext],
        kv_cache_inputs: KVCacheInputs,
        return_n_logits: Sequence[int],
        model_inputs: UnifiedInputs,
    ) -> ModelInputs:
        """What the target executes. contexts: the rows to verify; tokens before them are zeros."""
        del model_inputs
        return self.target.prepare_initial_token_inputs(
            [contexts], kv_cache_inputs, return_n_logits
        )

    def _accept(self, step: Step, logits: torch.Tensor, ends: Sequence[int]) -> list[Accepted]:
        """In the order of the requests; nothing for those that want no logits."""
        asked = [place for place, wants in enumerate(step.wants) if wants]
        decided = verify(
            self._acceptance,
            logits,
            [step.verify_request(place) for place in asked],
            [ends[place] for place in asked],
        )
        found = [Accepted()] * len(step.wants)
        for place, one in zip(asked, decided, strict=True):
            if one.error is not None:
                raise one.error
            found[place] = one
        return found

    def _request(self, step: Step, place: int, one: Accepted) -> DraftRequest:
        if not one.tokens and step.following[place] < 0 and self.config.draft.lookahead:
            raise ValueError(
                f"request {place} wants no logits and following_tokens is not given; wanted the "
                "prompt's next token, which the draft's last row reads"
            )
        return step.draft_request(place, one, self.config.width)
