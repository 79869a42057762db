"""The page of an audit: its facts, its safety, and that it is whole."""

import json
from pathlib import Path

import pytest

from trueup.judges.audit import run
from trueup.judges.config import AuditConfig
from trueup.judges.house_style import HouseStyle
from trueup.judges.people import JudgedByPeople
from trueup.records import JudgeAudit, Message
from trueup.store import Store
from trueup.web import audit_data, write_audit

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def audit(tmp_path: Path) -> tuple[Store, JudgeAudit]:
    store = Store(tmp_path)
    prompt = (Message(role="user", content="The lamp is red.\nWhat colour is the lamp?"),)
    rows = [
        JudgedByPeople(f"{n}", prompt, ("It is red.", "It is blue."), (1, 1, 2)) for n in range(4)
    ]
    return store, run(store, HouseStyle(), AuditConfig(), rows, source="file:rows.jsonl")


def test_the_page_says_what_the_record_says(audit: tuple[Store, JudgeAudit]) -> None:
    store, found = audit
    page = write_audit(store, found)
    text = page.read_text()
    assert page.name == f"{found.id}.html"
    assert found.verdict.status.upper() in text and found.judge in text
    for check in found.checks:
        assert check.name.replace("_", " ") in text
    assert "judge and most people" in text
    assert json.loads(page.with_suffix(".json").read_text()) == audit_data(found)


def test_what_was_not_measured_is_unknown_and_never_zero(audit: tuple[Store, JudgeAudit]) -> None:
    _, found = audit
    own = next(c for c in audit_data(found)["checks"] if c["name"] == "self preference")
    assert own["figure"] is None and own["status"] == "unknown"


def test_what_a_model_wrote_stays_text(audit: tuple[Store, JudgeAudit]) -> None:
    store, found = audit
    wrong = {
        "kind": "known",
        "question": SCRIPT,
        "better": SCRIPT + "\u202e",
        "worse": "",
        "said": {"forward": 2, "backward": None},
    }
    changed = found.model_copy(
        update={"judge": SCRIPT, "details": found.details | {"wrong": [wrong]}}
    )
    text = write_audit(store, changed).read_text()
    assert SCRIPT not in text and "&lt;script&gt;" in text
    assert "\u202e" not in text
    assert "the worse one, and nothing readable" in text
    assert "default-src 'none'" in text
