"""The oracle of the tests: the plugin's own, told what a case must be read as; generations with it.

Nothing of Pilotfish's models: the target's hidden states come from transformers. Axis letters:
T rows, D draft width, V the target's vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
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
        self._streams = dict[tuple[int, ...], tuple[list[torch.Tensor], torch.Tensor]]()

    @property
    def embedding(self) -> torch.Tensor:
        return self.model.model.embed_tokens.weight.detach()

    @property
    def head(self) -> torch.Tensor:
        return self.model.lm_head.weight.detach()

    def embed(self, tokens: Sequence[int]) -> torch.Tensor:
        return self.embedding[torch.tensor(tokens)]

    def read(self, tokens: Sequence[int]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Boundaries 0 to L, each [T, D], the last one before the final norm; logits [T, V].

        A text is read once.
        """
        text = tuple(tokens)
        if text not in self._streams:
            self._streams[text] = self._read(text)
        return self._streams[text]

    @torch.no_grad()
    def _read(self, tokens: Sequence[int]) -> tuple[list[torch.Tensor], torch.Tensor]:
        before_norm: list[torch.Tensor] = []
        norm = getattr(self.model.model, "norm", None) or self.model.model.embedding_norm
        hook = norm.register_forward_pre_hook(lambda module, args: before_norm.append(args[0]))
        found = self.model(torch.tensor([list(tokens)]), output_hidden_states=True)
        hook.remove()
        states = [state[0] for state in found.hidden_states]
        states[-1] = before_norm[0][0]
        return states, found.logits[0]

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The prompt and `count` tokens that the target says after it, one by one."""
        tokens = list(prompt)
        while len(tokens) < len(prompt) + count:
            tokens.append(int(self.read(tokens)[1][-1].argmax()))
        return tokens


target_of = cache(NaiveTarget)
"""As NaiveTarget, which is loaded once."""


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

    def block(
        self,
        tokens: Sequence[int],
        width: int,
        started: int = 0,
        whole: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """whole: a text that begins with all but the newest, to be read instead of these alone: the
        target is causal.
        """
        self._started, num_context = started, len(tokens) - 1
        context = self.context(tokens[:-1] if whole is None else whole)[:num_context]
        return self.block_of(context, tokens[-1], width)

    def keys_values(self, context: torch.Tensor, index: int, started: int = 0) -> torch.Tensor:
        self._started = started
        return super().keys_values(context, index)

    def turn(self, heads: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Half-split; angles in float32 as models are trained."""
        cos, sin = self._angles.of(positions, self._started)
        a, b = heads.chunk(2, -1)
        turned = torch.cat((-b, a), -1)
        cos, sin = (part.to(heads.dtype)[:, None] for part in (cos, sin))
        return heads * cos + turned * sin

    @cached_property
    def _angles(self) -> Angles:
        return Angles(self.case.layer, self.head_dim)


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


class Angles:
    """Of a draft's layers and their head's width; from transformers' own inverse frequencies."""

    def __init__(self, layer: dict[str, Any], width: int) -> None:
        fields = {key: value for key, value in layer.items() if key != "model_type"}
        self._config, self._width = transformers.Qwen3Config(**fields), width
        self._row = cache(self._of_one)

    def of(self, positions: torch.Tensor, started: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [T, H]. started: tokens of the prompt."""
        rows = [self._row(position, started) for position in positions.tolist()]
        return torch.stack([c for c, _ in rows]), torch.stack([s for _, s in rows])

    def _of_one(self, position: int, started: int) -> tuple[torch.Tensor, torch.Tensor]:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        rope = self._config.rope_parameters
        kind = rope["rope_type"]
        if kind == "default":
            exponents = torch.arange(0, self._width, 2, dtype=torch.float32) / self._width
            frequencies, scale = 1.0 / (rope["rope_theta"] ** exponents), 1.0
        else:
            length = max(started, position + 1)
            frequencies, scale = ROPE_INIT_FUNCTIONS[kind](self._config, "cpu", seq_len=length)
        angle = torch.cat((position * frequencies,) * 2)
        return angle.cos() * scale, angle.sin() * scale


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

    Drafts count while they are what the target says by itself: the text is that of the target.

    spare: tokens at the end for which nothing is proposed, since the target's own will do.
    """
    text = draft.target.greedy(prompt, max_tokens + 1 - spare)
    end, steps = len(prompt) + max_tokens, list[NaiveStep]()
    done, proposed = len(prompt), list[int]()
    while done < end:
        accepted = 0
        while accepted < len(proposed) and proposed[accepted] == text[done + accepted]:
            accepted += 1
        committed = text[done : min(done + accepted + 1, end)]
        steps.append(NaiveStep(proposed, accepted, committed))
        done += len(committed)
        size, proposed = max(0, min(width, end - done - spare)), []
        if size:
            found = draft.block(text[:done], size, len(prompt), whole=text)
            proposed = found.argmax(-1).tolist()
    return steps
