"""The oracle of the tests: the plugin's own, told what a case must be read as; generations with it.

Nothing of Pilotfish's models: the target's hidden states come from transformers. Axis letters:
T rows, D draft width, V the target's vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
import transformers

from dflash.checkpoints import MASK, DraftCase, draft_tensors
from pilotfish_dflash import oracle

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

    def embed(self, tokens: Sequence[int]) -> torch.Tensor:
        return self.embedding[torch.tensor(tokens)]

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


class NaiveDraft(oracle.NaiveDraft):
    """The plugin's oracle of a case, which also knows rotary positions that depend on the length.

    started: tokens of the prompt.
    """

    def __init__(
        self, case: DraftCase, target: NaiveTarget, tensors: dict[str, torch.Tensor] | None = None
    ) -> None:
        tensors = draft_tensors(case) if tensors is None else tensors
        super().__init__(facts_of(case), target, tensors)
        self.case, self._started = case, 0

    def block(self, tokens: Sequence[int], width: int, started: int = 0) -> torch.Tensor:
        self._started = started
        return super().block(tokens, width)

    def keys_values(self, context: torch.Tensor, index: int, started: int = 0) -> torch.Tensor:
        self._started = started
        return super().keys_values(context, index)

    def turn(self, heads: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Half-split; angles in float32 as models are trained."""
        cos, sin = angles(self.case.layer, positions, heads.shape[-1], self._started)
        a, b = heads.chunk(2, -1)
        turned = torch.cat((-b, a), -1)
        cos, sin = (part.to(heads.dtype)[:, None] for part in (cos, sin))
        return heads * cos + turned * sin


def facts_of(case: DraftCase) -> oracle.DraftFacts:
    """What must be read of a case's config."""
    return oracle.DraftFacts(
        layer=case.layer,
        aux_hidden_state_layers=case.aux_hidden_state_layers,
        windows=case.windows,
        causal=case.causal,
        mask_id=MASK,
        samples_anchor=case.samples_anchor,
        embedding_factor=case.embedding_factor,
        logit_factor=case.logit_factor,
        softcap=case.softcap,
    )


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
