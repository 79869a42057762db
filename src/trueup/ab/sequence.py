"""The promotion ledger: every A/B test of a store, in order, and what each had to show.

A place in the sequence is a test that spoke, whoever its candidate was; a discovery is a test that
passed and led to a promotion. Both stand in the reports and releases, so the ledger is read from
them and can be replayed at any time.
"""

import math
from typing import Any, NamedTuple

from trueup import stats
from trueup.ab.config import ABConfig
from trueup.records import ABReport, Checkpoint, Release
from trueup.stats.ledger import discount
from trueup.store import Store

__all__ = ["LedgerRow", "NextPlace", "ledger_rows", "next_place"]


class NextPlace(NamedTuple):
    """Where the test that is about to speak stands."""

    rule: str
    fdr: float
    place: int
    discoveries: tuple[int, ...]
    """Earlier places that were promoted."""
    needed: float
    """The e-value to reach, before `ab.min_evidence`."""

    def as_detail(self) -> dict[str, Any]:
        """As it is kept in the report."""
        return {**self._asdict(), "discoveries": list(self.discoveries)}


class LedgerRow(NamedTuple):
    """One place of the sequence, as it was and as a replay finds it."""

    place: int
    created_at: str
    report_id: str
    candidate: str | None
    """Its weights; None where the checkpoint is gone."""
    champion: str
    evidence: float | None
    needed: float | None
    """As the gate had it."""
    is_replayed: bool | None
    """True where the records of today give the level that the ledger gave then; None for a test
    from before there was a ledger."""
    status: str
    is_promoted: bool
    budget_left: float
    """The share of the error budget that no place has used yet."""


def next_place(store: Store, config: ABConfig) -> NextPlace:
    """The place and the level of the next test."""
    tests = _tests(store)
    promoted = _promoted(store)
    found = tuple(n for n, one in enumerate(tests, start=1) if _is_discovery(one, promoted))
    place = len(tests) + 1
    needed = stats.evidence_needed(config.ledger, place, found, config.fdr)
    return NextPlace(config.ledger, config.fdr, place, found, needed)


def ledger_rows(store: Store) -> list[LedgerRow]:
    """The whole sequence, oldest first."""
    promoted = _promoted(store)
    tests = _tests(store)
    weights = {
        one.id: one.weights for one in store.get_all(Checkpoint, {t.checkpoint_id for t in tests})
    }
    rows, left = [], 1.0
    for place, one in enumerate(tests, start=1):
        left -= discount(place)
        figures = one.verdict.figures
        rows.append(
            LedgerRow(
                place,
                one.created_at,
                one.id,
                weights.get(one.checkpoint_id),
                one.champion,
                figures.get("evidence"),
                figures.get("evidence_needed"),
                _replayed(one, place, tests, promoted),
                one.verdict.status,
                _is_discovery(one, promoted),
                left,
            )
        )
    return rows


def _tests(store: Store) -> list[ABReport]:
    return [r for r in store.each(ABReport) if r.config.get("purpose", "gate") == "gate"]


def _promoted(store: Store) -> dict[str, str]:
    """Reports that a promotion rests on, and when it first was: one that is promoted again after a
    rollback is no second discovery."""
    found: dict[str, str] = {}
    for release in store.each(Release):
        if release.action == "promote":
            for one in release.report_ids:
                found.setdefault(one, release.created_at)
    return found


def _is_discovery(report: ABReport, promoted: dict[str, str]) -> bool:
    return report.verdict.passed and report.id in promoted


def _replayed(
    report: ABReport, place: int, tests: list[ABReport], promoted: dict[str, str]
) -> bool | None:
    """Whether what had been promoted by then gives what the ledger asked of this test."""
    kept = report.details.get("ledger")
    if not kept:
        return None
    found = [
        n
        for n, one in enumerate(tests[: place - 1], start=1)
        if _is_discovery(one, promoted) and promoted[one.id] < report.created_at
    ]
    needed = stats.evidence_needed(kept["rule"], place, found, kept["fdr"])
    return math.isclose(needed, kept["needed"], rel_tol=1e-9)
