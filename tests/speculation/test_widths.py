"""Widths: what a policy chooses, on a simulated clock; real time is never asserted."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from pilotfish.config import SpeculativeConfig
from pilotfish.config.speculative import MOST
from pilotfish.errors import ConfigError
from pilotfish.speculation import WidthPolicy
from pilotfish.speculation.width import AdaptiveWidth, FixedWidth, ScheduledWidth, width_policy

Cost = Callable[[int], float]
STEPS = 6000


def simulate(
    policy: WidthPolicy, chance: Callable[[int], float], verify: Cost, draft: Cost, batch: int = 1
) -> float:
    """Tokens a second: each step verifies what the step before drafted, then drafts.

    chance: step -> probability that a drafted token is right. verify, draft: seconds by width.
    """
    drawn, width = random.Random(0), 0
    tokens, seconds = 0, 0.0
    for step in range(STEPS):
        for _ in range(batch):
            accepted = 0
            while accepted < width and drawn.random() < chance(step):
                accepted += 1
            if width:
                policy.observe_acceptance(width, accepted)
            tokens += accepted + 1
        following = policy.choose(batch)
        policy.observe(batch, width, verify(width))
        policy.observe_drafting(batch, following, draft(following))
        seconds += verify(width) + draft(following)
        width = following
    return tokens / seconds


CASES: dict[str, tuple[Callable[[int], float], Cost, Cost]] = {
    "good and cheap": (lambda _: 0.9, lambda w: 1 + 0.05 * w, lambda w: 0.05 * w),
    "good but dear": (lambda _: 0.8, lambda w: 1 + 0.05 * w, lambda w: 0.4 * w),
    "useless": (lambda _: 0.02, lambda w: 1 + 0.05 * w, lambda w: 0.05 * w),
    "even, one pass a token": (lambda _: 0.5, lambda w: 1 + 0.05 * w, lambda w: 1.0 * w),
    "a fixed price for drafting": (lambda _: 0.5, lambda w: 1 + 0.02 * w, lambda w: 3.0 * (w > 0)),
    "drafting for six passes": (lambda _: 0.6, lambda w: 1 + 0.02 * w, lambda w: 6.0 * (w > 0)),
    "verifying is dear": (lambda _: 0.7, lambda w: 1 + 0.9 * w, lambda w: 0.01 * w),
    "becomes good": (lambda s: 0.1 if s < 2000 else 0.9, lambda w: 1 + 0.05 * w, lambda w: 0.1 * w),
    "becomes bad": (lambda s: 0.9 if s < 2000 else 0.05, lambda w: 1 + 0.1 * w, lambda w: 0.2 * w),
}


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", CASES)
def test_adaptive_is_near_the_best_width_and_never_far_below_plain(name: str, batch: int) -> None:
    case = CASES[name]
    fixed = {width: simulate(FixedWidth(width), *case, batch) for width in (0, 1, 2, 3, 4, 6, 8)}
    got = simulate(AdaptiveWidth(8), *case, batch)
    assert got >= 0.85 * max(fixed.values()), fixed
    assert got >= 0.95 * fixed[0]


def test_adaptive_copes_with_a_drafter_that_seldom_proposes() -> None:
    """Passes verify less than was asked for, and proposals that come are wrong: it stops asking."""
    policy = AdaptiveWidth(8)
    chosen = []
    for step in range(1500):
        chosen.append(policy.choose(8))
        verified = chosen[-1] if step % 2 else 0
        policy.observe(8, verified / 2, 1 + 0.2 * verified)
        policy.observe_drafting(8, chosen[-1], 0.01)
        if verified:
            policy.observe_acceptance(verified, 0)
    assert chosen[-300:].count(0) > 270


def test_adaptive_soon_drafts_all_of_what_is_always_accepted() -> None:
    """Places that were never reached are thought as good as those that were."""
    policy = AdaptiveWidth(7)
    for _ in range(30):
        width = policy.choose(1)
        policy.observe(1, width, 1 + 0.05 * width)
        policy.observe_acceptance(width, width)
    assert {policy.choose(1) for _ in range(9)} == {7}


def test_adaptive_stays_within_its_most() -> None:
    for most in (1, 2, 5):
        policy = AdaptiveWidth(most)
        simulate(policy, lambda _: 0.95, lambda w: 1.0, lambda w: 0.0)
        assert all(policy.choose(1) <= most for _ in range(300))


@pytest.mark.parametrize("most", [3, 5, 7, 15])
def test_adaptive_knows_the_width_that_a_draft_was_made_for(most: int) -> None:
    """A block costs the same however much of it is asked for: all of it is best."""
    policy = AdaptiveWidth(most)
    simulate(policy, lambda _: 0.98, lambda w: 1.0, lambda w: 0.1)
    assert [policy.choose(1) for _ in range(10)].count(most) > 5


def test_adaptive_drafts_no_more_than_a_width_may_be() -> None:
    assert width_policy(SpeculativeConfig(method="any"), 10**12).most == MOST


def test_schedules_and_fixed_widths() -> None:
    schedule = ScheduledWidth({2: 5, 4: 1, 16: 0})
    assert [schedule.choose(size) for size in (1, 2, 3, 4, 15, 16, 99)] == [0, 5, 5, 1, 1, 0, 0]
    assert (schedule.most, FixedWidth(3).most, FixedWidth(3).choose(7)) == (5, 3, 3)


def test_a_config_names_the_policy() -> None:
    def made(width: object, most: int | None = None) -> WidthPolicy:
        return width_policy(SpeculativeConfig(method="m", width=width), most)  # type: ignore[arg-type]

    assert type(made(3)) is FixedWidth
    assert type(made({1: 3})) is ScheduledWidth
    assert (type(made("adaptive", 5)), made("adaptive", 5).most) == (AdaptiveWidth, 5)
    assert made("adaptive").most == 7
    for wrong in (0, -1, "wide", {}, {0: 1}, {1: -1}, True):
        with pytest.raises(ConfigError, match="width is"):
            SpeculativeConfig(method="m", width=wrong)  # type: ignore[arg-type]
