"""Votes of all contests that a scorer has decided, from the reports on record."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trueup.records import ABReport
from trueup.stats import Vote
from trueup.store import Store

__all__ = ["POINTS", "past_votes", "votes_of"]

POINTS = {"win": 1.0, "tie": 0.5, "loss": 0.0}

MOST_CONTESTS = 26
"""The newest half year of weeks; what a scorer gives for length hardly needs more."""


def past_votes(store: Store, scorer: tuple[str, str]) -> list[Vote]:
    """Every sample's vote by this scorer, id and version, in the newest contests. How much it likes
    length is a property of the scorer, so contests of other candidates say it too."""
    reports = [r for r in store.each(ABReport) if r.scorer == scorer]
    return [v for r in reports[-MOST_CONTESTS:] for v in votes_of(r.id, r.details.get("votes", ()))]


def votes_of(contest: str, votes: Sequence[Mapping[str, Any]]) -> Iterator[Vote]:
    """A vote a sample; none of reports that did not note lengths."""
    for vote in votes:
        for outcome, longer in zip(
            vote["outcomes"], vote.get("length_differences", ()), strict=False
        ):
            yield Vote(contest, vote["prompt_hash"], POINTS[outcome], longer)
