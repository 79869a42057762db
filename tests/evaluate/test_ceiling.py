"""The ceiling: pass@k, and the items that no draw solves."""

from itertools import combinations
from pathlib import Path

import pytest

from colour_project import WORDS
from trueup.evaluate import GoldItem, ceiling, read_gold
from trueup.evaluate.ceiling import pass_at_k
from trueup.project import Project
from trueup.records import SampleSet


def test_pass_at_k_is_the_share_of_draws_with_a_right_one() -> None:
    for n in (1, 4, 6):
        for right in range(n + 1):
            outcomes = [True] * right + [False] * (n - right)
            for k in range(1, n + 1):
                draws = list(combinations(outcomes, k))
                assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    assert pass_at_k(4, 1, 1) == 0.25 and pass_at_k(4, 1, 2) == 0.5


def test_what_no_draw_solves_is_named_and_what_all_solve_too(folder: Path) -> None:
    project = Project(folder)
    known = [item for item in read_gold(folder / "gold.jsonl") if not item.prompt.endswith(" ")]
    assert len(known) == len(WORDS)
    zebra = GoldItem(id="z", prompt="say zebra", checker={"type": "contains", "all": ["zebra"]})
    found = ceiling(
        project.store, project.champion(), [*known, zebra], num_samples=8, max_tokens=24
    )
    assert [one.id for one in found.out_of_reach] == ["z"]
    assert {one.id for one in found.already_known} <= {item.id for item in known}
    assert list(found.pass_at) == [1, 2, 4, 8]
    assert sorted(found.pass_at.values()) == list(found.pass_at.values())
    assert found.pass_at[8] == pytest.approx(len(WORDS) / (len(WORDS) + 1))
    assert found.pass_at_n is not None and found.pass_at_n.low < found.pass_at[8]
    # eight misses cannot exclude a chance of three in ten
    assert found.miss_rate() == pytest.approx(0.3123, abs=1e-3)
    drawn = project.store.count(SampleSet)
    again = ceiling(
        project.store, project.champion(), [*known, zebra], num_samples=8, max_tokens=24
    )
    assert again == found and project.store.count(SampleSet) == drawn
