"""Random histories of one draft, and how far its logits and its cache lie from the oracle's."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch

from dflash.checkpoints import CASES, VOCAB
from dflash.driver import Drafted, Driver, Move, Recorder
from dflash.oracle import NaiveDraft, target_of

After = Callable[[Driver], None]


def play(
    proposer: Recorder,
    seed: int = 0,
    num_steps: int = 9,
    names: str = "abc",
    after: After = lambda driver: None,
) -> list[Drafted]:
    """Ragged requests, chunked prompts, drawn accepts and widths, 0 included; `after` each step."""
    rng = random.Random(seed)
    driver = Driver(proposer, page_size_tokens=rng.choice((2, 3, 4)))
    for name, length in zip(names, (11, 1, 5), strict=False):
        driver.add(name, [rng.randrange(VOCAB) for _ in range(length)])
    found: list[Drafted] = []
    for step in range(num_steps):
        chosen = [name for name in driver.running if step == 0 or rng.random() < 0.8]
        rng.shuffle(chosen)
        if chosen:
            found += driver.step({name: _move(driver, name, rng) for name in chosen})
            after(driver)
    return found


def _move(driver: Driver, name: str, rng: random.Random) -> Move:
    one = driver.running[name]
    most = min(5, driver.proposer.config.max_draft_tokens)
    width, token = rng.randint(0, most), rng.randrange(VOCAB)
    left = one.prompt_length - one.num_committed
    if left > 0:
        return Move(rows=rng.randint(1, left), next_token=token, width=width)
    return Move(accept=rng.randint(0, len(one.drafts)), next_token=token, width=width)


class Oracles:
    """The oracle of one case in float64, and in float32 for the error that rounding makes."""

    def __init__(self, case: str, target: Path) -> None:
        self.exact = NaiveDraft(CASES[case], target_of(target, torch.float64))
        self.eager = NaiveDraft(CASES[case], target_of(target, torch.float32))

    def check(self, found: list[Drafted]) -> tuple[float, float, bool]:
        """(our largest error, eager float32's, whether every token is the exact argmax)."""
        ours = eager = 0.0
        same = True
        for one in found:
            width, texts = len(one.proposal.tokens), (other.tokens for other in found)
            whole = max((t for t in texts if t[: len(one.tokens)] == one.tokens), key=len)[:-1]
            asked = one.tokens, width, one.prompt_length, whole
            exact, rounded = (draft.block(*asked) for draft in (self.exact, self.eager))
            known = exact.isfinite()
            same &= bool((known == one.logits.isfinite()).all())
            same &= exact.argmax(-1).tolist() == list(one.proposal.tokens)
            ours = max(ours, _distance(one.logits, exact, known))
            eager = max(eager, _distance(rounded, exact, known))
        return ours, eager, same

    def check_rows(self, driver: Driver) -> tuple[float, float]:
        """(our largest error, eager float32's) of all committed keys and values."""
        ours = eager = 0.0
        for name, one in driver.running.items():
            if not one.num_committed:
                continue
            tokens = one.tokens[: one.num_committed]
            exact, rounded = (
                torch.stack(
                    [
                        draft.keys_values(draft.context(tokens), layer, one.prompt_length)
                        for layer in range(draft.case.num_layers)
                    ]
                )
                for draft in (self.exact, self.eager)
            )
            ours = max(ours, _largest(driver.rows(name).double() - exact))
            eager = max(eager, _largest(rounded.double() - exact))
        return ours, eager


def _largest(gap: torch.Tensor) -> float:
    """NaN counts as infinitely far."""
    return float(gap.abs().nan_to_num(nan=torch.inf).max())


def _distance(logits: torch.Tensor, exact: torch.Tensor, known: torch.Tensor) -> float:
    gap = (logits.double() - exact)[known & logits.isfinite()].abs()
    return float(gap.max()) if gap.numel() else float("inf")
