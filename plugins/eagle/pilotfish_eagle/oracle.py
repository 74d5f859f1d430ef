"""What an EAGLE draft should draft: EAGLE-1 and EAGLE-3 from the papers, every row recomputed.

Knows: a draft's folder and plain torch; the target is transformers'. Does not know: EagleModel, nor
how EagleConfig reads. Axis letters: T rows, D draft width, G drafted tokens, V the target's
vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pilotfish.testing.draft_oracle import (
    DefinedOracle,
    DraftOracle,
    DraftTarget,
    Turn,
    spread,
    tensors_of,
)
from pilotfish.testing.naive_draft import NaiveNetwork

IDS = "eagle_aux_hidden_state_layer_ids"


def eagle_oracle(target: Path, draft: Path | None) -> DraftOracle:
    """What `SpeculatorSpec.draft_oracle` names."""
    assert draft is not None, "the method reads a draft"
    return DefinedOracle(lambda dtype: NaiveDraft(draft, DraftTarget(target, dtype)))


class NaiveDraft(NaiveNetwork):
    """A draft as its paper defines it.

    aux_hidden_state_layers: boundaries of the target that fc reads, in its order.
    """

    def __init__(self, folder: Path, target: DraftTarget) -> None:
        options = json.loads((folder / "config.json").read_text())
        tensors = {
            name.replace("midlayer.", "layers.0."): tensor
            for name, tensor in tensors_of(folder, target.dtype).items()
        }
        super().__init__(
            {**options, **options.get("transformer_layer_config", {})}, target, tensors
        )
        nested = options.get("eagle_config") or {}
        self._is_speculators = "speculators_model_type" in options
        self._flags = {**options, **nested}
        self._is_third = "layers.0.hidden_norm.weight" in tensors
        self.aux_hidden_state_layers = _aux_layers(
            options, nested, target.model.config.num_hidden_layers
        )
        share = 1.0 if self._is_speculators else self.layer.get("partial_rotary_factor") or 1.0
        self._turn = Turn(self.layer, self.head_dim, share)

    @torch.no_grad()
    def scores(self, tokens: Sequence[int], drafted: Sequence[int]) -> torch.Tensor:
        """[G, V]: as `DraftOracle`."""
        hidden = list(self._features(tokens[:-1]))
        beside = self._embed([*tokens[1:], *drafted[:-1]])
        rows = []
        for _ in drafted:
            outputs = self._forward(beside[: len(hidden)], torch.stack(hidden))
            rows.append(self._logits(outputs[-1]))
            hidden.append(self._prev_hidden_states(outputs[-1]))
        return torch.stack(rows)

    def _features(self, tokens: Sequence[int]) -> torch.Tensor:
        """[T, D]"""
        states, normed = self.target.read(tokens)
        if not self._is_third:
            return normed
        parts = [states[tap] for tap in self.aux_hidden_state_layers]
        if self._flags.get("fc_norm"):
            parts = [self.norm(f"fc_norm.{place}", part) for place, part in enumerate(parts)]
        rows = torch.cat(parts, dim=-1)
        if self._flags.get("norm_before_fc"):
            rows = self.norm("input_norm", rows)
        return self.linear("fc", rows)

    def _forward(self, embedded: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """[T, D] after the last block. embedded: of the tokens beside the rows of `hidden`."""
        if not self._is_third:
            x = inner = self.linear("fc", torch.cat([embedded, hidden], dim=-1))
        else:
            h = self.norm("layers.0.hidden_norm", hidden)
            inner = torch.cat([self.norm("layers.0.input_layernorm", embedded), h], dim=-1)
            x = h if self._flags.get("norm_before_residual") else hidden
        for index in range(self.layer["num_hidden_layers"]):
            at = f"layers.{index}"
            if index:
                inner = self.norm(f"{at}.input_layernorm", x)
            x = self.feed_forward(at, x + self._attention(index, inner))
        return x

    def _embed(self, tokens: Sequence[int]) -> torch.Tensor:
        own = self.tensors.get("embed_tokens.weight")
        return self.target.embed(tokens) if own is None else self.rows_of(tokens, own)

    def _attention(self, index: int, inner: torch.Tensor) -> torch.Tensor:
        at, count = f"layers.{index}.self_attn", inner.shape[0]
        q, k, v = (self.heads(f"{at}.{part}_proj", inner) for part in "qkv")
        # A row stands where the feature beside its token stands.
        q, k = (self._turn(part, torch.arange(count)) for part in (q, k))
        seen = torch.ones(count, count, dtype=torch.bool).tril()
        kinds = self.layer.get("layer_types")
        if kinds and kinds[index] == "sliding_attention":
            seen = seen.triu(1 - self.layer["sliding_window"])
        return self.attend(at, q, k, v, seen)

    def _logits(self, row: torch.Tensor) -> torch.Tensor:
        """[V]"""
        head = self.tensors.get("lm_head.weight", self.target.head)
        if self.layer.get("tie_word_embeddings") and "lm_head.weight" not in self.tensors:
            head = self.tensors.get("embed_tokens.weight", head)
        is_plain = not self._is_speculators and self._flags.get("norm_output") is False
        read = self.norm("norm", row) if self._is_third and not is_plain else row
        own = (head @ read)[None]
        return spread(own, self.tensors.get("d2t"), self.target.head.shape[0])[0]

    def _prev_hidden_states(self, row: torch.Tensor) -> torch.Tensor:
        is_normed = self._is_speculators and self._flags.get("norm_output")
        return self.norm("norm", row) if is_normed else row


def _aux_layers(
    options: Mapping[str, Any], nested: Mapping[str, Any], num_target_layers: int
) -> tuple[int, ...]:
    """Ids are boundaries; inside `eagle_config` those of blocks, after which the stream is read.

    Not so where they are the reference's own three, or name the last boundary.
    """
    usual = (2, num_target_layers // 2, num_target_layers - 3)
    given = options.get("hidden_state_boundaries")
    inside = tuple(nested.get(IDS) or ())
    if given is None and inside:
        shift = int(inside != usual and num_target_layers not in inside)
        return tuple(i + shift for i in inside)
    return tuple(given or options.get(IDS) or usual)
