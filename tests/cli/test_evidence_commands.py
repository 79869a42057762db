"""`trueup ledger`, `trueup approve`, `trueup plan` on a project whose contests are records."""

import json
from pathlib import Path

import pytest

import weeks
from trueup.cli.main import main
from trueup.project import Project
from trueup.records import Completion, Label, Message
from weeks import candidate, contest, first, promoted


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Two weeks: the first candidate was promoted, the second is no better."""
    (tmp_path / "trueup.toml").write_text('[ab]\nscorer = "weeks:good"\n')
    project = Project(tmp_path)
    store = project.store
    base, better = first(store, 0.4), candidate(store, "a", 0.9)
    assert promoted(store, better, ab=contest(store, better, base)).passed
    contest(store, candidate(store, "b", 0.9), better)
    return project


def said(capsys: pytest.CaptureFixture[str], project: Project, *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        main(["--project", str(project.folder), *words])
    out = capsys.readouterr()
    return int(stop.value.code or 0), out.out + out.err


def test_the_ledger_shows_every_test_and_the_chain(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = said(capsys, project, "ledger", "--json")
    told = json.loads(text)
    assert code == 0 and (told["fdr"], told["rule"]) == (0.1, "e-lond")
    first_test, second = told["tests"]
    assert (first_test["place"], first_test["is_promoted"]) == (1, True)
    assert first_test["is_replayed"] and second["is_replayed"]
    assert second["needed"] == pytest.approx(36.94, abs=0.01)
    assert second["status"] == "refused"
    [strength] = told["releases"].values()
    assert strength["win_rate"]["low"] > 0.5
    code, text = said(capsys, project, "ledger")
    assert code == 0 and "promoted" in text and "refused" in text and "26.1" in text


def test_an_empty_ledger_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trueup.toml").write_text("")
    code, text = said(capsys, Project(tmp_path), "ledger")
    assert code == 0 and "No A/B test has spoken yet" in text


def test_an_approval_is_on_record(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, project, "approve", "--by", "Ada", "--note", "read 40", "--json")
    told = json.loads(text)
    assert code == 0 and (told["action"], told["approved_by"]) == ("approve", "Ada")
    code, text = said(capsys, project, "status")
    assert "by Ada  read 40" in text


def test_a_plan_needs_labels_or_an_assumption(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = said(capsys, project, "plan")
    assert code == 1 and "--agreement 0.8" in text
    code, text = said(capsys, project, "plan", "--agreement", "0.9", "--within", "0.15", "--json")
    assert code == 0
    plan = json.loads(text)["plan"]
    assert 0 < plan["more"] < plan["more_without_judge"]


def test_a_plan_measures_the_agreement_on_the_labels_there_are(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    store = project.store
    [report] = [r for r in store.all(weeks.ABReport) if r.verdict.passed]
    for vote in report.details["votes"][:30]:
        score = {"win": 1.0, "tie": 0.5, "loss": 0.0}[vote["outcomes"][0]]
        store.add(
            Label(
                prompt=(Message(role="user", content=vote["prompt"]),),
                candidates=tuple(Completion(text=vote[k]) for k in ("answer", "champion_answer")),
                scores=(score, 0.5),
                annotator="ada",
                annotator_kind="human",
            )
        )
    code, text = said(capsys, project, "plan", "--report", report.id, "--json")
    told = json.loads(text)
    assert code == 0 and told["num_human"] == 30
    assert told["correlation"] == pytest.approx(1)
    assert told["multiplier"] > 1.5
    code, text = said(capsys, project, "plan", "--report", report.id)
    assert "more human labels bring the interval to ±3.0%" in text
