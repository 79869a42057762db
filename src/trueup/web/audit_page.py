"""The page of a judge's audit: may it label, and what did it get wrong?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trueup.records import AuditCheck, JudgeAudit
from trueup.store import Store
from trueup.web.page import excerpt, plain, write_page

__all__ = ["audit_data", "write_audit"]

SAID = {1: "the better one", 2: "the worse one", 0: "a tie", None: "nothing readable"}


def write_audit(store: Store, audit: JudgeAudit) -> Path:
    """Write the page of an audit, and its figures as JSON, to `reports/` in the store's folder.

    Raises:
        StorageError: it cannot be written there.
    """
    return write_page(
        store.folder / "reports" / f"{audit.id}.html",
        "audit.html",
        audit_data(audit),
        "The page {page} could not be written; the audit stands in the store",
    )


def audit_data(audit: JudgeAudit) -> dict[str, Any]:
    """Every figure of the page, as plain JSON values."""
    details = audit.details
    return plain(
        {
            "id": audit.id,
            "judge": audit.judge,
            "source": audit.source,
            "date": audit.created_at,
            "verdict": audit.verdict.model_dump(mode="json", exclude={"figures"}),
            "requests": details.get("usage", {}).get("num_requests"),
            "asked": "usage" in details,
            "checks": [_check(one) for one in audit.checks],
            "agreement": _agreement(details),
            "wrong": [_wrong(one) for one in details.get("wrong", ())],
            "config": audit.config,
        }
    )


def _check(check: AuditCheck) -> dict[str, Any]:
    return {
        "name": check.name.replace("_", " "),
        "status": check.status,
        "figure": check.figure,
        "low": check.low,
        "high": check.high,
        "line": check.threshold,
        "items": check.num_items,
    }


def _agreement(details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """People with each other, and the judge with most of them; nothing where no people were
    asked."""
    people, judged = details.get("human_human"), details.get("judge_human")
    if not people or not judged:
        return []
    rows = [
        {"who": "annotators {} and {}".format(*one["annotators"]), **_two(one)}
        for one in people["pairs"]
    ]
    rows.append({"who": "judge and most people", **_two(judged)})
    rows.append({"who": "the same, ties aside", **_two(judged["without_ties"])})
    return rows


def _two(one: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        name: one[name]["estimate"] if one.get(name) else None for name in ("agreement", "kappa")
    }


def _wrong(one: Mapping[str, Any]) -> dict[str, Any]:
    said = one["said"]
    return {
        "kind": one["kind"],
        **{name: excerpt(one[name]) for name in ("question", "better", "worse")},
        "forward": SAID.get(said["forward"]),
        "backward": SAID.get(said["backward"]),
    }
