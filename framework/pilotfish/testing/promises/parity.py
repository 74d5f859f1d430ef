"""Promises about what is computed: the logits, tokens and hidden states of another implementation.

Knows: the oracle and the tolerance. Does not know: batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from pilotfish.config import SamplingParams
from pilotfish.protocols import ReturnHiddenStates
from pilotfish.testing.near_ties import want_like_oracle
from pilotfish.testing.outcome import Broken, NotApplicable, NotKnown, want
from pilotfish.testing.subject import LONG, Subject

ANSWER = 8
"""Tokens of an answer."""
AGREES = 1e-3
"""An oracle's float32 logits are off from its float64 ones by less, of their root mean square: what
rounding does is a hundredth of it. With a wider gap any logits would do."""


def want_one_opinion(subject: Subject, tokens: Sequence[int]) -> None:
    """Raises NotKnown where the oracle's `eager` is not its `exact`, so that neither is a measure.

    tokens: whose logits are compared, in float32.
    """
    exact = subject.oracle.exact(tokens, "float32")
    eager = subject.oracle.eager(tokens, "float32")
    gap = float((eager.double() - exact).square().mean().sqrt())
    scale = float(exact.square().mean().sqrt())
    if not gap <= AGREES * scale:
        raise NotKnown(
            f"the oracle contradicts itself: its `eager` logits in float32 are off by {gap:.3g} "
            f"from its `exact` ones, which are of size {scale:.3g}; mend the oracle first"
        )


def logits_are_the_oracles(subject: Subject) -> None:
    """Logits are no further from float64 than twice what the oracle itself is in that dtype."""
    want_one_opinion(subject, subject.tokens(LONG))
    texts = [(dtype, subject.tokens(LONG)) for dtype in subject.dtypes]
    for dtype, tokens in [*texts, (subject.dtype, subject.longer_tokens())]:
        where = f"logits of {len(tokens)} tokens in {dtype}"
        want_like_oracle(subject.oracle, tokens, dtype, partial(subject.alone, dtype=dtype), where)


def arithmetics_agree(subject: Subject) -> None:
    """The fastest arithmetic is as near to float64 as the invariant must be, in chunks and whole.

    It may take another form of a sum for many rows than for few, so all sizes are tried.
    """
    tokens = subject.tokens(LONG)
    want_one_opinion(subject, tokens)
    for dtype in subject.dtypes:
        prepared = subject.prepared(dtype, arithmetic="fastest")
        prepared.model.load_model(prepared.weights)
        for chunks in ((), (11, 1, 1, 9)):
            where = f"logits of the fastest arithmetic in {dtype}" + " in chunks" * bool(chunks)
            run = partial(subject.alone, dtype=dtype, model=prepared.model, chunks=chunks)
            want_like_oracle(subject.oracle, tokens, dtype, run, where)


def greedy_tokens_are_the_oracles(subject: Subject) -> None:
    """Greedy answers in float32 are the oracle's, token by token."""
    if "float32" not in subject.dtypes:
        raise NotApplicable("float32 is not tested, and in other dtypes near-ties fall either way")
    prompts = [subject.tokens(count, seed) for seed, count in enumerate((LONG, 1, 6))]
    greedy = SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True)
    with subject.llm("float32") as llm:
        outputs = llm.generate(prompts, greedy, progress=False)
    for prompt, output in zip(prompts, outputs, strict=True):
        got, wanted = list(output.token_ids), subject.oracle.generate(prompt, ANSWER)
        # What follows a placeholder that nobody asked for is up to each implementation.
        placeholders = (i for i, token in enumerate(wanted) if token in subject.placeholder_ids)
        stop = next(placeholders, ANSWER) + 1
        if got[:stop] != wanted[:stop]:
            _judge(subject, prompt, got, wanted)


def _judge(subject: Subject, prompt: Sequence[int], got: list[int], wanted: list[int]) -> None:
    """Says which of two answers is wrong, by the oracle's `exact` logits where they part."""
    place = next(i for i, (a, b) in enumerate(zip(got, wanted, strict=True)) if a != b)
    logits = subject.oracle.exact([*prompt, *got[:place]], "float32")[-1]
    likeliest = int(logits.argmax())
    told = f"{got} after {len(prompt)} tokens"
    at = f"at token {place} the oracle's `exact` logits take {likeliest}"
    if likeliest == got[place]:
        raise NotKnown(
            f"the oracle contradicts itself: {at}, as {told} does, and its `generate` gives "
            f"{wanted}; mend the oracle's `generate` (`Oracle.generate` asks `eager` alone)"
        )
    want(False, told, f"{wanted}: {at}")


def boundaries_are_the_oracles(subject: Subject) -> None:
    """The stream at every boundary, in any order and repeated, is the oracle's hidden state."""
    if "aux_hidden_states" not in subject.capabilities:
        raise NotApplicable("the spec does not offer 'aux_hidden_states'")
    tokens = subject.tokens(9)
    oracle = subject.oracle
    exact = oracle.hidden_states(tokens, "float32")
    if not exact:
        raise NotKnown(f"the `hidden_states` of the oracle, {type(oracle).__name__}, gives none")
    last = len(exact) - 1
    asked = [last, 0, last - 1, 0]
    model = subject.load("float32", hidden=ReturnHiddenStates.SELECTED, boundaries=asked)
    session = subject.session("float32", model=model)
    session.add("a", tokens)
    got = session.execute(session.inputs({"a": len(tokens)})).hidden_states
    if got is None:
        raise Broken("no hidden states", "one for each boundary asked for")
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
