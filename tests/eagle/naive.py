"""The oracle: EAGLE-1 and EAGLE-3 from the papers, every row recomputed, in plain torch.

Nothing of Pilotfish: tensors and options in, logits out. The target's hidden states come from
transformers. Axis letters: T rows, D draft width, V the target's vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from eagle.checkpoints import DraftCase, draft_tensors

EPS = 1e-5


class NaiveTarget:
    """transformers' Llama, with what a draft reads of it."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self.model: Any = (
            transformers.AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32, attn_implementation="eager"
            )
            .eval()
            .to(dtype)
        )
        if dtype == torch.float64:
            for module in self.model.modules():
                if type(module).__name__.endswith("RMSNorm"):
                    module.forward = lambda x, own=module: rms_norm(x, own.weight)
        self.dtype = dtype

    @property
    def embedding(self) -> torch.Tensor:
        return self.model.model.embed_tokens.weight.detach()

    @property
    def head(self) -> torch.Tensor:
        return self.model.lm_head.weight.detach()

    @torch.no_grad()
    def features(self, tokens: Sequence[int], case: DraftCase) -> torch.Tensor:
        """[T, F]: the normed output, or the stream at the taps, in their order."""
        before_norm: list[torch.Tensor] = []
        hook = self.model.model.norm.register_forward_pre_hook(
            lambda module, args: before_norm.append(args[0])
        )
        found = self.model.model(torch.tensor([list(tokens)]), output_hidden_states=True)
        hook.remove()
        states = [state[0] for state in found.hidden_states]
        if case.version == 1:
            return found.last_hidden_state[0]
        states[-1] = before_norm[0][0]
        return torch.cat([states[tap] for tap in case.taps], dim=-1)


class NaiveDraft:
    """A draft as its paper defines it."""

    def __init__(self, case: DraftCase, target: NaiveTarget) -> None:
        self.case, self.target = case, target
        self.tensors = {
            name: tensor.to(target.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in draft_tensors(case).items()
        }
        nested = case.options.get("eagle_config", {})
        self.flags = {**case.options, **nested}

    @torch.no_grad()
    def draft(self, tokens: Sequence[int], drafted: Sequence[int]) -> torch.Tensor:
        """tokens: all that count, the newest included. Returns [G, V]: logits before each of
        `drafted`, which stand in for what would have been chosen.
        """
        features = self.target.features(tokens[:-1], self.case)
        hidden = [self._feature(row) for row in features]
        beside = list(tokens[1:])
        rows = []
        for token in drafted:
            outputs = self._forward(beside, torch.stack(hidden))
            rows.append(self._logits(outputs[-1]))
            hidden.append(self._recycled(outputs[-1]))
            beside.append(token)
        return torch.stack(rows)

    def _feature(self, row: torch.Tensor) -> torch.Tensor:
        if self.case.version == 1:
            return row
        if self.flags.get("norm_before_fc"):
            row = rms_norm(row, self.tensors["input_norm.weight"])
        if self.flags.get("fc_norm"):
            parts = row.chunk(len(self.case.taps))
            normed = [rms_norm(p, self.tensors[f"fc_norm.{i}.weight"]) for i, p in enumerate(parts)]
            row = torch.cat(normed)
        return self._linear("fc", row)

    def _forward(self, beside: list[int], hidden: torch.Tensor) -> torch.Tensor:
        """[T, D] after the last block."""
        table = self.tensors.get("embed_tokens.weight", self.target.embedding)
        embedded = table[torch.tensor(beside)]
        if self.case.version == 1:
            x = self._linear("fc", torch.cat([embedded, hidden], dim=-1))
            inner = x
        else:
            h = self._norm("layers.0.hidden_norm", hidden)
            inner = torch.cat([self._norm("layers.0.input_layernorm", embedded), h], dim=-1)
            x = h if self.flags.get("norm_before_residual") else hidden
        for index in range(self.case.layer["num_hidden_layers"]):
            at = f"layers.{index}"
            if index:
                inner = self._norm(f"{at}.input_layernorm", x)
            x = x + self._attention(at, inner)
            normed = self._norm(f"{at}.post_attention_layernorm", x)
            gate = torch.nn.functional.silu(self._linear(f"{at}.mlp.gate_proj", normed))
            x = x + self._linear(
                f"{at}.mlp.down_proj", gate * self._linear(f"{at}.mlp.up_proj", normed)
            )
        return x

    def _attention(self, at: str, inner: torch.Tensor) -> torch.Tensor:
        layer, count = self.case.layer, inner.shape[0]
        heads, kv_heads = layer["num_attention_heads"], layer["num_key_value_heads"]
        q, k, v = (self._linear(f"{at}.self_attn.{part}_proj", inner) for part in "qkv")
        q, k = self._turn(q.view(count, heads, -1)), self._turn(k.view(count, kv_heads, -1))
        v = v.view(count, kv_heads, -1)
        k, v = (part.repeat_interleave(heads // kv_heads, dim=1) for part in (k, v))
        scores = torch.einsum("inh,jnh->nij", q, k) * q.shape[-1] ** -0.5
        hidden = torch.ones(count, count, dtype=torch.bool).triu(1)
        kinds = layer.get("layer_types", ["full_attention"] * layer["num_hidden_layers"])
        if kinds[int(at.removeprefix("layers."))] == "sliding_attention":
            hidden |= torch.ones(count, count, dtype=torch.bool).tril(-layer["sliding_window"])
        law = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return self._linear(
            f"{at}.self_attn.o_proj", torch.einsum("nij,jnh->inh", law, v).flatten(1)
        )

    def _turn(self, heads: torch.Tensor) -> torch.Tensor:
        """Rotary positions: row t at t, the position of its feature."""
        layer = self.case.layer
        rope = {"rope_theta": 10000.0, **layer, **layer.get("rope_parameters", {})}
        share = 1.0 if self.case.speculators else layer.get("partial_rotary_factor", 1.0)
        width = int(heads.shape[-1] * share)
        exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
        frequencies = 1.0 / (rope["rope_theta"] ** exponents) / rope.get("factor", 1.0)
        angles = torch.arange(heads.shape[0], dtype=torch.float32)[:, None] * frequencies
        cos, sin = (part.to(heads.dtype)[:, None] for part in (angles.cos(), angles.sin()))
        a, b = heads[..., : width // 2], heads[..., width // 2 : width]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, heads[..., width:]], dim=-1)

    def _logits(self, row: torch.Tensor) -> torch.Tensor:
        """[V] over the target's ids."""
        if self.case.version == 1:
            return self.target.head @ row
        borrowed = self.target.head
        if self.case.options.get("tie_word_embeddings"):
            borrowed = self.tensors["embed_tokens.weight"]
        is_plain = not self.case.speculators and self.flags.get("norm_output") is False
        read = row if is_plain else self._norm("norm", row)
        own = self.tensors.get("lm_head.weight", borrowed) @ read
        if "d2t" not in self.tensors:
            return own
        spread = own.new_full(self.target.head.shape[:1], -torch.inf)
        for i, offset in enumerate(self.tensors["d2t"].tolist()):
            spread[i + offset] = own[i]
        return spread

    def _recycled(self, row: torch.Tensor) -> torch.Tensor:
        is_normed = self.case.speculators and self.flags.get("norm_output")
        return self._norm("norm", row) if is_normed else row

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.tensors[f"{name}.weight"])

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.tensors[f"{name}.weight"].T
        bias = self.tensors.get(f"{name}.bias")
        return y if bias is None else y + bias


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS))
