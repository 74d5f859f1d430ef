"""DFlashProposer: a draft over its target; DFlashLlama3Model: the draft alone, which refuses.

Knows: loading, padding of the head, what is borrowed of the target. Does not know: which rows run
or how tokens are chosen (BlockProposer).
Axis letters: T packed rows, R rows of logits, D draft width, V vocabulary of the target.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, ClassVar, NoReturn

import torch

from pilotfish.errors import RouteError, WeightsError
from pilotfish.invariance.row_multiples import RowMultiples
from pilotfish.invariance.rows import padded
from pilotfish.kernels.elementwise import tanh
from pilotfish.models.loading import load_layers
from pilotfish.protocols import ModelInputs
from pilotfish.speculation import BlockProposer, BlockRows, ContextRows, ProposerSetup
from pilotfish.speculation.draft_vocabulary import fitted
from pilotfish.weights import LoadPlan, TensorInfo, WeightSource, plan_load
from pilotfish_dflash.config import DRAFT_CACHE, DFlashConfig
from pilotfish_dflash.network import DFlashLlama3
from pilotfish_dflash.weights import weight_rules


class DFlashProposer(BlockProposer):
    """A draft; made without weights.

    setup: its finalized config, and the target, whose embedding and head it borrows where it has
    none of its own.
    """

    config_class: ClassVar[type[DFlashConfig]] = DFlashConfig

    def __init__(self, setup: ProposerSetup) -> None:
        config: DFlashConfig = setup.config
        speculative = setup.pipeline_config.speculative
        super().__init__(
            cache_name=DRAFT_CACHE,
            whose=setup.pipeline_config.whose_draft,
            device=torch.device(setup.device),
            mask_token_id=config.mask_token_id,
            samples_anchor=config.samples_anchor,
            max_positions=config.max_position,
            keeps_probs=speculative is not None and speculative.acceptance == "residual",
        )
        self.config = config
        self.backend = setup.backend
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self.target: Any = setup.target
        self.network = DFlashLlama3(config, backend=setup.backend)
        self._head_multiple = 1

    # Loading.

    def parameter_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every parameter, name -> shape."""
        return self.network.parameter_shapes()

    def plan_load(self, infos: Mapping[str, TensorInfo]) -> LoadPlan:
        """Which tensors fill which parameter. Raises WeightsError naming what does not fit."""
        return plan_load(weight_rules(self.config), infos, self.network.parameter_shapes())

    def load_model(
        self,
        weights: WeightSource | None,
        known: MutableMapping[Any, int | None] | None = None,
    ) -> None:
        """Fills every parameter, and finds the row multiple that holds on this machine.

        known: results of probes by shape, read and filled; share one mapping between models.
        Raises WeightsError naming missing, extra and misshapen tensors before any is read.
        """
        if weights is None:
            raise WeightsError("the method dflash got no weights; wanted the draft's")
        load_layers(
            self.network,
            self.plan_load(weights.infos),
            weights,
            self.dtype,
            backend=self.backend,
            device=self.device,
        )
        vocabulary = self.network.vocabulary
        for name in weights.infos:
            if vocabulary is not None and name.removeprefix("model.") == "t2d":
                vocabulary.check_mask(weights.load(name))
        self.network.rotary.to(self.device)
        self._probe({} if known is None else known)

    def _probe(self, known: MutableMapping[Any, int | None]) -> None:
        """Row multiples; where none holds, rows are not padded: the text does not depend on it."""
        config = self.config
        heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        found = RowMultiples.probe(
            self.network,
            self.network.lm_head,
            heads,
            backend=self.backend,
            known=known,
        )
        self.network.row_multiple, self._head_multiple = found.body, found.head
        self.network.attention_multiple = found.attention

    # Running.

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
        own = self.network.embed_tokens
        rows: torch.Tensor
        if own is None:
            rows = self.target.embed(tokens)
        else:  # what only the target's padding has is some row of it
            rows = own(tokens.clamp(max=self.config.vocab_size - 1))
        return rows if self.config.embedding_factor == 1.0 else rows * self.config.embedding_factor

    def logits(self, normed: torch.Tensor) -> torch.Tensor:
        """normed: [R, D] after the draft's norm -> [R, V] float32."""
        config, head = self.config, self.network.lm_head
        if head is None:
            logits: torch.Tensor = self.target.lm_head(normed)
        else:
            count = normed.shape[0]
            short = padded(count, self._head_multiple) - count
            rows = torch.nn.functional.pad(normed, (0, 0, 0, short))
            logits = head(rows, self.backend).float()[:count]
        if config.logit_factor != 1.0:
            logits = logits * config.logit_factor
        if config.logit_softcap is not None:
            capped = tanh(logits / config.logit_softcap, backend=self.backend)
            logits = config.logit_softcap * capped
        if self.network.vocabulary is not None:
            logits = self.network.vocabulary(logits)
        return fitted(logits, self.config.target_vocab_size)


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
