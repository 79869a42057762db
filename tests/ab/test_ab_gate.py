"""The A/B gate on answers known beforehand: what it asks, what it refuses, what it keeps."""

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weeks
from trueup.ab import ABConfig, human_view, ledger_rows
from trueup.ab.contests import past_votes
from trueup.ab.sequence import NextPlace
from trueup.ab.verdict import findings, gate_verdict, standing_verdict
from trueup.errors import ConfigError
from trueup.records import ABReport, Completion, JudgeAudit, Label, Message, Verdict
from trueup.stats import Vote, betting_evalue
from trueup.store import Store
from weeks import candidate, contest, first, promoted

FIRST = NextPlace("e-lond", 0.1, 1, (), 26.1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return weeks.opened(tmp_path)


# --- the ledger -----------------------------------------------------------------------------------


def test_a_single_first_week_promotion_is_possible(store: Store) -> None:
    base, better = first(store), candidate(store, "a", 0.9)
    report = contest(store, better, base)
    assert report.verdict.passed, report.verdict.reason
    figures = report.verdict.figures
    assert figures["evidence_needed"] == pytest.approx(26.12, abs=0.01)
    points = [v["points"] for v in report.details["votes"]]
    assert figures["evidence"] == pytest.approx(betting_evalue(points))
    assert figures["place"] == 1 and figures["promotions"] == 0


def test_every_test_takes_a_place_whoever_its_candidate_is(store: Store) -> None:
    base = first(store)
    asked = []
    for name in "abc":
        report = contest(store, candidate(store, name, 0.5), base)
        asked.append(report.verdict.figures["evidence_needed"])
    assert asked == pytest.approx([26.12, 73.89, 135.74], abs=0.01)


def test_the_same_question_again_is_the_same_report_and_takes_no_place(store: Store) -> None:
    base, one = first(store), candidate(store, "a", 0.5)
    assert contest(store, one, base).id == contest(store, one, base).id
    assert store.count(ABReport) == 1
    other_answers = contest(store, one, base, prompts=50)
    assert other_answers.verdict.figures["place"] == 2


def test_a_promotion_gives_budget_back_and_passing_alone_does_not(store: Store) -> None:
    base, better = first(store), candidate(store, "a", 0.9)
    report = contest(store, better, base)
    assert report.verdict.passed
    unpromoted = contest(store, candidate(store, "b", 0.5), base)
    assert unpromoted.verdict.figures["evidence_needed"] == pytest.approx(73.89, abs=0.01)
    assert promoted(store, better, ab=report).passed
    after = contest(store, candidate(store, "c", 0.5), better)
    assert after.verdict.figures["evidence_needed"] == pytest.approx(135.74 / 2, abs=0.01)
    assert after.details["ledger"]["discoveries"] == [1]


def test_the_ledger_is_replayed_from_the_records(store: Store) -> None:
    base, better = first(store), candidate(store, "a", 0.9)
    report = contest(store, better, base)
    contest(store, candidate(store, "b", 0.5), base)
    promoted(store, better, ab=report)
    contest(store, candidate(store, "c", 0.5), better)
    rows = ledger_rows(store)
    assert [r.place for r in rows] == [1, 2, 3]
    assert [r.is_promoted for r in rows] == [True, False, False]
    assert [r.is_replayed for r in rows] == [True, True, True]
    assert rows[0].candidate == better.weights
    left = [r.budget_left for r in rows]
    assert left == sorted(left, reverse=True) and left[0] == pytest.approx(0.617, abs=0.001)


def test_a_ledger_that_was_written_otherwise_does_not_replay(store: Store) -> None:
    base = first(store)
    report = contest(store, candidate(store, "a", 0.5), base)
    lighter = {**report.details, "ledger": {**report.details["ledger"], "needed": 2.0}}
    store.add(ABReport(**{**report.model_dump(exclude={"id", "details"}), "details": lighter}))
    assert [r.is_replayed for r in ledger_rows(store)] == [True, False]


def test_lord_reads_the_highest_evidence_and_asks_less_after_a_promotion(store: Store) -> None:
    config = ABConfig(scorer="weeks:good", ledger="lord++")
    base, better = first(store), candidate(store, "a", 0.9)
    report = contest(store, better, base, config=config)
    assert report.verdict.figures["evidence"] == max(report.details["evidence"])
    assert report.verdict.figures["evidence_needed"] == pytest.approx(52.25, abs=0.01)
    promoted(store, better, ab=report)
    after = contest(store, candidate(store, "b", 0.5), better, config=config)
    assert after.verdict.figures["evidence_needed"] == pytest.approx(38.60, abs=0.01)


def test_a_meeting_with_an_earlier_release_takes_no_place(store: Store) -> None:
    base = first(store)
    met = contest(store, candidate(store, "a", 0.9), base, purpose="cumulative")
    assert met.verdict.passed and "ledger" not in met.details
    assert ledger_rows(store) == []


# --- the verdict ----------------------------------------------------------------------------------


def votes(
    prompts: int, wins: float, longer: float, *, likes: float = 0.0, seed: int = 0
) -> list[dict[str, Any]]:
    """Votes where winning at equal length has this chance and 100 characters more add `likes`."""
    rng, found = random.Random(seed), []
    for i in range(prompts):
        length = rng.gauss(longer, 60)
        chance = min(max(wins + likes * max(min(length / 100, 1), -1), 0), 1)
        outcome = "win" if rng.random() < chance else "loss"
        found.append(
            {
                "prompt": f"q{i}", "prompt_hash": f"h{i}", "stratum": "", "outcomes": [outcome],
                "points": float(outcome == "win"), "length_differences": [length], "score": 0.0,
                "champion_score": 0.0, "answer": f"ours {i}", "champion_answer": f"theirs {i}",
            }
        )  # fmt: skip
    return found


def learned(likes: float) -> list[Vote]:
    """Another contest by the same scorer, of lengths either way."""
    return [
        Vote("old", v["prompt_hash"], v["points"], v["length_differences"][0])
        for longer in (-120, 0, 120)
        for v in votes(150, 0.5, longer, likes=likes, seed=1)
    ]


def test_a_candidate_that_wins_by_length_alone_is_refused() -> None:
    """It wins four in five by writing more and would lose at equal length."""
    config = ABConfig()
    long_winded = votes(200, 0.3, 160, likes=0.5)
    found = findings(config, long_winded, learned(0.45))
    assert found.rate and found.rate.low > 0.5
    verdict = gate_verdict(config, found, FIRST)
    assert verdict.status == "refused"
    assert verdict.reason.startswith("worse at equal length")
    assert "warning, length-shift" in verdict.reason
    figures = verdict.figures
    assert figures["length_contests"] == 2 and (figures["length_coefficient"] or 0) > 0.5


def test_the_same_candidate_passes_where_the_scorer_does_not_care_for_length() -> None:
    config = ABConfig()
    found = findings(config, votes(200, 0.75, 160), learned(0.0))
    verdict = gate_verdict(config, found, FIRST)
    assert verdict.passed and "warning" not in verdict.reason


def test_a_shift_of_more_than_ten_points_is_named_and_passes_where_it_is_still_better() -> None:
    config = ABConfig()
    found = findings(config, votes(400, 0.6, 90, likes=0.3), learned(0.4))
    verdict = gate_verdict(config, found, FIRST)
    assert verdict.passed
    assert "warning, length-shift: length moves it by more than 10 points" in verdict.reason


def test_longer_nearly_everywhere_is_unknown_unless_the_settings_trust_the_scorer() -> None:
    config, padded = ABConfig(), votes(200, 0.8, 160)
    found = findings(config, padded)  # the first contest: nothing says what length is worth
    assert found.at_equal_length is None and found.rate and found.rate.low > 0.5
    verdict = gate_verdict(config, found, FIRST)
    assert verdict.status == "refused" and "longer nearly everywhere" in verdict.reason
    trusted = gate_verdict(ABConfig(unknown_length="warn"), found, FIRST)
    assert trusted.passed and "at equal length unknown" in trusted.reason
    shorter = findings(config, votes(200, 0.8, -160))
    assert shorter.at_equal_length is None and gate_verdict(config, shorter, FIRST).passed


def test_what_is_unknown_refuses() -> None:
    for few in ([], votes(1, 1.0, 0)):
        verdict = gate_verdict(ABConfig(), findings(ABConfig(), few), FIRST)
        assert (verdict.status, verdict.reason) == ("refused", "unknown: fewer than two prompts")
        assert standing_verdict(findings(ABConfig(), few)).status == "refused"


@pytest.mark.parametrize(
    ("wins", "status", "word"), [(0.8, "passed", "better"), (0.2, "refused", "worse")]
)
def test_beside_an_earlier_release_only_the_worse_is_refused(
    wins: float, status: str, word: str
) -> None:
    verdict = standing_verdict(findings(ABConfig(), votes(100, wins, 0)))
    assert (verdict.status, verdict.reason.split(":")[0]) == (status, word)


def test_beside_an_earlier_release_no_difference_passes_with_a_warning() -> None:
    even = [{**v, "points": float(i % 2), "outcomes": [("loss", "win")[i % 2]]}
            for i, v in enumerate(votes(100, 0.5, 0))]  # fmt: skip
    verdict = standing_verdict(findings(ABConfig(), even))
    assert verdict.passed and verdict.reason.startswith("warning, chain: not shown to be better")


def test_the_least_evidence_is_asked_whatever_the_ledger_says() -> None:
    found = findings(ABConfig(), votes(60, 0.8, 0))
    figures = gate_verdict(ABConfig(min_evidence=1e9), found, FIRST).figures
    assert figures["evidence_needed"] == 1e9


# --- strata ---------------------------------------------------------------------------------------


def test_strata_count_by_their_share_and_show_as_slices() -> None:
    rows = [{**v, "stratum": "rare" if i < 50 else "common", "points": float(i < 50 or i % 2)}
            for i, v in enumerate(votes(100, 0.5, 0))]  # fmt: skip
    plain = findings(ABConfig(), rows)
    shares = ABConfig(stratum_weights={"rare": 1, "common": 9})
    weighted = findings(shares, rows)
    assert plain.rate and plain.rate.estimate == pytest.approx(0.75)
    assert weighted.rate and weighted.rate.estimate == pytest.approx(0.1 + 0.9 * 0.5)
    assert [s["slice"] for s in weighted.slices] == ["common", "rare"]
    assert weighted.slices[0]["win_rate"] == 0.5 and weighted.slices[0]["prompts"] == 50
    assert findings(ABConfig(), votes(10, 0.5, 0)).slices == []


# --- what people say ------------------------------------------------------------------------------


def test_labels_of_people_on_the_same_answers_are_joined_both_ways_round(store: Store) -> None:
    base, one = first(store), candidate(store, "a", 0.8)
    report = contest(store, one, base, samples=1)
    rows = report.details["votes"]
    for i, vote in enumerate(rows[:30]):
        ours, theirs = (Completion(text=vote[k]) for k in ("answer", "champion_answer"))
        gap = vote["points"] - 0.5 if i % 5 else 0.5 - vote["points"]  # they agree on 4 in 5
        pair, scores = ((ours, theirs), (gap, 0.0)) if i % 2 else ((theirs, ours), (0.0, gap))
        store.add(
            Label(prompt=(Message(role="user", content=vote["prompt"]),), candidates=pair,
                  scores=scores, annotator="ada", annotator_kind="human")
        )  # fmt: skip
    store.add(
        Label(prompt=(Message(role="user", content=rows[0]["prompt"]),), scores=(1.0, 0.0),
              candidates=(Completion(text="other"), Completion(text="answers")),
              annotator="ada", annotator_kind="human")
    )  # fmt: skip
    view = human_view(store, report)
    assert (view.num_human, view.num_scorer) == (30, 30)
    by_people = [v["points"] if i % 5 else 1 - v["points"] for i, v in enumerate(rows[:30])]
    assert view.win_rate and view.human_sd
    power = view.win_rate.power
    judged = [v["points"] for v in rows]
    mean = sum(by_people) / 30 + power * (sum(judged[30:]) / 30 - sum(judged[:30]) / 30)
    assert view.win_rate.mean.estimate == pytest.approx(mean)
    assert view.correlation == pytest.approx(np.corrcoef(by_people, judged[:30])[0, 1])


def test_without_labels_of_people_nothing_is_known(store: Store) -> None:
    report = contest(store, candidate(store, "a", 0.8), first(store))
    view = human_view(store, report)
    assert (view.num_human, view.win_rate, view.correlation) == (0, None, None)


def test_a_scorer_that_was_mended_is_asked_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, one = first(store), candidate(store, "a", 0.9)
    before = contest(store, one, base)
    assert past_votes(store, before.scorer)
    monkeypatch.setattr(sys.modules["trueup.judges.resolve"], "_source_hash", lambda _: "mended")
    after = contest(store, one, base)
    assert after.id != before.id and after.scorer == (before.scorer[0], "mended")
    assert len(past_votes(store, after.scorer)) == len(past_votes(store, before.scorer))


def test_a_scorer_that_failed_its_audit_decides_nothing(store: Store) -> None:
    base, one = first(store), candidate(store, "a", 0.9)
    refused = Verdict(gate="audit", status="refused", reason="too often the longest")
    store.add(JudgeAudit(judge="code:weeks:good", source="file:rows.jsonl", verdict=refused))
    with pytest.raises(ConfigError, match="too often the longest"):
        contest(store, one, base)
    assert store.count(ABReport) == 0
