"""Random histories of one draft, and how far its logits lie from the oracle's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

import attrs
import torch

from eagle.checkpoints import CASES, VOCAB, save_draft
from eagle.driver import Driver, Move
from pilotfish.testing.draft_oracle import DraftTarget
from pilotfish_eagle.model import EagleModel
from pilotfish_eagle.oracle import NaiveDraft


@attrs.frozen(kw_only=True)
class Drafted:
    """What was drafted after some tokens: tokens [G] and their logits [G, V]."""

    tokens: tuple[int, ...]
    drafted: tuple[int, ...]
    logits: torch.Tensor


def play(eagle: EagleModel, seed: int = 0, num_steps: int = 9, names: str = "abc") -> list[Drafted]:
    """Ragged requests, chunked prompts, drawn accepts and widths, 0 included."""
    rng = random.Random(seed)
    driver = Driver(eagle, page_size_tokens=rng.choice((2, 3, 4)))
    for name, length in zip(names, (9, 1, 5), strict=False):
        driver.add(name, [rng.randrange(VOCAB) for _ in range(length)])
    found: list[Drafted] = []
    for step in range(num_steps):
        chosen = [name for name in driver.running if step == 0 or rng.random() < 0.8]
        rng.shuffle(chosen)
        if chosen:
            moves = {name: _move(driver, name, rng) for name in chosen}
            proposals = driver.step(moves)
            for name, proposal in proposals.items():
                if proposal.tokens:
                    logits = torch.stack(eagle.logits[name])  # type: ignore[attr-defined]
                    tokens = tuple(driver.running[name].tokens)
                    found.append(
                        Drafted(tokens=tokens, drafted=tuple(proposal.tokens), logits=logits)
                    )
    return found


def _move(driver: Driver, name: str, rng: random.Random) -> Move:
    one = driver.running[name]
    width, token = rng.choice((0, 1, 2, 3, 4)), rng.randrange(VOCAB)
    left = one.prompt_length - one.num_committed
    if left > 0:
        return Move(rows=rng.randint(1, left), next_token=token, width=width)
    return Move(accept=rng.randint(0, len(one.drafts)), next_token=token, width=width)


class Target(DraftTarget):
    """Reads each of `texts` once, for all that it begins with, and embeds each token once: what
    stands behind a token changes nothing of it.
    """

    texts: Sequence[tuple[int, ...]] = ()

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        super().__init__(folder, dtype)
        self._read = cache(super().read)

    def read(self, tokens: Sequence[int]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """As DraftTarget."""
        own, count = tuple(tokens), len(tokens)
        whole = max((t for t in self.texts if t[:count] == own), key=len, default=own)
        states, normed = self._read(whole)
        return [state[:count] for state in states], normed[:count]

    def embed(self, tokens: Sequence[int]) -> torch.Tensor:
        """As DraftTarget."""
        return self._embedded[torch.tensor(tokens)]

    @cached_property
    def _embedded(self) -> torch.Tensor:
        return super().embed(range(VOCAB))


@cache
def target_of(folder: Path, dtype: torch.dtype) -> Target:
    """Loaded once; float32's attention is written out, as the exact one's is."""
    target = Target(folder, dtype)
    if dtype == torch.float32:
        target.model.set_attn_implementation("eager")
    return target


class Oracles:
    """The oracle of one case in float64, and in float32 for the error that rounding makes."""

    def __init__(self, case: str, target: Path) -> None:
        draft = save_draft(case, target.parent)
        self.exact = NaiveDraft(draft, target_of(target, torch.float64))
        self.eager = NaiveDraft(draft, target_of(target, torch.float32))
        assert (
            CASES[case].version == 1
            or self.exact.aux_hidden_state_layers == CASES[case].aux_hidden_state_layers
        )

    def check(self, found: list[Drafted]) -> tuple[float, float, bool]:
        """(our largest error, eager float32's, whether every token is the exact argmax)."""
        ours = eager = 0.0
        same, texts = True, [one.tokens[:-1] for one in found]
        for draft in (self.exact, self.eager):
            draft.target.texts = texts  # type: ignore[attr-defined]
        for one in found:
            exact = self.exact.scores(one.tokens, one.drafted)
            rounded = self.eager.scores(one.tokens, one.drafted)
            known = exact.isfinite()
            same &= bool((known == one.logits.isfinite()).all())
            same &= exact.argmax(-1).tolist() == list(one.drafted)
            ours = max(ours, _distance(one.logits, exact, known))
            eager = max(eager, _distance(rounded, exact, known))
        return ours, eager, same


def _distance(logits: torch.Tensor, exact: torch.Tensor, known: torch.Tensor) -> float:
    gap = (logits.double() - exact)[known & logits.isfinite()].abs()
    return float(gap.max()) if gap.numel() else float("inf")
