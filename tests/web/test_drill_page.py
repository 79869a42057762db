"""The page of a drill: its facts, its safety, and that it is whole."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from page_reader import assert_safe
from trueup.cli.main import cli
from trueup.drill import CONTROL, FAULTS, Drill, Outcome
from trueup.drill.faults import JUDGES, WELL_TAUGHT
from trueup.web import drill_data, plots, write_drill

SCRIPT = "<script>alert(1)</script>"
CONSTANT = next(one for one in FAULTS if one.name == "constant answer")


def outcome(fault: str, strength: float, seed: int, stopped: str = "", **more: object) -> Outcome:
    told = {"reason": "a reason", "delay": 0, "gold": 0.4, "gold_low": 0.2, "copy": 0.01} | more
    return Outcome(fault, strength, seed, stopped, **told)  # type: ignore[arg-type]


@pytest.fixture
def failed() -> Drill:
    """One fault missed at its mildest, and one false alarm among forty."""
    mild, _, worst = CONSTANT.strengths
    planted = [
        outcome(CONSTANT.name, mild, at, "guard" if at < 2 else "ab" if at == 2 else "")
        for at in range(5)
    ]
    planted += [outcome(CONSTANT.name, worst, at, "guard", delay=1) for at in range(5)]
    honest = [outcome(CONTROL.name, 0.0, at) for at in range(39)]
    honest.append(outcome(CONTROL.name, 0.0, 39, "guard", reason=f"length {SCRIPT}\u202e"))
    honest.append(outcome(CONTROL.name, 0.0, 40, gold_low=-0.1))  # no better, and no control
    fair = [outcome(JUDGES.name, 0.0, 0, gold=None, gold_low=None, copy=None)]
    return Drill((*planted, *honest, *fair))


def test_the_page_has_every_figure_and_the_reasons(failed: Drill, tmp_path: Path) -> None:
    page = write_drill(failed, tmp_path)
    shown = assert_safe(page.read_text(), "drill.json")
    assert "FAILED 1 missed, 1 false alarm" in shown.text
    assert "constant answer, 0.5 share" in shown.text
    assert shown.drawn() == ["fault-1", "controls"]
    for row in failed.rows():
        assert row.rate is not None
        assert f"{row.num_caught} of {row.num_trials}" in shown.text
        limits = [plots.figure(one, "rate") for one in (row.rate.low, row.rate.high)]
        assert f"[{limits[0]}, {limits[1]}]" in shown.text
    assert "guard 2, ab 1" in shown.text
    assert "0.5 share: 40, from 11.8 to 76.9; 2 of 5" in shown.text, "the plot in words"
    assert failed.bound is not None and f"below {failed.bound:.1%}" in shown.text
    assert "honest candidate: 2.5, from" in shown.text and "1 of 40" in shown.text
    assert "1 came out no better" in shown.text
    assert "Not caught 3" in shown.text and "False alarms 1" in shown.text


def test_what_a_gate_quoted_stays_text(failed: Drill, tmp_path: Path) -> None:
    text = write_drill(failed, tmp_path, project=SCRIPT).read_text()
    assert SCRIPT not in text and text.count("&lt;script&gt;") == 2
    assert "\u202e" not in text and "⟨U+202E⟩" in text


def test_the_json_beside_it_has_the_same_figures(failed: Drill, tmp_path: Path) -> None:
    page = write_drill(failed, tmp_path)
    told = json.loads(page.with_suffix(".json").read_text())
    assert told == drill_data(failed)
    assert told["missed"] == ["constant answer, 0.5 share"]
    assert [one["stopped_by"] for one in told["not_caught"]] == ["ab", "", ""]
    assert write_drill(failed, tmp_path).read_bytes() == page.read_bytes()


def test_without_controls_false_alarms_are_unknown(tmp_path: Path) -> None:
    done = Drill((outcome(CONSTANT.name, 1.0, 0, "guard"),))
    shown = assert_safe(write_drill(done, tmp_path).read_text(), "drill.json")
    assert "PASSED every fault caught" in shown.text
    assert "False alarms unknown" in shown.text and "None were tried" in shown.text


def test_in_a_project_an_unproven_candidate_is_no_false_alarm(tmp_path: Path) -> None:
    unknown = {"gold": None, "gold_low": None, "copy": None}
    done = Drill(
        (
            outcome(CONSTANT.name, 1.0, 0, "guard", **unknown),
            outcome(WELL_TAUGHT.name, 1.0, 0, "ab", **unknown),
        )
    )
    page = write_drill(done, tmp_path, project="my-assistant")
    shown = assert_safe(page.read_text(), "drill.json")
    assert "PASSED" in shown.text and "Planted in my-assistant" in shown.text
    assert "False alarms 0" in shown.text and "trueup drill --own" in shown.text


def test_the_command_says_where_the_page_is(tmp_path: Path) -> None:
    asked = ["drill", "--only", "judge that favours places", "--seeds", "1", "--controls", "0"]
    asked += ["--folder", str(tmp_path), "--jobs", "1"]
    said = CliRunner().invoke(cli, asked)
    assert said.exit_code == 0, said.output
    page = tmp_path / "drill.html"
    assert f"Report: {page}" in said.stdout
    assert "audit 1" in assert_safe(page.read_text(), "drill.json").text
    told = json.loads(CliRunner().invoke(cli, [*asked, "--json"]).stdout)
    assert told.pop("report") == str(page)
    assert told == json.loads(page.with_suffix(".json").read_text())


def test_a_projects_own_drill_is_among_its_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = Drill((outcome(CONSTANT.name, 1.0, 0, "guard"),))
    monkeypatch.setattr(
        sys.modules["trueup.drill.run"], "run_on", lambda project: done
    )  # minutes of training
    (tmp_path / "trueup.toml").write_text('[model]\nbase = "tiny-random"\n')
    said = CliRunner().invoke(cli, ["-p", str(tmp_path), "drill", "--own"])
    assert said.exit_code == 0, said.output
    (page,) = tmp_path.rglob("reports/drill.html")
    assert f"Report: {page}" in said.stdout
    assert f"Planted in {tmp_path.name}" in assert_safe(page.read_text(), "drill.json").text
