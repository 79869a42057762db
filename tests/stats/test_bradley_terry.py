"""Strengths of releases: against statsmodels, by hand, and by simulation of coverage."""

import math

import numpy as np
import pytest

from trueup.stats import Game, Strength, bradley_terry


def chain(rng: np.random.Generator, strengths: list[float], prompts: int = 80) -> list[Game]:
    """Each release against the one before it, on the same prompts, a fifth of ties."""
    games = []
    for k in range(1, len(strengths)):
        chance = 1 / (1 + math.exp(strengths[k - 1] - strengths[k]))
        points = np.where(rng.random(prompts) < 0.2, 0.5, rng.random(prompts) < chance)
        games += [Game(f"M{k}", f"M{k - 1}", f"p{i}", x) for i, x in enumerate(points.tolist())]
    return games


def test_two_players_by_hand() -> None:
    """7 wins, 2 ties, 1 loss: a win rate of 0.8, whose logit is log 4."""
    points = [1.0] * 7 + [0.5] * 2 + [0.0]
    found = bradley_terry(
        [Game("a", "m0", f"p{i}", x) for i, x in enumerate(points)], "m0", prior=False
    )
    assert found["a"].win_rate.estimate == pytest.approx(0.8)
    assert found["a"].logit.estimate == pytest.approx(math.log(4), abs=1e-5)
    assert set(found) == {"a"}


def test_strengths_and_errors_are_those_of_an_independent_fit() -> None:
    sm = pytest.importorskip("statsmodels.api", reason="statsmodels is not installed: no oracle")
    games = chain(np.random.default_rng(0), [0, 0.4, 0.3, 0.9])
    games += [g._replace(first="M3", second="M0") for g in games[:40]]
    x = np.array(
        [[(g.first == f"M{k}") - (g.second == f"M{k}") for k in (1, 2, 3)] for g in games], float
    )
    groups = np.unique([g.prompt for g in games], return_inverse=True)[1]
    oracle = sm.GLM([g.points for g in games], x, family=sm.families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}
    )
    found = bradley_terry(games, "M0", prior=False)
    t = 1.990450  # 0.975, 79 degrees: 80 prompts
    for k, name in enumerate(("M1", "M2", "M3")):
        assert found[name].logit.estimate == pytest.approx(oracle.params[k], abs=1e-5)
        half = t * oracle.bse[k] * math.sqrt(80 / 79)
        assert found[name].logit.high - found[name].logit.estimate == pytest.approx(half, rel=1e-4)


def test_who_is_first_in_a_game_does_not_matter() -> None:
    games = chain(np.random.default_rng(1), [0, 0.5, 1.0])
    turned = [Game(g.second, g.first, g.prompt, 1 - g.points) for g in games]
    there, back = bradley_terry(games, "M0"), bradley_terry(turned, "M0")
    assert there["M2"].logit == pytest.approx(back["M2"].logit, abs=1e-6)


def test_the_end_of_a_chain_is_covered() -> None:
    """Four weeks of small gains; ties pull a Bradley-Terry strength to a known place."""
    strengths, rng = [0.0, 0.3, 0.6, 0.9, 1.2], np.random.default_rng(2)
    step = 1 / (1 + math.exp(-0.3))
    truth = 4 * math.log((0.1 + 0.8 * step) / (0.1 + 0.8 * (1 - step)))
    held = []
    for _ in range(600):
        end = bradley_terry(chain(rng, strengths), "M0")["M4"].logit
        held.append(end.low <= truth <= end.high)
    assert 0.93 <= np.mean(held) <= 0.97


def duel(points: list[float]) -> Strength:
    return bradley_terry([Game("a", "m0", f"p{i}", x) for i, x in enumerate(points)], "m0")["a"]


def test_half_a_win_and_half_a_loss_are_added_by_hand() -> None:
    """9 wins and a loss: log 9.5 / 1.5 (Gart 1966); the sandwich of ten votes and two halves."""
    found, p = duel([1.0] * 9 + [0.0]), 9.5 / 11
    assert found.logit.estimate == pytest.approx(math.log(9.5 / 1.5), abs=1e-5)
    votes, halves = 9 * (1 - p) ** 2 + p**2, ((1 - p) ** 2 + p**2) / 2
    half = 2.262157 * math.sqrt(votes * 10 / 9 + halves) / (11 * p * (1 - p))  # t(0.975, 9)
    assert found.logit.high - found.logit.estimate == pytest.approx(half, rel=1e-4)


def test_wins_alone_are_no_certainty() -> None:
    assert duel([1.0] * 3).win_rate.low < 0.1
    assert duel([1.0] * 5).win_rate.high - duel([1.0] * 5).win_rate.low > 0.5
    assert duel([0.0] * 30).win_rate.high > 0.1
    assert duel([1.0] * 100).win_rate.low > 0.9


@pytest.mark.parametrize("prompts", [30, 60, 100])
def test_a_win_rate_of_95_per_cent_is_covered(prompts: int) -> None:
    """1,000 duels; the logit of the win rate is 3."""
    rng, truth, held = np.random.default_rng(4), 1 / (1 + math.exp(-3)), []
    for _ in range(1000):
        found = duel((rng.random(prompts) < truth).astype(float).tolist()).win_rate
        held.append(found.low <= truth <= found.high)
        assert 0 < found.low < found.high < 1
    assert 0.93 <= np.mean(held) <= 0.975


def test_a_player_nobody_linked_to_the_anchor_is_unknown() -> None:
    games = chain(np.random.default_rng(3), [0, 0.5])
    games += [Game("x", "y", f"p{i}", 1.0) for i in range(5)]
    assert set(bradley_terry(games, "M0")) == {"M1"}
    assert bradley_terry(games, "nobody") == {}
    assert bradley_terry([], "M0") == {}
