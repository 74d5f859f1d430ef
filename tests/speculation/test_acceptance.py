"""Acceptance rules: laws by enumeration, traps, and what each rule must never do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from pilotfish.batch import Proposal
from pilotfish.config import SamplingParams, SpeculativeConfig
from pilotfish.errors import ConfigError
from pilotfish.sampling import Sampler, SamplingRow, TokenHistory
from pilotfish.speculation import acceptance as rules
from pilotfish.speculation.acceptance import (
    Accepted,
    CoupledAcceptance,
    ResidualAcceptance,
    VerifyRequest,
    acceptance_probability,
    residual_probs,
)
from pilotfish.speculation.acceptance_rules import (
    RelaxedAcceptance,
    SyntheticAcceptance,
    acceptance_rule,
    synthetic_base,
)
from support.rows import row_after

EXACT = 1e-12


@st.composite
def probs(draw: st.DrawFn, size: int) -> torch.Tensor:
    """A law over a tiny vocabulary: zeros, ties, one-hots and uneven ones."""
    weights = draw(
        st.lists(st.sampled_from([0, 0, 1, 1, 2, 3, 7, 50]), min_size=size, max_size=size).filter(
            any
        )
    )
    probs = torch.tensor(weights, dtype=torch.float64)
    return probs / probs.sum()


@st.composite
def pairs(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    size = draw(st.integers(1, 8))
    p = draw(probs(size))
    q = p.clone() if draw(st.booleans()) and draw(st.booleans()) else draw(probs(size))
    return p, q


@settings(max_examples=400)
@given(pair=pairs())
def test_residual_acceptance_leaves_the_targets_law_exactly(
    pair: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Enumeration over every draft: sum q(d) a(d) [d] + (rejected mass) residual == p."""
    p, q = pair
    chance = acceptance_probability(p, q)
    assert bool(((chance >= 0) & (chance <= 1)).all())
    kept = q * chance
    probs = kept + (1 - kept.sum()) * residual_probs(p, q)
    assert (probs - p).abs().max() <= EXACT


@settings(max_examples=100)
@given(pair=pairs(), token=st.integers(0, 7))
def test_a_certain_draft_leaves_the_law_too(
    pair: tuple[torch.Tensor, torch.Tensor], token: int
) -> None:
    """A draft that was not drawn: q is all on it."""
    p, _ = pair
    q = torch.zeros_like(p)
    q[token % len(p)] = 1.0
    kept = q * acceptance_probability(p, q)
    assert (kept + (1 - kept.sum()) * residual_probs(p, q) - p).abs().max() <= EXACT


def test_the_traps_of_the_residual() -> None:
    """Pitfalls 20 and 21: p == q, disjoint supports, one-hots; a zero is never accepted."""
    p = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    assert torch.equal(residual_probs(p, p), p)
    assert torch.equal(acceptance_probability(p, p), torch.tensor([1.0, 1.0, 0.0]).double())
    q = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    assert torch.equal(residual_probs(p, q), p)
    assert float(acceptance_probability(p, q)[2]) == 0.0


def rows_of(
    params: SamplingParams, seed: int, drafts: Sequence[int], position: int = 3
) -> list[SamplingRow]:
    history = TokenHistory([1] * position)
    return [
        row_after(history, params, seed=seed, draft_ids=drafts[:place])
        for place in range(len(drafts) + 1)
    ]


def request(
    drafts: Sequence[int],
    *,
    params: SamplingParams | None = None,
    seed: int = 0,
    probs: torch.Tensor | None = None,
    context: Sequence[int] = (),
) -> VerifyRequest:
    return VerifyRequest(
        rows=rows_of(params or SamplingParams(), seed, drafts),
        draft=Proposal(tokens=tuple(drafts), probs=probs),
        context=context,
    )


LOGITS = torch.tensor([[0.3, 1.0, -0.7, 0.0], [2.0, 0.0, 0.5, -1.0], [0.1, 0.2, 0.3, 0.4]])


