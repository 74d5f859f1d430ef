"""The oracle: DFlash as its definition reads, every row recomputed, no cache, in plain torch.

Nothing of Pilotfish: tensors and options in, logits out. The target's hidden states come from
transformers. Axis letters: T rows, D draft width, V the target's vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
import transformers

from dflash.checkpoints import MASK, DraftCase, draft_tensors

EPS = 1e-5


class NaiveTarget:
    """transformers' model, with what a draft reads of it."""

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
    def read(self, tokens: Sequence[int]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Boundaries 0 to L, each [T, D], the last one before the final norm; logits [T, V]."""
        before_norm: list[torch.Tensor] = []
        norm = getattr(self.model.model, "norm", None) or self.model.model.embedding_norm
        hook = norm.register_forward_pre_hook(lambda module, args: before_norm.append(args[0]))
        found = self.model(torch.tensor([list(tokens)]), output_hidden_states=True)
        hook.remove()
        states = [state[0] for state in found.hidden_states]
        states[-1] = before_norm[0][0]
        return states, found.logits[0]


class NaiveDraft:
    """A draft as its definition reads."""

    def __init__(
        self, case: DraftCase, target: NaiveTarget, tensors: dict[str, torch.Tensor] | None = None
    ) -> None:
        self.case, self.target = case, target
        made = draft_tensors(case) if tensors is None else tensors
        self.tensors = {
            name: tensor.to(target.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in made.items()
        }

    @torch.no_grad()
    def context(self, tokens: Sequence[int]) -> torch.Tensor:
        """[T, D]: c of every token's row."""
        states, _ = self.target.read(tokens)
        features = torch.cat([states[tap] for tap in self.case.taps], dim=-1)
        return self._norm("hidden_norm", self._linear("fc", features))

    @torch.no_grad()
    def block(self, tokens: Sequence[int], width: int, started: int) -> torch.Tensor:
        """tokens: all that count, the newest included; started: tokens of the prompt.

        Returns [width, V]: logits of the proposals.
        """
        return self.block_of(self.context(tokens[:-1]), tokens[-1], width, started)

    @torch.no_grad()
    def block_of(
        self, context: torch.Tensor, anchor: int, width: int, started: int = 0
    ) -> torch.Tensor:
        """As `block`, from the context's rows."""
        case, num_context = self.case, context.shape[0]
        num_rows = width if case.samples_anchor else width + 1
        table = self.tensors.get("embed_tokens.weight", self.target.embedding)
        x = table[torch.tensor([anchor] + [MASK] * (num_rows - 1))] * case.embedding_factor
        positions = torch.arange(num_context + num_rows)
        for index in range(case.num_layers):
            at = f"layers.{index}"
            inner = self._norm(f"{at}.input_layernorm", x)
            x = x + self._attention(index, inner, context, positions, started)
            inner = self._norm(f"{at}.post_attention_layernorm", x)
            gate = torch.nn.functional.silu(self._linear(f"{at}.mlp.gate_proj", inner))
            up = self._linear(f"{at}.mlp.up_proj", inner)
            x = x + self._linear(f"{at}.mlp.down_proj", gate * up)
        return self._logits(self._norm("norm", x)[num_rows - width :])

    @torch.no_grad()
    def keys_values(self, context: torch.Tensor, index: int, started: int) -> torch.Tensor:
        """[T, 2, K, H] of the context's rows in one layer: what the cache must hold."""
        positions = torch.arange(context.shape[0])
        keys, values = self._keys_values(f"layers.{index}.self_attn", context)
        return torch.stack((self._turn(keys, positions, started), values), dim=1)

    def _attention(
        self,
        index: int,
        inner: torch.Tensor,
        context: torch.Tensor,
        positions: torch.Tensor,
        started: int,
    ) -> torch.Tensor:
        layer, at = self.case.layer, f"layers.{index}.self_attn"
        heads, count = layer["num_attention_heads"], inner.shape[0]
        q = self._linear(f"{at}.q_proj", inner).unflatten(1, (heads, -1))
        q = self._turn(self._norm(f"{at}.q_norm", q), positions[-count:], started)
        k, v = self._keys_values(at, torch.cat((context, inner)))
        k = self._turn(k, positions, started)
        group = heads // layer["num_key_value_heads"]
        k, v = (part.repeat_interleave(group, dim=1) for part in (k, v))
        scores = torch.einsum("inh,jnh->nij", q, k) / math.sqrt(q.shape[-1])
        seen = self._seen(index, positions[-count:, None], positions[None, :])
        law = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return self._linear(f"{at}.o_proj", torch.einsum("nij,jnh->inh", law, v).flatten(1))

    def _seen(self, index: int, p: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        window = self.case.windows[index]
        seen = (j <= p) if self.case.causal[index] else torch.ones_like(j <= p)
        return seen if window is None else seen & ((p - j).abs() < window)

    def _keys_values(self, at: str, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kv_heads = self.case.layer["num_key_value_heads"]
        k = self._linear(f"{at}.k_proj", rows).unflatten(1, (kv_heads, -1))
        v = self._linear(f"{at}.v_proj", rows).unflatten(1, (kv_heads, -1))
        return self._norm(f"{at}.k_norm", k), v

    def _turn(self, heads: torch.Tensor, positions: torch.Tensor, started: int) -> torch.Tensor:
        """Rotary positions, half-split; angles in float32 as models are trained."""
        width = heads.shape[-1]
        cos, sin = angles(self.case.layer, positions, width, started)
        a, b = heads.chunk(2, -1)
        turned = torch.cat((-b, a), -1)
        cos, sin = (part.to(heads.dtype)[:, None] for part in (cos, sin))
        return heads * cos + turned * sin

    def _logits(self, rows: torch.Tensor) -> torch.Tensor:
        case = self.case
        own = rows @ self.tensors.get("lm_head.weight", self.target.head).T
        own = own * case.logit_factor
        if case.softcap is not None:
            own = case.softcap * torch.tanh(own / case.softcap)
        if "d2t" not in self.tensors:
            return own
        spread = own.new_full((own.shape[0], self.target.head.shape[0]), -torch.inf)
        for i, offset in enumerate(self.tensors["d2t"].tolist()):
            spread[:, i + offset] = own[:, i]
        return spread

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.tensors[f"{name}.weight"])

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.tensors[f"{name}.weight"].T
        bias = self.tensors.get(f"{name}.bias")
        return y if bias is None else y + bias


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS))


