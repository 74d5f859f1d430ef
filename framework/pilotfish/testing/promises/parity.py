"""Promises about what is computed: the logits, tokens and hidden states of another implementation.

Knows: the oracle and the tolerance. Does not know: batches.
"""

from __future__ import annotations

import torch

from pilotfish.config import SamplingParams
from pilotfish.protocols import ReturnHiddenStates
from pilotfish.testing.compare import want_near
from pilotfish.testing.promise import NotApplicable, want
from pilotfish.testing.subject import LONG, Subject

ANSWER = 8
"""Tokens of an answer."""


def logits_are_the_oracles(subject: Subject) -> None:
    """Logits are no further from float64 than twice what the oracle itself is in that dtype."""
    tokens = subject.tokens(LONG)
    for dtype in subject.dtypes:
        exact = subject.oracle.exact(tokens, dtype)
        eager = subject.oracle.eager(tokens, dtype)
        want_near(subject.alone(tokens, dtype).cpu(), exact, eager, f"logits in {dtype}")


def arithmetics_agree(subject: Subject) -> None:
    """The fastest arithmetic is as near to float64 as the invariant must be, in chunks and whole.

    It may take another form of a sum for many rows than for few, so all sizes are tried.
    """
    tokens = subject.tokens(LONG)
    for dtype in subject.dtypes:
        exact = subject.oracle.exact(tokens, dtype)
        eager = subject.oracle.eager(tokens, dtype)
        prepared = subject.prepared(dtype, arithmetic="fastest")
        prepared.model.load_model(prepared.weights)
        for chunks in ((), (11, 1, 1, 9)):
            session = subject.session(dtype, model=prepared.model)
            session.add("a", tokens)
            got = session.finish("a", chunks).cpu()
            where = f"logits of the fastest arithmetic in {dtype}"
            want_near(got, exact, eager, where + (" in chunks" if chunks else ""))


def greedy_tokens_are_the_oracles(subject: Subject) -> None:
    """Greedy answers in float32 are the oracle's, token by token."""
    if "float32" not in subject.dtypes:
        raise NotApplicable("float32 is not tested, and in other dtypes near-ties fall either way")
    prompts = [subject.tokens(count, seed) for seed, count in enumerate((LONG, 1, 6))]
    greedy = SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True)
    with subject.llm("float32") as llm:
        outputs = llm.generate(prompts, greedy, progress=False)
    for prompt, output in zip(prompts, outputs, strict=True):
        wanted = subject.oracle.generate(prompt, ANSWER)
        want(
            list(output.token_ids) == wanted,
            f"{list(output.token_ids)} after {len(prompt)} tokens",
            f"{wanted}",
        )


def boundaries_are_the_oracles(subject: Subject) -> None:
    """The stream at every boundary, in any order and repeated, is the oracle's hidden state."""
    if "taps" not in subject.capabilities:
        raise NotApplicable("the spec does not offer 'taps'")
    tokens = subject.tokens(9)
    exact = subject.oracle.hidden_states(tokens, "float32")
    if not exact:
        raise NotApplicable("the oracle knows no hidden states")
    last = len(exact) - 1
    asked = [last, 0, last - 1, 0]
    model = subject.load("float32", hidden=ReturnHiddenStates.SELECTED, boundaries=asked)
    session = subject.session("float32", model=model)
    session.add("a", tokens)
    got = session.execute(session.inputs({"a": len(tokens)})).hidden_states
    want(got is not None, "no hidden states", "one for each boundary asked for")
    assert got is not None
    columns = got.cpu().double().chunk(len(asked), dim=1)
    scale = float(torch.stack(exact).abs().max())
    for boundary, column in zip(asked, columns, strict=True):
        gap = float((column - exact[boundary]).abs().max())
        nearest = min(range(last + 1), key=lambda i: float((column - exact[i]).abs().max()))
        want(
            nearest == boundary and gap <= 1e-4 * scale,
            f"boundary {boundary}: off by {gap:.3g}, and nearest to the oracle's {nearest}",
            f"the oracle's hidden state {boundary}, within {1e-4 * scale:.3g}",
        )
