"""SmallModelProposer: an ordinary model that drafts, run by the sequential driver.

Source: speculative decoding (Leviathan et al. 2023, Chen et al. 2023). Knows: how a model's own
inputs are made of the driver's rows. Does not know: architectures.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from pilotfish.batch import RequestContext
from pilotfish.protocols import PipelineModel, ReturnLogits
from pilotfish.speculation import DraftOutputs, DraftRows, ProposerSetup, SequentialProposer
from pilotfish.weights import WeightSource
from pilotfish_small_model.config import LEAF, SmallModelConfig


class SmallModelProposer(SequentialProposer):
    """Row i reads token i, as in the model alone."""

    shift: ClassVar[int] = 0
    config_class: ClassVar[type[Any]] = SmallModelConfig

    def __init__(self, setup: ProposerSetup) -> None:
        config: SmallModelConfig = setup.config
        speculative = setup.pipeline_config.speculative
        super().__init__(
            leaf=LEAF,
            whose=setup.pipeline_config.whose_draft,
            device=setup.device,
            max_positions=config.draft.get_max_seq_len(),
            keeps_laws=speculative is not None and speculative.acceptance == "residual",
        )
        self._model: PipelineModel = config.model_class()(
            setup.pipeline_config,
            config.draft,
            setup.backend,
            device=setup.device,
            return_logits=ReturnLogits.VARIABLE,
        )

    def load_model(self, weights: WeightSource | None) -> None:
        """Loads the draft as a model of its own."""
        assert weights is not None, "the method reads a draft"
        self._model.load_model(weights)

    def forward(self, rows: DraftRows) -> DraftOutputs:
        """One pass of the model over the rows."""
        flat, ends = rows.tokens.tolist(), rows.input_row_offsets.tolist()
        contexts = [
            RequestContext(request_id=name, tokens=flat[start:end], num_scheduled=end - start)
            for name, start, end in zip(rows.request_ids, ends[:-1], ends[1:], strict=True)
        ]
        inputs = self._model.prepare_initial_token_inputs(
            [contexts], rows.kv, [int(wanted) for wanted in rows.wanted]
        )
        outputs: torch.Tensor = self._model.execute(inputs).logits
        return DraftOutputs(logits=outputs)
