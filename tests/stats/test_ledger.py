"""Levels of a sequence of gates: by hand, and over 26 weeks whose truth is known."""

from typing import NamedTuple

import numpy as np
import pytest
from scipy.special import zeta
from scipy.stats import binom

from trueup.stats import elond_level, lord_level, replay
from trueup.stats.ledger import discount


def test_the_budget_is_spent_once() -> None:
    total = sum(discount(place) for place in range(1, 200_001))
    assert 0.99 < total < 1
    assert total + 2 / np.sqrt(200_000) / zeta(1.5) == pytest.approx(1, abs=1e-6)  # the tail
    assert discount(0) == discount(-3) == 0


def test_the_levels_by_hand() -> None:
    """At an fdr of 0.1: e-LOND multiplies by one more than the discoveries, LORD++ adds."""
    first = 1 / 2.612375
    assert elond_level(1, [], 0.1) == pytest.approx(0.1 * first, rel=1e-6)
    assert elond_level(4, [1, 3], 0.1) == pytest.approx(0.1 * first / 8 * 3, rel=1e-6)
    assert elond_level(4, [1, 3, 4, 9], 0.1) == elond_level(4, [1, 3], 0.1)  # the past alone
    assert lord_level(1, [], 0.1) == pytest.approx(0.05 * first, rel=1e-6)
    by_hand = 0.05 / 8 + 0.05 * 3**-1.5 + 0.1 * 1
    assert lord_level(4, [1, 3], 0.1) == pytest.approx(by_hand * first, rel=1e-6)


def test_what_the_docs_say_a_gate_must_show() -> None:
    asked = [1 / elond_level(place, range(1, 1 + found), 0.1)
             for place, found in ((1, 0), (2, 1), (8, 2), (8, 6), (26, 4), (26, 13))]  # fmt: skip
    assert asked == pytest.approx([26.1, 36.9, 197.0, 84.4, 692.7, 247.4], abs=0.1)


def test_a_replay_gives_the_levels_that_each_gate_saw() -> None:
    entries = replay([2.8e5, 3.0, 66.0, 500.0])
    assert [e.discovered for e in entries] == [True, False, False, True]
    assert [e.needed for e in entries] == pytest.approx([26.12, 36.94, 67.87, 104.50], abs=0.01)


# --- 26 weeks -------------------------------------------------------------------------------------

WEEKS, VOTES = 26, 300


class Year(NamedTuple):
    """Half years, (runs, weeks): which candidates were better, and what their votes came to."""

    better: np.ndarray
    wins: np.ndarray
    evidence: np.ndarray

    def error_and_power(self, promoted: np.ndarray) -> tuple[float, float]:
        """The mean share of false promotions among them, and the share of the better found."""
        false = (promoted & ~self.better).sum(1) / np.maximum(promoted.sum(1), 1)
        return float(false.mean()), float(promoted[self.better].mean())

    def ledger(self, rule: str, evidence: np.ndarray) -> np.ndarray:
        return np.array([[e.discovered for e in replay(row, rule=rule)] for row in evidence])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def year() -> Year:
    """1,500 half years: 70 % of the weeks bring nothing, 15 % six points, 15 % lose six."""
    rng = np.random.default_rng(0)
    kind = rng.choice(3, size=(1500, WEEKS), p=[0.7, 0.15, 0.15])
    wins = rng.binomial(VOTES, np.array([0.5, 0.56, 0.44])[kind])
    bets, won = (np.arange(100) + 0.5) / 50, np.arange(VOTES + 1)[:, None]
    wealth = won * np.log1p(bets / 2) + (VOTES - won) * np.log1p(-bets / 2)
    return Year(kind == 1, wins, np.exp(wealth).mean(1)[wins])


def test_the_naive_gates_promotions_are_mostly_false(year: Year) -> None:
    promoted = year.wins > VOTES / 2
    assert year.error_and_power(promoted)[0] > 0.5
    assert 8 < (promoted & ~year.better).sum(1).mean() < 9.5


def test_the_ledger_keeps_false_promotions_below_a_tenth(year: Year) -> None:
    for rule in ("e-lond", "lord++"):
        error, power = year.error_and_power(year.ledger(rule, year.evidence))
        assert error <= 0.1
        assert power > 0, "a ledger that never promotes would pass"


def test_lord_on_fixed_n_p_values_has_the_published_error_and_more_power(year: Year) -> None:
    p_values = binom.sf(year.wins - 1, VOTES, 0.5)
    error, power = year.error_and_power(year.ledger("lord++", 1 / p_values))
    assert error <= 0.1
    assert 0.1 < power < 0.5


def test_with_800_votes_and_ten_points_the_ledger_finds_nine_in_ten() -> None:
    """The fix for power is votes: the same ledger, a change worth promoting, votes to see it."""
    rng = np.random.default_rng(1)
    bets = (np.arange(100) + 0.5) / 50
    better = rng.random((200, WEEKS)) < 0.3
    wins = rng.binomial(800, np.where(better, 0.6, 0.5))[..., None]
    evidence = np.exp(wins * np.log1p(bets / 2) + (800 - wins) * np.log1p(-bets / 2)).mean(-1)
    year = Year(better, wins, evidence)
    error, power = year.error_and_power(year.ledger("e-lond", evidence))
    assert error < 0.02
    assert power > 0.9


def test_e_lond_holds_where_all_weeks_are_the_same_draw() -> None:
    """The worst dependence: one e-value, 40 with chance 1/40 and else 0, seen in every week.

    LORD++ at p = 1/e is not made for it; e-LOND is.
    """
    lucky = np.random.default_rng(2).random(4000) < 1 / 40
    promoted = [any(e.discovered for e in replay([40.0 if one else 0.0] * WEEKS)) for one in lucky]
    assert np.mean(promoted) <= 0.1
    assert any(promoted)
