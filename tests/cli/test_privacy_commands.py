"""`trueup erase` and `trueup audit-trail` as people and programs call them."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from trueup.cli.main import main
from trueup.privacy import Scrubber
from trueup.project import Project
from trueup.records import Completion, Interaction, Message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "trueup.toml").write_text("")
    project = Project(tmp_path)
    scrub = Scrubber(project.config.privacy, project.store)
    for user in ("ann@corp.example", "bob"):
        for n in range(2):
            project.store.add(
                scrub(
                    Interaction(
                        prompt=(Message(role="user", content=f"[red]{user} {n}"),),
                        completion=Completion(text="Yes."),
                        source="gateway",
                        user=user,
                        tenant="north",
                    )
                )
            )
    project.store.close()
    return tmp_path


def run(folder: Path, *words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["--project", str(folder), *words])
    return int(stop.value.code or 0)


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def count(folder: Path) -> int:
    store = Project(folder).store
    found = store.count(Interaction)
    store.close()
    return found


def test_a_dry_run_then_the_real_one_then_the_trail(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "erase", "--user", "ann@corp.example", "--dry-run", "--json") == 0
    would = told(capsys)
    assert would["dry_run"] and would["removed"] == {"interaction": 2}
    assert count(folder) == 4
    assert run(folder, "erase", "--user", "ann@corp.example", "--yes", "--json") == 0
    assert told(capsys)["removed"] == {"interaction": 2}
    assert count(folder) == 2
    assert run(folder, "audit-trail", "--json") == 0
    text = capsys.readouterr().out
    trail = json.loads(text)
    assert trail["whole"] and trail["entries"][0]["action"] == "erase"
    assert trail["entries"][0]["details"]["removed"] == {"interaction": 2}
    assert "ann" not in text, "the trail names a pseudonym"


def test_a_person_is_asked_and_may_say_no(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert run(folder, "erase", "--user", "bob") == 130
    said = capsys.readouterr()
    assert "Erase 2 interaction?" in said.out + said.err
    assert count(folder) == 4
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert run(folder, "erase", "--user", "bob") == 0
    assert "gone" in capsys.readouterr().out
    assert count(folder) == 2


def test_age_and_tenant_choose(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "erase", "--older-than", "90d", "--yes") == 0
    assert "Nothing was found" in capsys.readouterr().out
    assert run(folder, "erase", "--user", "bob", "--tenant", "south", "--yes") == 0
    assert count(folder) == 4
    assert run(folder, "erase", "--resume", "--json") == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--user", "a", "--older-than", "3d"),
        ("--older-than", "soon"),
        ("--older-than", "0d"),
        ("--older-than", "3d", "--tenant", "x"),
        ("--user", "a", "--json"),
    ],
    ids=" ".join,
)
def test_what_is_unclear_is_a_usage_error(
    folder: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "erase", *words) == 2
    assert capsys.readouterr().err
    assert count(folder) == 4


def test_a_broken_trail_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "audit-trail") == 0
    run(folder, "erase", "--user", "bob", "--yes")
    assert run(folder, "audit-trail") == 0
    assert "Whole" in capsys.readouterr().out
    store = Project(folder).store
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE audit_trail SET who = 'nobody'")
    store.close()
    assert run(folder, "audit-trail") == 1
    assert "line 1 missing or changed" in capsys.readouterr().err


def test_erasing_waits_for_no_turn(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = Project(folder)
    with project.store.exclusive():
        assert run(folder, "erase", "--user", "bob", "--yes") == 1
    assert "one turn at a time" in capsys.readouterr().err
    project.store.close()
    assert count(folder) == 4
