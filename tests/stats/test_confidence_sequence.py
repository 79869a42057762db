"""The confidence sequence: against the bets themselves, and under continuous looking."""

import numpy as np
import pytest

from trueup.stats import Interval, betting_evalue, confidence_sequence, evidence_path

BETS = (np.arange(100) + 0.5) / 50


def ruled_out(values: np.ndarray, mean: float, level: float) -> bool:
    """Slow and obvious: has the wealth of the bets that the mean is above reached 1 / level?"""
    wealth = [np.prod(1 + c * (values / mean - 1)) for c in BETS / 2]
    return bool(np.mean(wealth) >= 1 / level)


def test_the_ends_are_where_the_bets_stop_to_rule_out() -> None:
    values = np.random.default_rng(0).choice([0, 0.25, 0.5, 1], size=40)
    for confidence in (0.8, 0.95):
        level = (1 - confidence) / 2
        ends = [confidence_sequence(values[: t + 1], confidence=confidence)[-1] for t in (9, 39)]
        for t, end in zip((9, 39), ends, strict=True):
            looks = [values[: k + 1] for k in range(t + 1)]
            for mean, is_in in ((end.low - 1e-6, False), (end.low + 1e-6, True)):
                if mean > 0:
                    assert any(ruled_out(look, mean, level) for look in looks) != is_in
            for mean, is_in in ((end.high + 1e-6, False), (end.high - 1e-6, True)):
                if mean < 1:
                    assert any(ruled_out(1 - look, 1 - mean, level) for look in looks) != is_in


def test_above_one_half_is_what_the_e_value_says() -> None:
    """At 95 % the lower end passes 1/2 when the e-value reaches 40."""
    values = np.random.default_rng(1).choice([0.0, 1.0], size=120, p=[0.3, 0.7])
    path = evidence_path(values)
    above = [one.low >= 0.5 - 1e-9 for one in confidence_sequence(values)]
    assert above == [max(path[: t + 1]) >= 40 for t in range(120)]
    assert True in above and False in above


def test_the_path_is_the_e_value_after_each_outcome() -> None:
    values = np.random.default_rng(2).choice([0.0, 0.5, 1.0], size=30)
    assert evidence_path(values) == pytest.approx(
        [betting_evalue(values[: t + 1]) for t in range(30)]
    )
    assert evidence_path([]) == []


def test_the_ends_never_widen_and_hold_the_estimate() -> None:
    sequence = confidence_sequence(np.random.default_rng(3).random(80))
    lows, highs = [s.low for s in sequence], [s.high for s in sequence]
    assert lows == sorted(lows) and highs == sorted(highs, reverse=True)
    assert all(s.low <= s.estimate <= s.high for s in sequence)
    assert sequence[-1].high - sequence[-1].low < 0.3


def test_turning_wins_into_losses_mirrors_it() -> None:
    values = np.random.default_rng(4).choice([0.0, 0.5, 1.0], size=50)
    there, back = confidence_sequence(values)[-1], confidence_sequence(1 - values)[-1]
    assert Interval(1 - back.estimate, 1 - back.high, 1 - back.low) == pytest.approx(there)


def test_looking_after_every_vote_it_is_wrong_once_in_twenty_at_most() -> None:
    """2,000 histories of 200 votes, a fifth of them ties; wrong at any look is wrong. An interval
    for a fixed number of votes, looked at as often, is wrong several times as often."""
    rng, truth, levels = np.random.default_rng(5), 0.6, np.array([0.0, 0.5, 1.0])
    drawn = rng.choice(3, size=(2000, 200), p=[0.3, 0.2, 0.5])
    wrong = np.zeros(2000, bool)
    for side, mean in ((levels, truth), (1 - levels, 1 - truth)):
        logs = np.log1p(BETS[:, None] / 2 * (side / mean - 1))  # (bets, 3)
        wealth = np.zeros((2000, 200))
        for bet in logs:
            wealth += np.exp(bet[drawn].cumsum(axis=1)) / len(BETS)
        wrong |= (wealth >= 40).any(axis=1)
    assert 0.005 < wrong.mean() <= 0.05
    for history in [*np.flatnonzero(wrong)[:10], *np.flatnonzero(~wrong)[:10]]:
        end = confidence_sequence(levels[drawn[history]])[-1]
        assert (end.low <= truth <= end.high) != wrong[history]
    assert peeking(levels[drawn], truth) > 0.2


def peeking(values: np.ndarray, truth: float) -> float:
    """How often an interval for a fixed number of votes is wrong at some look from the 20th on."""
    n = np.arange(1, values.shape[1] + 1)
    means = values.cumsum(axis=1) / n
    errors = np.sqrt(np.maximum((values**2).cumsum(axis=1) / n - means**2, 0) / n)
    return float((np.abs(means - truth) > 1.96 * errors)[:, 19:].any(axis=1).mean())


def test_no_votes_no_interval() -> None:
    assert confidence_sequence([]) == []
