"""NaiveNetwork: layers of a draft in plain torch, every row recomputed, no cache.

Knows: the names that published drafts give their tensors. Does not know: Pilotfish's layers.
Axis letters: T rows, S rows that are seen, D draft width, N query heads, K kv heads, H head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pilotfish.testing.draft_oracle import DraftTarget, rms_norm


class NaiveNetwork:
    """layer: options of its layers. tensors: by the file's names, without a leading `model.`."""

    def __init__(
        self, layer: Mapping[str, Any], target: DraftTarget, tensors: Mapping[str, torch.Tensor]
    ) -> None:
        self.layer, self.target = layer, target
        self.tensors = {
            name: tensor.to(target.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }
        self._eps = layer.get("rms_norm_eps") or 1e-6
        rows = self.tensors["layers.0.self_attn.q_proj.weight"].shape[0]
        self.head_dim = rows // layer["num_attention_heads"]

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """[T, D]"""
        return rms_norm(x, self.tensors[f"{name}.weight"], self._eps)

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """[T, outputs], with a bias where the file has one."""
        y = x @ self.tensors[f"{name}.weight"].T
        bias = self.tensors.get(f"{name}.bias")
        return y if bias is None else y + bias

    def heads(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """[T, N or K, H]"""
        return self.linear(name, x).view(len(x), -1, self.head_dim)

    def rows_of(self, tokens: Sequence[int], table: torch.Tensor) -> torch.Tensor:
        """[T, D] of an embedding; what only the target's padding has is some row of it."""
        return table[torch.tensor(tokens).clamp(max=len(table) - 1)]

    def attend(
        self, at: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor
    ) -> torch.Tensor:
        """q: [T, N, H]; k, v: [S, K, H]; seen: [T, S] bool -> [T, D]."""
        k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for part in (k, v))
        scores = torch.einsum("inh,jnh->nij", q, k) * q.shape[-1] ** -0.5
        probs = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return self.linear(f"{at}.o_proj", torch.einsum("nij,jnh->inh", probs, v).flatten(1))

    def feed_forward(self, at: str, x: torch.Tensor) -> torch.Tensor:
        """[T, D]: x and what the feed-forward adds to it, its norm before."""
        normed = self.norm(f"{at}.post_attention_layernorm", x)
        gate = torch.nn.functional.silu(self.linear(f"{at}.mlp.gate_proj", normed))
        up = self.linear(f"{at}.mlp.up_proj", normed)
        return x + self.linear(f"{at}.mlp.down_proj", gate * up)
