"""What a DFlash draft should draft: its definition, every row recomputed, no cache.

Knows: a draft's folder and plain torch; the target is transformers'. Does not know: DFlashProposer,
nor how DFlashConfig reads. Axis letters: T rows, D draft width, G proposals, V target's vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
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

SLIDING = "sliding_attention"


@attrs.frozen(kw_only=True)
class DraftFacts:
    """What the config says. layer: options of the layers. aux_hidden_state_layers: boundaries that
    fc reads, in order.

    windows, causal: of each layer. mask_id: what stands after the anchor. embedding_factor: of the
    plain embedding; None for what the target makes of its own. logit_factor, softcap: of the head.
    """

    layer: Mapping[str, Any]
    aux_hidden_state_layers: tuple[int, ...]
    windows: tuple[int | None, ...]
    causal: tuple[bool, ...]
    mask_id: int
    samples_anchor: bool = False
    embedding_factor: float | None = None
    logit_factor: float = 1.0
    softcap: float | None = None


def dflash_oracle(target: Path, draft: Path | None) -> DraftOracle:
    """What `SpeculatorSpec.draft_oracle` names."""
    assert draft is not None, "the method reads a draft"

    def make(dtype: torch.dtype) -> NaiveDraft:
        read = DraftTarget(target, dtype)
        facts = read_facts(draft, read.model.config.num_hidden_layers)
        return NaiveDraft(facts, read, tensors_of(draft, dtype))

    return BlockOracle(make)


class BlockOracle(DefinedOracle):
    """All tokens of a proposal are chosen at once."""

    def drafts(self, tokens: Sequence[int], width: int) -> Sequence[int]:
        """As `DraftOracle`."""
        found: list[int] = self.scores(tokens, [0] * width, torch.float64).argmax(-1).tolist()
        return found


def read_facts(folder: Path, num_target_layers: int) -> DraftFacts:
    """From config.json alone."""
    options = json.loads((folder / "config.json").read_text())
    inside = options.get("dflash_config") or {}
    section = options.get("transformer_layer_config")
    layer = options if section is None else section
    every = {**layer, **options, **inside}
    count = layer["num_hidden_layers"]
    kinds = layer.get("layer_types") or ["full_attention"] * count
    causal = [kind == SLIDING for kind in kinds]
    if every.get("sliding_window_non_causal"):
        causal = [False] * count
    if inside.get("use_swa") and SLIDING not in kinds:
        kinds, causal = [SLIDING] * count, [False] * count
    for given in (inside.get("causal"), options.get("is_causal")):
        causal = causal if given is None else [given] * count
    window = inside.get("swa_window_size") or layer.get("sliding_window")
    return DraftFacts(
        layer=layer,
        aux_hidden_state_layers=_aux_layers(
            every, num_target_layers, count, after_blocks=section is None
        ),
        windows=tuple(window if kind == SLIDING else None for kind in kinds),
        causal=tuple(causal),
        mask_id=every["mask_token_id"],
        samples_anchor=bool(every.get("sample_from_anchor")),
        embedding_factor=every.get("input_embedding_scale"),
        logit_factor=every.get("output_multiplier") or 1.0,
        softcap=every.get("final_logit_softcapping") or None,
    )


def _aux_layers(
    every: Mapping[str, Any], num_target_layers: int, count: int, *, after_blocks: bool
) -> tuple[int, ...]:
    """z-lab's ids name blocks, after which the stream is read; speculators' are boundaries."""
    given = every.get("hidden_state_boundaries")
    if given is not None:
        return tuple(given)
    if not after_blocks:
        usual = (2, num_target_layers // 2, num_target_layers - 3)
        return tuple(every.get("aux_hidden_state_layer_ids") or usual)
    ids = every.get("target_layer_ids")
    if ids is None:
        reach = num_target_layers - 4
        spread_out = [round(1 + place * reach / max(1, count - 1)) for place in range(count)]
        ids = spread_out if count > 1 else [num_target_layers // 2]
    return tuple(block + 1 for block in ids)


class NaiveDraft(NaiveNetwork):
    """A draft as its definition reads, in the target's dtype."""

    def __init__(
        self, facts: DraftFacts, target: DraftTarget, tensors: Mapping[str, torch.Tensor]
    ) -> None:
        super().__init__(facts.layer, target, tensors)
        self.facts = facts

    def scores(self, tokens: Sequence[int], drafted: Sequence[int]) -> torch.Tensor:
        """[G, V]: as `DraftOracle`; what is drafted before changes nothing."""
        return self.block(tokens, len(drafted))

    @torch.no_grad()
    def context(self, tokens: Sequence[int]) -> torch.Tensor:
        """[T, D]: c of every token's row."""
        states, _ = self.target.read(tokens)
        features = torch.cat([states[tap] for tap in self.facts.aux_hidden_state_layers], dim=-1)
        return self.norm("hidden_norm", self.linear("fc", features))

    def block(self, tokens: Sequence[int], width: int) -> torch.Tensor:
        """tokens: all that count, the newest included. Returns [width, V]."""
        return self.block_of(self.context(tokens[:-1]), tokens[-1], width)

    @torch.no_grad()
    def block_of(self, context: torch.Tensor, anchor: int, width: int) -> torch.Tensor:
        """As `block`, from the context's rows."""
        facts, num_context = self.facts, context.shape[0]
        num_rows = width if facts.samples_anchor else width + 1
        x = self._embed([anchor] + [facts.mask_id] * (num_rows - 1))
        positions = torch.arange(num_context + num_rows)
        for index in range(facts.layer["num_hidden_layers"]):
            at = f"layers.{index}"
            inner = self.norm(f"{at}.input_layernorm", x)
            x = self.feed_forward(at, x + self._attention(index, inner, context, positions))
        return self._logits(self.norm("norm", x)[num_rows - width :])

    @torch.no_grad()
    def keys_values(self, context: torch.Tensor, index: int) -> torch.Tensor:
        """[T, 2, K, H] of the context's rows in one layer: what the cache must hold."""
        keys, values = self._keys_values(f"layers.{index}.self_attn", context)
        keys = self.turn(keys, torch.arange(context.shape[0]))
        return torch.stack((keys, values), dim=1)

    def turn(self, heads: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """heads: [T, N, H], at their rotary positions."""
        return self._rotary(heads, positions)

    @cached_property
    def _rotary(self) -> Turn:
        return Turn(self.layer, self.head_dim)

    def _embed(self, tokens: Sequence[int]) -> torch.Tensor:
        own, factor = self.tensors.get("embed_tokens.weight"), self.facts.embedding_factor
        if own is None and factor is None:
            return self.target.embed(tokens)
        rows = self.rows_of(tokens, self.target.embedding if own is None else own)
        return rows if factor is None else rows * factor

    def _attention(
        self, index: int, inner: torch.Tensor, context: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        at, count = f"layers.{index}.self_attn", inner.shape[0]
        q = self.norm(f"{at}.q_norm", self.heads(f"{at}.q_proj", inner))
        k, v = self._keys_values(at, torch.cat((context, inner)))
        seen = self._seen(index, positions[-count:, None], positions[None, :])
        return self.attend(at, self.turn(q, positions[-count:]), self.turn(k, positions), v, seen)

    def _seen(self, index: int, p: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        window = self.facts.windows[index]
        seen = (j <= p) if self.facts.causal[index] else torch.ones_like(j <= p)
        return seen if window is None else seen & ((p - j).abs() < window)

    def _keys_values(self, at: str, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k, v = (self.heads(f"{at}.{part}_proj", rows) for part in "kv")
        return self.norm(f"{at}.k_norm", k), v

    def _logits(self, rows: torch.Tensor) -> torch.Tensor:
        facts, head = self.facts, self.target.head
        own = rows @ self.tensors.get("lm_head.weight", head).T * facts.logit_factor
        if facts.softcap is not None:
            own = facts.softcap * torch.tanh(own / facts.softcap)
        return spread(own, self.tensors.get("d2t"), head.shape[0])
