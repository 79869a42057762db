"""Paired comparison: p-values, their correction, slices, the budget, the tail."""

import random
from itertools import product
from math import comb

import pytest

from trueup.evaluate.config import EvaluateConfig
from trueup.evaluate.measure import clustered_share
from trueup.evaluate.paired import fall, holm, mcnemar, paired
from trueup.evaluate.run import _verdict
from trueup.records import Completion
from trueup.stats import wilson

TEXT = Completion(text="")


def test_mcnemar_is_the_share_of_splits_at_least_as_uneven() -> None:
    assert mcnemar(1, 7) == pytest.approx(18 / 256)
    assert mcnemar(0, 0) == 1.0 and mcnemar(5, 5) == 1.0
    for lost, won in product(range(7), range(7)):
        n = lost + won
        even = abs(lost - won)
        splits = sum(comb(n, k) for k in range(n + 1) if abs(2 * k - n) >= even)
        assert mcnemar(lost, won) == pytest.approx(splits / 2**n), (lost, won)


def test_holm_multiplies_the_smallest_most_and_keeps_the_order() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_a_slice_that_falls_is_named_though_the_whole_holds() -> None:
    slices = ["code"] * 20 + ["facts"] * 60
    theirs = [True] * 20 + [False] * 30 + [True] * 30
    ours = [True] * 8 + [False] * 12 + [True] * 14 + [False] * 16 + [True] * 30
    found = paired(slices, ours, theirs)
    assert found is not None and found.worst is not None
    assert [one.name for one in found.falling] == ["code"] and found.worst.name == "code"
    assert found.whole.difference.estimate > 0
    assert (found.whole.lost, found.whole.won) == (12, 14)
    assert found.slices[0].p_fall == pytest.approx(2 * 0.5**12)  # the smaller of two, doubled
    assert [one.name for one in found.slices] == ["code", "facts"]


def test_nothing_falls_where_nothing_changed_and_nothing_is_known_of_no_items() -> None:
    same = paired(["a", "b"], [True, False], [True, False])
    assert same is not None and same.falling == [] and same.worst is None
    assert same.whole.p_value == 1.0
    assert paired([], [], []) is None
    alone = paired(["a", "a"], [True, False], [False, False])
    assert alone is not None and alone.slices == []


def test_over_many_slices_unchanged_models_raise_few_alarms() -> None:
    rng = random.Random(3)
    alarms, naive, trials = 0, 0, 500
    for _ in range(trials):
        p_values = {}
        for name in map(str, range(8)):
            changed = rng.randint(6, 20)
            lost = sum(rng.random() < 0.5 for _ in range(changed))
            p_values[name] = fall(lost, changed - lost)
        naive += min(p_values.values()) < 0.05
        alarms += min(holm(p_values).values()) < 0.05
    assert alarms / trials <= 0.05  # all eight together
    assert naive / trials > 0.10  # as many single tests would not have kept that


# --- instructions of one prompt stand or fall together -----------------------------------------


def test_a_share_of_lone_outcomes_is_wilsons() -> None:
    found, plain = clustered_share([[True]] * 7 + [[False]] * 13), wilson(7, 20)
    assert plain is not None
    # the sample variance has n - 1 where Wilson's has n
    assert found == pytest.approx(plain, abs=0.01)


def test_clustered_intervals_cover_where_naive_ones_do_not() -> None:
    rng = random.Random(5)
    covered = naive = 0
    trials = 600
    for _ in range(trials):
        clusters = []
        for _ in range(60):
            p = rng.choice((0.2, 0.8))  # prompts differ, so their instructions agree
            clusters.append([rng.random() < p for _ in range(rng.choice((1, 2, 3)))])
        found = clustered_share(clusters)
        plain = wilson(sum(map(sum, clusters)), sum(map(len, clusters)))
        assert plain is not None
        covered += found.low <= 0.5 <= found.high
        naive += plain.low <= 0.5 <= plain.high
    assert 0.93 <= covered / trials <= 0.97
    assert naive < covered


# --- the gate's verdict --------------------------------------------------------------------------


def answers(passed: list[bool]) -> list[tuple[bool | None, Completion]]:
    return [(one, TEXT) for one in passed]


def test_small_losses_that_each_pass_add_up_to_a_refusal() -> None:
    """Eight promotions, each of which loses 4 of 200 items and passes alone."""
    config = EvaluateConfig(margin=0.06, budget=0.15)
    first = [True] * 160 + [False] * 40
    stopped = None
    for week in range(1, 9):
        before = [i >= 4 * (week - 1) and one for i, one in enumerate(first)]
        now = [i >= 4 * week and one for i, one in enumerate(first)]
        alone = _verdict(config, answers(now), answers(before))
        assert alone.passed, week
        verdict = _verdict(config, answers(now), answers(before), answers(first))
        assert verdict.figures["since_first"] == pytest.approx(-0.02 * week)
        if not verdict.passed and stopped is None:
            stopped = week
            assert "since the first model" in verdict.reason and "budget" in verdict.reason
    assert stopped is not None and 3 <= stopped <= 7


def test_a_champion_that_passes_nothing_is_a_warning() -> None:
    none, two = answers([False] * 80), answers([True] * 2 + [False] * 78)
    for ours, theirs in ((none, none), (none, two)):
        verdict = _verdict(EvaluateConfig(), ours, theirs)
        assert verdict.passed and "warning: the champion passes" in verdict.reason
    better = _verdict(EvaluateConfig(), answers([True] * 30 + [False] * 50), none)
    assert better.passed and "warning" not in better.reason


def test_without_a_budget_the_first_model_does_not_matter() -> None:
    now, first = [True] * 40 + [False] * 60, [True] * 100
    verdict = _verdict(EvaluateConfig(budget=None), answers(now), answers(now), answers(first))
    assert verdict.passed
    verdict = _verdict(EvaluateConfig(), answers(now), answers(now), answers(first))
    assert verdict.status == "refused"


def test_an_item_the_first_model_could_not_be_checked_on_is_unknown() -> None:
    now = answers([True] * 80)
    verdict = _verdict(EvaluateConfig(), now, now, [(None, TEXT), *now[1:]])
    assert verdict.status == "refused" and "unknown: 1 items" in verdict.reason


def test_a_falling_slice_is_a_warning_and_no_refusal() -> None:
    slices = ["code"] * 20 + ["facts"] * 380
    theirs = [True] * 20 + [False, True] * 190
    ours = [True] * 8 + [False] * 12 + [True, True] * 12 + [False, True] * 178
    verdict = _verdict(EvaluateConfig(), answers(ours), answers(theirs), slices=slices)
    assert verdict.passed and verdict.reason.endswith("warning: code falls")
    assert verdict.figures["worst_slice_difference"] == pytest.approx(-0.6)
    assert verdict.figures["p_value"] == pytest.approx(mcnemar(12, 12))
