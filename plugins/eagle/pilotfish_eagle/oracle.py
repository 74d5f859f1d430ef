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
    rms_norm,
    spread,
    tensors_of,
)

IDS = "eagle_aux_hidden_state_layer_ids"


def eagle_oracle(target: Path, draft: Path | None) -> DraftOracle:
    """What `SpeculatorSpec.draft_oracle` names."""
    assert draft is not None, "the method reads a draft"
    return DefinedOracle(lambda dtype: NaiveDraft(draft, DraftTarget(target, dtype)))


class NaiveDraft:
    """A draft as its paper defines it.

    taps: boundaries of the target that fc reads, in its order.
    """

    def __init__(self, folder: Path, target: DraftTarget) -> None:
        self.target = target
        options = json.loads((folder / "config.json").read_text())
        nested = options.get("eagle_config") or {}
        self._is_speculators = "speculators_model_type" in options
        self._options = {**options, **options.get("transformer_layer_config", {})}
        self._flags = {**options, **nested}
        self._tensors = {
            name.replace("midlayer.", "layers.0."): tensor
            for name, tensor in tensors_of(folder, target.dtype).items()
        }
        self._is_third = "layers.0.hidden_norm.weight" in self._tensors
        self.taps = _taps(options, nested, target.model.config.num_hidden_layers)
        self._eps = self._options.get("rms_norm_eps") or 1e-6
        rows = self._tensors["layers.0.self_attn.q_proj.weight"].shape[0]
        share = 1.0 if self._is_speculators else self._options.get("partial_rotary_factor") or 1.0
        self._turn = Turn(self._options, rows // self._options["num_attention_heads"], share)

    @torch.no_grad()
    def scores(self, tokens: Sequence[int], drafted: Sequence[int]) -> torch.Tensor:
        """[G, V]: as `DraftOracle`."""
        hidden = list(self._features(tokens[:-1]))
        beside = list(tokens[1:])
        rows = []
        for token in drafted:
            outputs = self._forward(beside, torch.stack(hidden))
            rows.append(self._logits(outputs[-1]))
            hidden.append(self._prev_hidden_states(outputs[-1]))
            beside.append(token)
        return torch.stack(rows)

    def _features(self, tokens: Sequence[int]) -> torch.Tensor:
        """[T, D]"""
        states, normed = self.target.read(tokens)
        if not self._is_third:
            return normed
        parts = [states[tap] for tap in self.taps]
        if self._flags.get("fc_norm"):
            parts = [self._norm(f"fc_norm.{place}", part) for place, part in enumerate(parts)]
        rows = torch.cat(parts, dim=-1)
        if self._flags.get("norm_before_fc"):
            rows = self._norm("input_norm", rows)
        return self._linear("fc", rows)

    def _forward(self, beside: Sequence[int], hidden: torch.Tensor) -> torch.Tensor:
        """[T, D] after the last block."""
        embedded = self._embed(beside)
        if not self._is_third:
            x = inner = self._linear("fc", torch.cat([embedded, hidden], dim=-1))
        else:
            h = self._norm("layers.0.hidden_norm", hidden)
            inner = torch.cat([self._norm("layers.0.input_layernorm", embedded), h], dim=-1)
            x = h if self._flags.get("norm_before_residual") else hidden
        for index in range(self._options["num_hidden_layers"]):
            at = f"layers.{index}"
            if index:
                inner = self._norm(f"{at}.input_layernorm", x)
            x = x + self._attention(index, inner)
            normed = self._norm(f"{at}.post_attention_layernorm", x)
            gate = torch.nn.functional.silu(self._linear(f"{at}.mlp.gate_proj", normed))
            up = self._linear(f"{at}.mlp.up_proj", normed)
            x = x + self._linear(f"{at}.mlp.down_proj", gate * up)
        return x

    def _embed(self, tokens: Sequence[int]) -> torch.Tensor:
        own = self._tensors.get("embed_tokens.weight")
        if own is None:
            return self.target.embed(tokens)
        return own[torch.tensor(tokens).clamp(max=len(own) - 1)]

    def _attention(self, index: int, inner: torch.Tensor) -> torch.Tensor:
        count, heads = inner.shape[0], self._options["num_attention_heads"]
        kv_heads = self._options.get("num_key_value_heads") or heads
        at = f"layers.{index}.self_attn"
        q, k, v = (self._linear(f"{at}.{part}_proj", inner) for part in "qkv")
        # A row stands where the feature beside its token stands.
        rows = torch.arange(count)
        q, k = (
            self._turn(part.view(count, many, -1), rows)
            for part, many in ((q, heads), (k, kv_heads))
        )
        v = v.view(count, kv_heads, -1)
        k, v = (part.repeat_interleave(heads // kv_heads, dim=1) for part in (k, v))
        scores = torch.einsum("inh,jnh->nij", q, k) * q.shape[-1] ** -0.5
        hidden = torch.ones(count, count, dtype=torch.bool).triu(1)
        kinds = self._options.get("layer_types")
        if kinds and kinds[index] == "sliding_attention":
            window = self._options["sliding_window"]
            hidden |= torch.ones(count, count, dtype=torch.bool).tril(-window)
        probs = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return self._linear(f"{at}.o_proj", torch.einsum("nij,jnh->inh", probs, v).flatten(1))

    def _logits(self, row: torch.Tensor) -> torch.Tensor:
        """[V]"""
        head = self._tensors.get("lm_head.weight", self.target.head)
        if self._options.get("tie_word_embeddings") and "lm_head.weight" not in self._tensors:
            head = self._tensors.get("embed_tokens.weight", head)
        is_plain = not self._is_speculators and self._flags.get("norm_output") is False
        read = self._norm("norm", row) if self._is_third and not is_plain else row
        own = (head @ read)[None]
        return spread(own, self._tensors.get("d2t"), self.target.head.shape[0])[0]

    def _prev_hidden_states(self, row: torch.Tensor) -> torch.Tensor:
        is_normed = self._is_speculators and self._flags.get("norm_output")
        return self._norm("norm", row) if is_normed else row

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self._tensors[f"{name}.weight"], self._eps)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        y = x @ self._tensors[f"{name}.weight"].T
        bias = self._tensors.get(f"{name}.bias")
        return y if bias is None else y + bias


def _taps(
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