def angles(
    layer: dict[str, Any], positions: torch.Tensor, width: int, started: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [T, H], from transformers' own tables of inverse frequencies."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    fields = {key: value for key, value in layer.items() if key != "model_type"}
    config = transformers.Qwen3Config(**fields)
    rope = config.rope_parameters
    kind = rope["rope_type"]
    rows = []
    for position in positions.tolist():
        if kind == "default":
            exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
            frequencies, scale = 1.0 / (rope["rope_theta"] ** exponents), 1.0
        else:
            length = max(started, position + 1)
            frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length)
        angle = torch.cat((position * frequencies,) * 2)
        rows.append((angle.cos() * scale, angle.sin() * scale))
    return torch.stack([c for c, _ in rows]), torch.stack([s for _, s in rows])


# Whole generations


@attrs.define
class NaiveStep:
    """What was proposed, how many were accepted, and the tokens that a step committed."""

    proposed: list[int]
    accepted: int
    committed: list[int]


def generate(
    draft: NaiveDraft, prompt: Sequence[int], max_tokens: int, width: int, *, spare: int = 1
) -> list[NaiveStep]:
    """Greedy generation with the draft; the first step proposes nothing.

    spare: tokens at the end for which nothing is proposed, since the target's own will do.
    """
    tokens, steps = list(prompt), []
    proposed: list[int] = []
    while len(tokens) < len(prompt) + max_tokens:
        _, logits = draft.target.read(tokens + proposed)
        own = logits[len(tokens) - 1 :].argmax(-1).tolist()
        accepted = 0
        while accepted < len(proposed) and proposed[accepted] == own[accepted]:
            accepted += 1
        committed = [*proposed[:accepted], own[accepted]]
        committed = committed[: len(prompt) + max_tokens - len(tokens)]
        steps.append(NaiveStep(proposed, accepted, committed))
        tokens += committed
        room = len(prompt) + max_tokens - len(tokens) - spare
        size = max(0, min(width, room))
        proposed = []
        if size:
            proposed = draft.block(tokens, size, len(prompt)).argmax(-1).tolist()
    return steps