@settings(max_examples=100)
@given(seed=st.integers(0, 2**40), drafts=st.lists(st.integers(0, 3), max_size=2))
def test_coupled_commits_what_plain_sampling_gives_for_every_draft(
    seed: int, drafts: list[int]
) -> None:
    """Pitfall 19. The target's own samples, row by row, cut at the first mismatch."""
    logits = LOGITS[: len(drafts) + 1]
    [got] = CoupledAcceptance(Sampler()).decide(logits, [request(drafts, seed=seed)])
    own = Sampler().sample(logits, rows_of(SamplingParams(), seed, drafts)).token_ids.tolist()
    wanted = []
    for place, token in enumerate(own):
        wanted.append(token)
        if place < len(drafts) and drafts[place] != token:
            break
    assert list(got.tokens) == wanted
    assert got.num_accepted == len(wanted) - 1


@pytest.mark.parametrize("rule", [CoupledAcceptance, ResidualAcceptance])
def test_greedy_rows_commit_the_argmax_in_every_rule(rule: type[CoupledAcceptance]) -> None:
    params = SamplingParams(temperature=0)
    [right] = rule(Sampler()).decide(LOGITS, [request([1, 0], params=params)])
    assert right == Accepted(num_accepted=2, tokens=(1, 0, 3), logprobs=(None,) * 3)
    [wrong] = rule(Sampler()).decide(LOGITS, [request([1, 2], params=params)])
    assert (wrong.num_accepted, wrong.tokens) == (1, (1, 0))


