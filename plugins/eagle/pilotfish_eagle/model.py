"""EagleModel: EAGLE-1, EAGLE-2 and EAGLE-3 drafts as sequential proposers.

Knows: one pass of the draft, padding, loading, what is borrowed of the target. Does not know: which
rows run or how tokens are chosen (SequentialProposer).
Axis letters: B requests, T packed rows, T' rows with padding, D draft width, F features, V
vocabulary of the target.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, ClassVar, Literal

import torch

from pilotfish.errors import WeightsError
from pilotfish.invariance.row_multiples import RowMultiples
from pilotfish.invariance.rows import padded
from pilotfish.kernels.paged_attention import plan_attention
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.pass_plan import is_as_written
from pilotfish.models.decoder import Residual
from pilotfish.models.loading import load_layers
from pilotfish.speculation import DraftOutputs, DraftRows, ProposerSetup, SequentialProposer
from pilotfish.speculation.draft_vocabulary import fitted
from pilotfish.weights import LoadPlan, TensorInfo, WeightSource, plan_load
from pilotfish_eagle.config import DRAFT_CACHE, EagleConfig
from pilotfish_eagle.network import EagleNetwork, LastRows
from pilotfish_eagle.planned import EaglePass
from pilotfish_eagle.weights import weight_rules


class EagleModel(SequentialProposer):
    """A draft; made without weights.

    setup: its finalized config, and the target, whose embedding and head it borrows where it has
    none of its own (EAGLE-1 always borrows the head).
    """

    config_class: ClassVar[type[EagleConfig]] = EagleConfig
    shift: ClassVar[int] = 1

    def __init__(self, setup: ProposerSetup) -> None:
        config: EagleConfig = setup.config
        speculative = setup.pipeline_config.speculative
        super().__init__(
            cache_name=DRAFT_CACHE,
            whose=setup.pipeline_config.whose_draft,
            device=torch.device(setup.device),
            max_positions=config.max_position,
            keeps_probs=speculative is not None and speculative.acceptance == "residual",
        )
        self.config = config
        self.backend = setup.backend
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self.target: Any = setup.target
        self.network = EagleNetwork(config)
        self._row_multiple = 1
        self._head_multiple = 1
        self._attention_multiple: int | None = None
        self._passes: dict[bool, EaglePass | Literal[False]] = {}

    # Loading.

    def parameter_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every parameter with memory of its own, name -> shape; a tied one has none."""
        ties = weight_rules(self.config).ties
        shapes = self.network.parameter_shapes()
        return {name: shape for name, shape in shapes.items() if name not in ties}

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
            raise WeightsError("the method eagle got no weights; wanted the draft's")
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
        self._row_multiple, self._head_multiple = found.body, found.head
        self._attention_multiple = found.attention

    # Running.

    @torch.inference_mode()
    def forward(self, rows: DraftRows) -> DraftOutputs:
        """One pass; see SequentialProposer.

        rows.features: [T, F], or rows.prev_hidden_states: [B, D] with one row a request.
        Returns logits [B', V] float32 and prev_hidden_states of the next rows, [B', D].
        """
        run, num_padded = self._start(rows)
        planned = self._planned(rows)
        if planned is not None:
            embedded, beside = self._embed(rows.tokens), self._beside(rows)
            return self._outputs(planned(embedded, beside, run, rows.wanted_rows))
        short = num_padded - rows.tokens.shape[0]
        embedded = self._embed(torch.nn.functional.pad(rows.tokens, (0, short)))
        residual = self.network.run(embedded, self._hidden(rows, short), run)
        return self._outputs(self._finish(residual, rows.wanted_rows))

    def _planned(self, rows: DraftRows) -> EaglePass | None:
        """The pass as native calls, planned when first asked for; None on another backend.

        None too for a network that computes in a way of its own.
        """
        if self.backend.name != "native":
            return None
        combines = rows.features is not None and self.config.version == 3
        if combines not in self._passes:
            is_plain = is_as_written(self.network, EagleNetwork)
            self._passes[combines] = is_plain and EaglePass(
                self.network,
                self.backend,
                width=self.config.hidden_size,
                beside=self._beside(rows).shape[1],
                combines=combines,
                dtype=self.dtype,
                cache_dtype=rows.kv.blocks[0].dtype,
            )
        return self._passes[combines] or None

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: [T] int64 -> [T, D]."""
        own = self.network.embed_tokens
        if own is not None:  # what only the target's padding has is some row of it
            return own(tokens.clamp(max=self.config.vocab_size - 1))
        rows: torch.Tensor = self.target.embed(tokens)
        return rows

    def _beside(self, rows: DraftRows) -> torch.Tensor:
        """[T, F] or [T, D], what stands beside the rows' tokens."""
        found = rows.features if rows.features is not None else rows.prev_hidden_states
        if found is None:
            raise ValueError(
                "the rows have neither features nor prev_hidden_states; wanted one of them"
            )
        return found

    def _hidden(self, rows: DraftRows, short: int) -> torch.Tensor:
        """[T', D] of this pass's own, what the network reads beside the rows' tokens."""
        found = self._beside(rows)
        hidden = torch.nn.functional.pad(found, (0, 0, 0, short)) if short else found.clone()
        if rows.features is not None and self.config.version == 3:
            hidden = self.network.combine(hidden, self.backend)
        return hidden

    def _start(self, rows: DraftRows) -> tuple[ForwardPass, int]:
        """The shared part of a pass, and T'."""
        kv, offsets = rows.kv, rows.input_row_offsets
        plan = plan_attention(
            kv, offsets, backend=self.backend, row_multiple=self._attention_multiple
        )
        num_rows = rows.tokens.shape[0]
        num_padded = padded(num_rows, self._row_multiple)
        # A row stands at the position of the feature it reads, one before its token's.
        positions = torch.arange(num_rows, device=offsets.device)
        starts = kv.cache_lengths.long() - offsets[:-1]
        positions += starts.repeat_interleave(offsets.diff(), output_size=num_rows)
        positions = torch.nn.functional.pad(positions, (0, num_padded - num_rows))
        cos, sin = self.network.rotary(positions, None, self.backend)
        run = ForwardPass(
            backend=self.backend,
            cos=cos,
            sin=sin,
            plan=plan,
            caches=kv.blocks,
            write_slots=kv.write_slots,
        )
        return run, num_padded

    def _finish(self, residual: Residual, wanted: list[int]) -> LastRows:
        """Of some rows of the pass."""
        count = len(wanted)
        if not count:
            return LastRows(residual.x[:0], None)
        filled = wanted + [wanted[-1]] * (padded(count, self._head_multiple) - count)
        whole = residual.rows(torch.tensor(filled, device=self.device))
        return self.network.finish(whole.sum(self.backend), self.backend).first(count)

    def _outputs(self, last: LastRows) -> DraftOutputs:
        """Logits, and the hidden states that the next pass reads."""
        network, normed = self.network, last.normed
        if not len(last.whole):
            nothing = torch.empty(0, self.config.target_vocab_size, device=self.device)
            return DraftOutputs(logits=nothing)
        if last.logits is None:
            logits = self.target.lm_head(last.whole if normed is None else normed)
        else:
            logits = last.logits.float()
        if network.vocabulary is not None:
            logits = network.vocabulary(logits)
        logits = fitted(logits, self.config.target_vocab_size)
        prev_hidden_states = normed if network.recycles_normed else last.whole
        return DraftOutputs(logits=logits, prev_hidden_states=prev_hidden_states)
