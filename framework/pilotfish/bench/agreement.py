"""Whether two sides give the same tokens, and what is said where they part.

Knows: first differences and the logits there. Does not know: how sides run, or what is timed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from pilotfish.bench.workloads import TokenIds

if TYPE_CHECKING:
    from pilotfish.bench.peers import PilotfishSide, Side
    from pilotfish.engine import LLM


@attrs.frozen(kw_only=True)
class Judge:
    """By whose logits a difference is judged, and how far apart those of the two tokens may be.

    For a peer whose arithmetic is coarser than any dtype of ours, such as rows rounded to int8.
    """

    llm: LLM
    widest_gap: float


def compare_tokens(
    ours: PilotfishSide,
    theirs: Side,
    prompts: list[TokenIds],
    num_tokens: int,
    judge: Judge | None = None,
) -> bool | str:
    """True when all tokens agree; else a sentence when each first difference is a near-tie.

    A near-tie: the logits of the two tokens differ by no more than the judge allows; without one,
    our own logits by four units in the last place of the run's dtype at their size. Anything
    wider is a real difference and gives False. What follows a difference is not compared.
    """
    import torch

    found = []
    eps = torch.finfo(getattr(torch, ours.llm.dtype)).eps
    pairs = zip(
        prompts,
        ours.generate(prompts, num_tokens),
        theirs.generate(prompts, num_tokens),
        strict=True,
    )
    for prompt, our_ids, their_ids in pairs:
        if our_ids == their_ids:
            continue
        at = next(i for i, (a, b) in enumerate(zip(our_ids, their_ids, strict=True)) if a != b)
        logits = (ours.llm if judge is None else judge.llm).score(prompt + our_ids[:at])[-1]
        mine, other = logits[our_ids[at]].item(), logits[their_ids[at]].item()
        gap = abs(mine - other)
        if not gap <= (4 * eps * abs(mine) if judge is None else judge.widest_gap):
            return False
        said = f"logits {mine:.4g} and {other:.4g}" if judge is None else f"gap {gap:.2g}"
        found.append(f"token {at}, {said}")
    if not found:
        return True
    return f"{len(prompts) - len(found)} of {len(prompts)} equal; near-ties: {'; '.join(found)}"
