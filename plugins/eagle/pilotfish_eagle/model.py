"""EagleModel: EAGLE-1, EAGLE-2 and EAGLE-3 drafts as sequential proposers.

Knows: one pass of the draft. Does not know: loading and what is borrowed of the target
(DraftModel), which rows run or how tokens are chosen (SequentialProposer).
Axis letters: B requests, T packed rows, T' rows with padding, R rows that are wanted, D draft
width, F features, V vocabulary of the target.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from pilotfish.layers.pass_plan import is_as_written
from pilotfish.speculation import DraftOutputs, DraftRows, ProposerSetup, SequentialProposer
from pilotfish.speculation.draft_model import DraftModel
from pilotfish.weights import WeightRules
from pilotfish_eagle.config import EagleConfig
from pilotfish_eagle.network import EagleNetwork, LastRows
from pilotfish_eagle.planned import EaglePass
from pilotfish_eagle.weights import weight_rules


class EagleModel(DraftModel, SequentialProposer):
    """A draft; made without weights. EAGLE-1 always borrows the target's head.

    setup: its finalized config, and the target.
    """

    config_class: ClassVar[type[EagleConfig]] = EagleConfig
    shift: ClassVar[int] = 1
    config: EagleConfig
    network: EagleNetwork

    def __init__(self, setup: ProposerSetup) -> None:
        super().__init__(**self.take_setup(setup))
        self.network = EagleNetwork(self.config, self.backend)

    def weight_rules(self) -> WeightRules:
        """Of every published spelling."""
        return weight_rules(self.config)

    @torch.inference_mode()
    def forward(self, rows: DraftRows) -> DraftOutputs:
        """One pass; see SequentialProposer.

        rows.features: [T, F], or rows.prev_hidden_states: [B, D] with one row a request.
        Returns logits [B', V] float32 and prev_hidden_states of the next rows, [B', D].
        """
        # A row stands at the position of the feature it reads, one before its token's.
        network, run = self.network, self.network.start(rows.kv, rows.input_row_offsets)
        combines = rows.features is not None and self.config.version == 3
        planned = self._planned(combines)
        if planned is not None:
            embedded, beside = self.embed(rows.tokens), self._beside(rows)
            return self._outputs(planned(embedded, beside, run, rows.wanted_rows))
        hidden = network.padded(self._beside(rows))
        if combines:
            hidden = network.combine(hidden)
        residual = network.run(self.embed(network.padded(rows.tokens)), hidden, run)
        wanted = torch.tensor(rows.wanted_rows, dtype=torch.int64, device=self.device)
        whole = residual.rows(wanted).sum(self.backend)
        normed = None if network.norm is None else network.norm(whole, self.backend)
        return self._outputs(LastRows(whole, normed))

    def plan_pass(self) -> None:
        """Lays its passes down as native calls, where they may be."""
        for combines in {False, self.config.version == 3}:
            self._planned(combines)

    def _planned(self, combines: bool) -> EaglePass | None:
        """The pass as native calls; see DraftNetwork. combines: it reads features."""

        def make() -> EaglePass | Literal[False]:
            return is_as_written(self.network, EagleNetwork) and EaglePass(
                self.network, combines=combines, dtype=self.dtype
            )

        return self.network.planned(combines, make)

    def _beside(self, rows: DraftRows) -> torch.Tensor:
        """[T, F] or [T, D], what stands beside the rows' tokens."""
        found = rows.features if rows.features is not None else rows.prev_hidden_states
        if found is None:
            raise ValueError(
                "the rows have neither features nor prev_hidden_states; wanted one of them"
            )
        return found

    def _outputs(self, last: LastRows) -> DraftOutputs:
        """Logits, and the hidden states that the next pass reads."""
        if not len(last.whole):
            nothing = torch.empty(0, self.config.target_vocab_size, device=self.device)
            return DraftOutputs(logits=nothing)
        read = last.whole if last.normed is None else last.normed
        logits = self.head(read) if last.logits is None else last.logits.float()
        return DraftOutputs(
            logits=self.over_target(logits),
            prev_hidden_states=last.normed if self.config.feeds_normed_states else last.whole,
        )