@pytest.mark.parametrize("temperature", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("rule", [CoupledAcceptance, ResidualAcceptance])
def test_the_sampled_law_is_the_targets(rule: type[CoupledAcceptance], temperature: float) -> None:
    """Pitfalls 18, 19, 23, by chi-squared: the first token's law at each temperature."""
    params = SamplingParams(temperature=temperature)
    q = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    counts, drawn = [0] * 4, 3_000
    generator = torch.Generator().manual_seed(1)
    drafts = torch.multinomial(q[0], drawn, replacement=True, generator=generator).tolist()
    for seed, draft in enumerate(drafts):
        [got] = rule(Sampler()).decide(
            LOGITS[:2], [request([draft], params=params, seed=seed, probs=q)]
        )
        counts[got.tokens[0]] += 1
    probs = (LOGITS[0].double() / temperature).softmax(-1)
    assert chisquare(counts, (probs * drawn).numpy()).pvalue > 1e-4


def test_a_uniform_of_zero_never_comes_and_a_banned_draft_is_never_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pitfall 21."""
    monkeypatch.setattr(rules, "uniform_of", lambda row: math.ulp(0.0))
    params = SamplingParams(logit_bias={2: -1e9})
    for seed in range(50):
        [got] = ResidualAcceptance(Sampler()).decide(
            LOGITS[:2], [request([2], params=params, seed=seed, probs=torch.eye(4)[2:3])]
        )
        assert got.num_accepted == 0
        assert got.tokens[0] != 2


def test_requests_are_decided_by_their_own_rows_alone() -> None:
    """Pitfall 35, for the rules: batch == singles, whatever stands beside it."""
    batch = [request([1], seed=4), request([], seed=5), request([3, 0], seed=6)]
    logits = torch.cat([LOGITS[:2], LOGITS[2:], LOGITS])
    slices = (slice(0, 2), slice(2, 3), slice(3, 6))
    for rule in (
        CoupledAcceptance(Sampler()),
        ResidualAcceptance(Sampler()),
        SyntheticAcceptance(Sampler(), 0.5),
        RelaxedAcceptance(Sampler(), 8, 9),
    ):
        together = rule.decide(logits, batch)
        for one, rows, got in zip(batch, slices, together, strict=True):
            assert rule.decide(logits[rows], [one]) == [got]


def test_log_probabilities_are_of_the_committed_tokens() -> None:
    """Pitfall 25."""
    params = SamplingParams(logprobs=1)
    for rule in (CoupledAcceptance(Sampler()), ResidualAcceptance(Sampler())):
        for seed in range(20):
            [got] = rule.decide(LOGITS, [request([1, 0], params=params, seed=seed)])
            assert [r.token_id for r in got.logprobs if r is not None] == list(got.tokens)
            for place, record in enumerate(got.logprobs):
                assert record is not None
                wanted = LOGITS[place].log_softmax(-1)[got.tokens[place]]
                assert record.logprob == pytest.approx(float(wanted), abs=1e-5)


def test_relaxed_commits_the_draft_only_while_it_thinks() -> None:
    """The committed token at an accepted place is the draft's, also where the target's differs."""

    def relaxed(**options: float) -> RelaxedAcceptance:
        return RelaxedAcceptance(Sampler(), 8, 9, top=2, slack=options.get("slack", 0.6))

    # A seed under which the target's own tokens are neither 0 nor 2 where those are drafted.
    own = [Sampler().sample(LOGITS, rows_of(SamplingParams(), s, [0, 2])) for s in range(200)]
    seed = next(s for s in range(200) if own[s].token_ids[0] == 1 and own[s].token_ids[1] == 0)
    last = int(own[seed].token_ids[2])
    thinking = request([0, 2], seed=seed, context=[1, 8, 1])
    [got] = relaxed().decide(LOGITS, [thinking])
    assert (got.num_accepted, got.tokens) == (2, (0, 2, last))
    [strict] = relaxed().decide(LOGITS, [request([0, 2], seed=seed, context=[8, 1, 9, 1])])
    assert (strict.num_accepted, strict.tokens) == (0, (1,))
    [unlikely] = relaxed().decide(LOGITS, [request([2, 2], seed=seed, context=[8])])
    assert (unlikely.num_accepted, unlikely.tokens) == (0, (1,))
    assert relaxed(slack=0.0).decide(LOGITS, [thinking])[0].tokens == (1,)
    ends = RelaxedAcceptance(Sampler(), 8, 0, top=2, slack=0.6)
    assert ends.decide(LOGITS, [thinking])[0].tokens == (0, 0), "0 ends the phase inside the block"
    banned = SamplingParams(logit_bias={0: -1e9})
    [never] = relaxed().decide(LOGITS, [request([0], params=banned, seed=seed, context=[8])])
    assert never.num_accepted == 0
    cold = SamplingParams(temperature=0)
    assert relaxed().decide(LOGITS, [request([0, 2], params=cold, context=[8])])[0].tokens == (1,)


def test_relaxed_reads_each_token_of_a_text_once() -> None:
    """The phase is carried on, and begins anew with a request that took the name."""
    rule = RelaxedAcceptance(Sampler(), 8, 9)

    def thinks(*context: int) -> bool:
        return rule._thinks(request([0], context=context))

    assert [thinks(8, 1), thinks(8, 1, 2), thinks(8, 1, 2, 9), thinks(8, 1, 2, 9, 8)] == [
        1,
        1,
        0,
        1,
    ]
    assert not thinks(1, 2)
    rule.release("")
    assert rule._phases == {}


@pytest.mark.parametrize(("rate", "width"), [(0.8, 4), (0.3, 1), (0.0, 3), (1.0, 5)])
def test_synthetic_accepts_at_the_asked_rate(rate: float, width: int) -> None:
    base = synthetic_base(rate, width)
    mean = sum(base**place for place in range(1, width + 1)) / width
    assert mean == pytest.approx(rate, abs=1e-12)
    rule = SyntheticAcceptance(Sampler(), rate)
    logits = torch.zeros(width + 1, 4)
    drawn = 600
    accepted = sum(
        rule.decide(logits, [request([3] * width, seed=seed)])[0].num_accepted
        for seed in range(drawn)
    )
    spread = 4 * math.sqrt(width / drawn) * 0.5
    assert accepted / (drawn * width) == pytest.approx(rate, abs=spread)


def test_a_config_names_the_rule() -> None:
    sampler = Sampler()
    for name, kind in (
        ("coupled", CoupledAcceptance),
        ("residual", ResidualAcceptance),
        ("synthetic", SyntheticAcceptance),
    ):
        config = SpeculativeConfig(method="m", acceptance=name)  # type: ignore[arg-type]
        assert type(acceptance_rule(config, sampler)) is kind
    thinking = SpeculativeConfig(method="m", acceptance="relaxed", thinking_tokens=(8, 9))
    assert type(acceptance_rule(thinking, sampler)) is RelaxedAcceptance
    for wrong in ({"thinking_tokens": (1,)}, {"synthetic_rate": 1.5}):
        with pytest.raises(ConfigError, match="wanted"):
            SpeculativeConfig(method="m", **wrong)  # type: ignore[arg-type]
