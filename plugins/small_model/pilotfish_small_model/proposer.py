"""SmallModelProposer: an ordinary model that drafts, run by the sequential driver.

Source: speculative decoding (Leviathan et al. 2023, Chen et al. 2023). Knows: how a model's own
inputs are made of the driver's rows. Does not know: architectures.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch

from pilotfish.batch import RequestContext
from pilotfish.parallel.group import Groups
from pilotfish.protocols import PipelineModel, ReturnLogits
from pilotfish.protocols.optional import of_model
from pilotfish.speculation import DraftOutputs, DraftRows, ProposerSetup, SequentialProposer
from pilotfish.speculation.draft_vocabulary import fitted
from pilotfish.weights import TensorInfo, WeightSource
from pilotfish_small_model.config import DRAFT_CACHE, SmallModelConfig


class SmallModelProposer(SequentialProposer):
    """Row i reads token i, as in the model alone."""

    shift: ClassVar[int] = 0
    config_class: ClassVar[type[Any]] = SmallModelConfig

    def __init__(self, setup: ProposerSetup) -> None:
        config: SmallModelConfig = setup.config
        self._config = config
        speculative = setup.pipeline_config.speculative
        super().__init__(
            cache_name=DRAFT_CACHE,
            whose=setup.pipeline_config.whose_draft,
            device=setup.device,
            max_positions=config.draft.get_max_seq_len(),
            keeps_probs=speculative is not None and speculative.acceptance == "residual",
        )
        self._model: PipelineModel = config.model_class()(
            setup.pipeline_config,
            config.draft,
            setup.backend,
            device=setup.device,
            return_logits=ReturnLogits.VARIABLE,
        )

    @property
    def network(self) -> object:
        """The draft's network; None for a model that is none of layers."""
        return getattr(self._model, "network", None)

    def shard(self, groups: Groups) -> None:
        """As the draft's architecture is shared. Raises ConfigError where it is not."""
        of_model(self._model).shard(groups)

    def plan_load(self, infos: Mapping[str, TensorInfo]) -> object:
        """As a model's. Raises WeightsError naming tensors that do not fit the draft's
        architecture.
        """
        return of_model(self._model).plan_load(infos)

    def without_ignored(self, infos: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
        """As a model's."""
        return of_model(self._model).without_ignored(infos)

    def staying(self, infos: Mapping[str, TensorInfo]) -> Collection[str]:
        """As a model's."""
        return of_model(self._model).staying(infos)

    def load_model(self, weights: WeightSource | None) -> None:
        """Loads the draft as a model of its own."""
        assert weights is not None, "the method reads a draft"
        self._model.load_model(weights)

    def plan_pass(self) -> None:
        """Lays the draft's pass down, as a model's of its own."""
        of_model(self._model).plan_pass()

    def forward(self, rows: DraftRows) -> DraftOutputs:
        """One pass of the model over the rows."""
        last = self._config.vocab_size - 1  # in the place of ids that only the target's padding has
        flat = [min(token, last) for token in rows.tokens.tolist()]
        ends = rows.input_row_offsets.tolist()
        contexts = [
            RequestContext(request_id=name, tokens=flat[start:end], num_scheduled=end - start)
            for name, start, end in zip(rows.request_ids, ends[:-1], ends[1:], strict=True)
        ]
        inputs = self._model.prepare_initial_token_inputs(
            [contexts], rows.kv, [int(wanted) for wanted in rows.wanted]
        )
        outputs: torch.Tensor = self._model.execute(inputs).logits
        return DraftOutputs(logits=fitted(outputs, self._config.target_vocab_size))
