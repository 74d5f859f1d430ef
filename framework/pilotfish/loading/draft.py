"""PreparedDraft: the drafter, decided before weights are read.

Knows: what a draft and the user's options must agree on, and whether ranks share it. Does not know:
any drafter, or targets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import attrs

from pilotfish.config import PipelineConfig, SpeculativeConfig
from pilotfish.contracts import check_attributes, check_methods
from pilotfish.errors import ConfigError, PluginError
from pilotfish.loading.share import Share
from pilotfish.parallel.group import Groups
from pilotfish.protocols import ReturnHiddenStates
from pilotfish.protocols.optional import of_model
from pilotfish.registry import Registry, Route
from pilotfish.speculation import Proposer, ProposerSetup, SpeculatorConfig, WidthPolicy
from pilotfish.speculation.proposer import shared_calls_of
from pilotfish.speculation.width import check_width, width_policy
from pilotfish.state import SlotStateSpec, StateSpec
from pilotfish.weights import Checkpoint, WeightSource

_MODES = (ReturnHiddenStates.NONE, ReturnHiddenStates.ALL_NORMALIZED, ReturnHiddenStates.SELECTED)


@attrs.frozen(kw_only=True)
class PreparedDraft:
    """The drafter, decided before weights are read.

    config: its SpeculatorConfig, complete. model_class: of the Proposer. weights: unread; None for
    a method without a draft. policy: how much is drafted. speculative: the user's options.
    registry: what it is made with. is_block: whether it proposes all its tokens in one pass.
    share: what this rank has of it; None where nothing is split, or the first rank runs it whole.
    """

    config: SpeculatorConfig
    model_class: Callable[[ProposerSetup], Proposer]
    weights: WeightSource | None
    policy: WidthPolicy
    speculative: SpeculativeConfig
    registry: Registry
    is_block: bool = False
    share: Share | None = None

    @property
    def state_specs(self) -> tuple[StateSpec, ...]:
        """Its caches, of this rank's part."""
        specs = tuple(self.config.get_state_specs())
        if self.share is None:
            return specs
        return tuple(spec.of_rank(self.share.groups.tensor.size) for spec in specs)

    def make(self, setup: ProposerSetup, groups: Groups) -> Proposer:
        """The drafter without weights, this rank's part of it.

        Raises ConfigError naming the draft where these ranks cannot share it.
        """
        proposer = self.model_class(setup)
        if self.share is not None:
            _shard(proposer, setup, groups.within_replica)
        return proposer

    def planned(self, setup: ProposerSetup, groups: Groups) -> Self:
        """The same with its share; without one where ranks cannot share it, so that the first runs
        it whole. Raises WeightsError for tensors that do not fit; reads no weights.

        Where the text depends on what a draft's probabilities are (acceptance "residual"), a draft
        that these ranks cannot share raises ConfigError: others might.
        """
        proposer, groups = self.model_class(setup), groups.within_replica
        is_shared = not groups.is_trivial and bool(shared_calls_of(type(proposer)))
        try:
            if is_shared:
                _shard(proposer, setup, groups)
        except ConfigError:
            if self.speculative.acceptance == "residual":
                raise
            proposer, is_shared = self.model_class(setup), False
        more, plan, infos = of_model(proposer), None, {}
        if self.weights is not None:
            infos = dict(self.weights.infos)
            plan = more.plan_load(infos)
        if not is_shared:
            return self
        share = Share.of(
            proposer,
            groups,
            plan=plan,
            infos=more.without_ignored(infos),
            staying=more.staying(infos),
            dtype=setup.pipeline_config.runtime.dtype,
        )
        return attrs.evolve(self, share=share)

    @property
    def num_scratch_rows(self) -> int:
        """Rows past the last one of a pass that drafting may write."""
        return self.config.num_scratch_rows(self.policy.most)

    def num_logit_rows(self, max_batch_size: int, max_batch_tokens: int) -> int:
        """Rows of the draft's own logits that live at once: a step's, within a pass's rows.

        A block has all of its tokens'; one token a pass has one row a request, unless the laws that
        tokens were drawn from are kept. None without a network.
        """
        if self.weights is None:
            return 0
        keeps_all = self.is_block or self.speculative.acceptance == "residual"
        return min(max_batch_size * (self.policy.most if keeps_all else 1), max_batch_tokens)


def _shard(proposer: Proposer, setup: ProposerSetup, groups: Groups) -> None:
    try:
        of_model(proposer).shard(groups)
    except ConfigError as error:
        raise ConfigError(f"{setup.pipeline_config.whose_draft}: {error}") from error


def prepare_draft(
    route: Route,
    pipeline_config: PipelineConfig,
    options: SpeculativeConfig,
    checkpoint: Checkpoint | None,
    *,
    registry: Registry,
    vocab_size: int,
) -> PreparedDraft:
    """Makes the drafter's config and checks it; reads no weights."""
    config_class: Any = route.speculator_config_class()
    check_methods(config_class, SpeculatorConfig, f"the config of the method {options.method!r}")
    model_class = route.speculator_model_class()
    check_methods(model_class, Proposer, f"the drafter of the method {options.method!r}")
    config = config_class.initialize(pipeline_config, registry=registry)
    _check(config, f"what the config of the method {options.method!r} initializes")
    weights = None
    if checkpoint is not None:
        weights = checkpoint.weights()
        config = config.finalize(checkpoint.huggingface_config, weights.infos)
    for token in options.thinking_tokens or ():
        if token >= vocab_size:
            raise ConfigError(
                f"thinking_tokens has id {token}; wanted ids from 0 to {vocab_size - 1}, the "
                "model's vocabulary"
            )
    most = config.max_draft_tokens
    check_width(options, most)
    return PreparedDraft(
        config=config,
        model_class=model_class,
        weights=weights,
        policy=width_policy(options, most),
        speculative=options,
        registry=registry,
        is_block=route.speculator is not None and route.speculator.driver == "block",
    )


def _check(config: Any, what: str) -> None:
    """Raises PluginError where a drafter's config asks for what no target and no engine gives."""
    check_attributes(config, SpeculatorConfig, what)
    wishes, mode = tuple(config.aux_hidden_state_layers), config.return_hidden_states
    if mode not in _MODES or (mode is ReturnHiddenStates.SELECTED) != bool(wishes):
        raise PluginError(
            f"{what} has return_hidden_states {mode!r} and aux_hidden_state_layers {wishes}; "
            "wanted ReturnHiddenStates.NONE or ALL_NORMALIZED without any, or SELECTED with some"
        )
    slots = [spec.name for spec in config.get_state_specs() if isinstance(spec, SlotStateSpec)]
    if slots:
        raise PluginError(
            f"{what} declares the slots {', '.join(slots)}; wanted paged caches alone: no drafter "
            "is given features of rows that a prefix hit skips, so other state cannot be restored"
        )
