"""DFlashProposer: a draft over its target; DFlashLlama3Model: the draft alone, which refuses.

Knows: the two passes of a step, factors of the target's embedding and logits. Does not know:
loading and what is borrowed (DraftModel), which rows run or how tokens are chosen (BlockProposer).
Axis letters: T packed rows, R rows of logits, D draft width, V vocabulary of the target.
"""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

import torch

from pilotfish.errors import RouteError
from pilotfish.kernels.elementwise import tanh
from pilotfish.protocols import ModelInputs
from pilotfish.speculation import BlockProposer, BlockRows, ContextRows, ProposerSetup
from pilotfish.speculation.draft_model import DraftModel
from pilotfish.weights import WeightRules, WeightSource
from pilotfish_dflash.config import DFlashConfig
from pilotfish_dflash.network import DFlashLlama3
from pilotfish_dflash.weights import weight_rules


class DFlashProposer(DraftModel, BlockProposer):
    """A draft; made without weights. setup: its finalized config, and the target."""

    config_class: ClassVar[type[DFlashConfig]] = DFlashConfig
    config: DFlashConfig
    network: DFlashLlama3

    def __init__(self, setup: ProposerSetup) -> None:
        config: DFlashConfig = setup.config
        super().__init__(
            **self.take_setup(setup),
            mask_token_id=config.mask_token_id,
            samples_anchor=config.samples_anchor,
        )
        self.network = DFlashLlama3(config, backend=self.backend)

    def weight_rules(self) -> WeightRules:
        """Of every published spelling."""
        return weight_rules(self.config)

    def plan_pass(self) -> None:
        """Lays its passes down as native calls, where they may be."""
        self.network.plan_pass()

    @torch.inference_mode()
    def take_in(self, rows: ContextRows) -> None:
        """As BlockProposer: fc, its norm, and all layers' keys and values from one projection."""
        self.network.take_in(
            rows.features, rows.input_row_offsets, rows.kv, rows.num_started_tokens
        )

    @torch.inference_mode()
    def forward(self, rows: BlockRows) -> torch.Tensor:
        """As BlockProposer: [R, V] float32."""
        hidden = self.network.forward_block(
            self.embed(rows.tokens),
            rows.kv,
            rows.input_row_offsets,
            rows.num_started_tokens,
            wanted=rows.wanted_rows,
        )
        return self.logits(hidden)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: [T] int64 -> [T, D], what enters the first layer."""
        rows, factor = super().embed(tokens), self.config.embedding_factor
        return rows if factor == 1.0 else rows * factor

    def logits(self, normed: torch.Tensor) -> torch.Tensor:
        """normed: [R, D] after the draft's norm -> [R, V] float32."""
        config, logits = self.config, self.head(normed)
        if config.logit_factor != 1.0:
            logits = logits * config.logit_factor
        if config.logit_softcap is not None:
            capped = tanh(logits / config.logit_softcap, backend=self.backend)
            logits = config.logit_softcap * capped
        return self.over_target(logits)


class DFlashLlama3Model:
    """The place of a draft among models. A draft reads its target's hidden states: alone it cannot
    run, and every use raises RouteError naming the route.
    """

    config_class: ClassVar[type[DFlashConfig]] = DFlashConfig

    def __init__(self, *arguments: Any, **options: Any) -> None:
        del arguments, options

    def load_model(self, weights: WeightSource) -> NoReturn:
        """Raises RouteError."""
        del weights
        raise _alone()

    def execute(self, model_inputs: ModelInputs | None = None) -> NoReturn:
        """Raises RouteError."""
        del model_inputs
        raise _alone()

    def __getattr__(self, name: str) -> NoReturn:
        """Raises RouteError; AttributeError for what Python itself looks for."""
        raise AttributeError(name) if name.startswith("_") else _alone()

    @classmethod
    def calculate_max_seq_len(cls, pipeline_config: Any, huggingface_config: Any) -> NoReturn:
        """Raises RouteError."""
        del pipeline_config, huggingface_config
        raise _alone()


def _alone() -> RouteError:
    return RouteError(
        "a DFlash draft reads the hidden states of its target and cannot run alone; give the "
        "target as the model and the draft beside it: --draft DRAFT --speculative dflash, or "
        "registry.route(TARGET, 'dflash', 'DFlashDraftModel')"
    )
