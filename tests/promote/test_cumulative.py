"""Chains of promotions: what is drawn when, what stops a promotion, what a person's word does."""

from pathlib import Path

import pytest

import weeks
from trueup import promote
from trueup.errors import DataError
from trueup.records import ABReport, Release
from trueup.store import Store
from weeks import BASE, Answers, candidate, contest, first, promoted


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return weeks.opened(tmp_path)


def climbed(store: Store, champion: Answers, *skills: float) -> Answers:
    """Promotions one after the other, each with its contest."""
    for skill in skills:
        better = candidate(store, f"skill{skill}", skill)
        verdict = promoted(store, better, ab=contest(store, better, champion, prompts=150))
        assert verdict.passed, verdict.reason
        champion = better
    return champion


def standing(store: Store, one: Answers, every: int = 4) -> list[promote.Standing]:
    assert one.checkpoint
    newest = store.last(ABReport)
    assert newest
    config = promote.PromoteConfig(cumulative_every=every)
    return promote.standings(store, config, one.checkpoint, newest.scorer)


def test_beside_the_champion_itself_nothing_more_is_asked(store: Store) -> None:
    base, one = first(store), candidate(store, "a", 0.9)
    contest(store, one, base)
    assert standing(store, one) == []


def test_the_chain_says_how_far_it_has_come_and_when_they_must_meet(store: Store) -> None:
    champion = climbed(store, first(store, 0.2), 0.5)
    one = candidate(store, "next", 0.8)
    contest(store, one, champion, prompts=150)
    [found] = standing(store, one)
    assert found.anchor == promote.Anchor("first", BASE, None)
    assert found.promotions == 1 and not found.is_due
    assert found.strength and found.strength.win_rate.low > 0.6
    [due] = standing(store, one, every=1)
    assert due.is_due


def test_what_is_due_and_not_drawn_refuses(store: Store) -> None:
    champion = climbed(store, first(store, 0.2), 0.5)
    one = candidate(store, "next", 0.8)
    report = contest(store, one, champion, prompts=150)
    assert one.checkpoint
    config = promote.PromoteConfig(gates=("ab",), cumulative_every=1)
    refused = promote.run(store, config, one.checkpoint, {"ab": report})
    assert refused.status == "refused"
    assert "first: due after 1 promotions, not drawn" in refused.reason
    met = contest(store, one, Answers(BASE, None, 0.2), prompts=150, purpose="cumulative")
    passed = promote.run(store, config, one.checkpoint, {"ab": report, "first": met})
    assert passed.passed
    assert (passed.figures["chain.first_low"] or 0) > 0.5
    release = store.champion()
    assert release and met.id in release.report_ids
    # and the count begins again
    later = candidate(store, "later", 0.95)
    contest(store, later, one, prompts=150)
    assert [s.promotions for s in standing(store, later)] == [1]


def test_a_chain_of_wins_that_does_not_add_up_is_refused(store: Store) -> None:
    """It beats the champion and loses to the first release: the chain alone would not see it."""
    champion = climbed(store, first(store, 0.2), 0.5)
    one = candidate(store, "circle", 0.8)
    report = contest(store, one, champion, prompts=150)
    better_than_it_was = Answers(BASE, None, 1.0)  # as if it had been judged too low
    met = contest(store, one, better_than_it_was, prompts=150, purpose="cumulative")
    verdict = promoted(store, one, ab=report, first=met)
    assert verdict.status == "refused"
    assert "first: worse: win rate" in verdict.reason
    serves = store.champion()
    assert serves and serves.weights == champion.weights


def test_no_difference_to_the_first_release_is_promoted_with_a_warning(store: Store) -> None:
    champion = climbed(store, first(store, 0.2), 0.5)
    one = candidate(store, "even", 0.8)
    report = contest(store, one, champion, prompts=150)
    met = contest(store, one, Answers(BASE, None, 0.8), prompts=40, purpose="cumulative")
    assert met.verdict.reason.startswith("warning")
    verdict = promoted(store, one, ab=report, first=met)
    assert verdict.passed and "first: warning, chain: not shown to be better" in verdict.reason


def test_a_doubtful_chain_is_due_at_once(store: Store) -> None:
    """The champion was promoted without a contest: nothing links it to the first release."""
    base, champion = first(store, 0.5), candidate(store, "by hand", 0.5)
    assert champion.checkpoint
    store.release(
        Release(action="promote", weights=champion.weights, checkpoint_id=champion.checkpoint.id)
    )
    one = candidate(store, "next", 0.9)
    contest(store, one, champion)
    [found] = standing(store, one)
    assert found.strength is None and found.is_due
    contest(store, one, base, purpose="cumulative")
    [linked] = standing(store, one)
    assert linked.strength and not linked.is_due


# --- approvals ------------------------------------------------------------------------------------


def test_an_approval_says_who_and_leaves_what_serves(store: Store) -> None:
    champion = climbed(store, first(store, 0.2), 0.5)
    serving = store.champion()
    signed = promote.approve(store, " Ada ", note="read 40 answers")
    assert (signed.action, signed.approved_by, signed.weights) == (
        "approve",
        "Ada",
        champion.weights,
    )
    assert signed.created_at and serving and signed.restores == serving.id
    assert store.champion() == serving
    again = promote.approve(store, "Ada", note="read 40 answers")
    assert again.id == signed.id
    assert promote.rollback(store).weights == BASE


def test_later_candidates_are_held_against_what_was_approved(store: Store) -> None:
    champion = climbed(store, first(store, 0.2), 0.4)
    promote.approve(store, "Ada")
    one = candidate(store, "week2", 0.6)
    contest(store, one, champion, prompts=150)
    assert [s.anchor.name for s in standing(store, one)] == ["first"], "the gate meets the other"
    champion = climbed(store, champion, 0.7)
    one = candidate(store, "week3", 0.9)
    contest(store, one, champion, prompts=150)
    assert [s.anchor.name for s in standing(store, one)] == ["first", "approved"]


def test_what_cannot_be_approved_says_why(store: Store) -> None:
    with pytest.raises(DataError, match="needs a release and a person"):
        promote.approve(store, "Ada")
    first(store)
    with pytest.raises(DataError, match="needs a release and a person"):
        promote.approve(store, " ")
