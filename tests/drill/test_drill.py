"""Drills, for real: toy models are taught, faults planted, gates asked."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from scipy.stats import binom

from colour_project import COLOURS, asked
from trueup.cli.main import cli
from trueup.drill import CONTROL, FAULTS, Drill, Fault, Outcome, run, run_on
from trueup.drill.faults import JUDGES, WELL_TAUGHT
from trueup.drill.trial import attempt
from trueup.errors import ConfigError, TrueupError
from trueup.judges import resolve
from trueup.judges.scripted import ScriptedJudge
from trueup.project import Project
from trueup.records import Checkpoint, GuardReport, Interaction, Label, Release, Sampling
from trueup.toy.labellers import GoldJudge, Labeller

BY_NAME = {one.name: one for one in FAULTS}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


# --- one drill ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "strength"),
    [
        ("constant answer", 1.0),
        ("constant answer", 0.5),
        ("collapsed candidate", 0.05),
        ("forgetting candidate", 0.6),
    ],
)
def test_a_planted_candidate_is_stopped_by_a_gate_that_should(
    name: str, strength: float, models: Path
) -> None:
    found = attempt(BY_NAME[name], strength, 3, models)
    assert found.was_stopped and found.stopped_by in BY_NAME[name].gates
    assert found.delay == 0


def test_a_forgetting_candidate_is_truly_better_at_what_it_was_taught(models: Path) -> None:
    found = attempt(BY_NAME["forgetting candidate"], 1.0, 3, models)
    assert found.gold is not None and found.gold > 0.3, "else another gate would have caught it"
    assert found.copy is not None and found.copy < -0.5


@pytest.mark.parametrize("name", ["length-loving labeller", "flipped labels"])
def test_a_labeller_gone_wrong_is_stopped(name: str, models: Path) -> None:
    fault = BY_NAME[name]
    assert attempt(fault, fault.strengths[-1], 3, models).was_stopped


def test_an_honest_candidate_passes_and_is_truly_better(models: Path) -> None:
    found = attempt(CONTROL, 0.0, 3, models)
    assert not found.was_stopped, found.reason
    assert found.is_better and found.gold is not None and found.gold > 0.3


@pytest.mark.parametrize("name", ["judge that favours places", "judge that favours length"])
def test_a_biased_judge_writes_no_label(name: str, models: Path) -> None:
    fault = BY_NAME[name]
    found = attempt(fault, fault.strengths[-1], 3, models)
    assert found.stopped_by == "audit" and found.delay == 0
    assert "failed its audit" in found.reason


def test_a_well_taught_candidate_without_a_fault_passes(models: Path) -> None:
    """The twin of the planted candidates: what stops those is the fault."""
    found = attempt(WELL_TAUGHT, 1.0, 3, models)
    assert not found.was_stopped, found.reason
    assert found.is_better


def test_a_judge_that_cannot_be_reached_is_no_judge_that_was_caught(models: Path) -> None:
    fault = replace(
        BY_NAME["judge that favours places"],
        judge=lambda strength, seed: ScriptedJudge(error_rate=1.0, error_status=401),
    )
    with pytest.raises(TrueupError):
        attempt(fault, 0.5, 3, models)


def test_a_fair_judge_may_label(models: Path) -> None:
    assert not attempt(JUDGES, 0.0, 3, models).was_stopped


def test_the_same_drill_ends_the_same(models: Path) -> None:
    first, second = (attempt(BY_NAME["constant answer"], 0.3, 3, models) for _ in range(2))
    assert (first.reason, first.gold) == (second.reason, second.gold)


# --- all of them ----------------------------------------------------------------------------------


def outcome(fault: Fault, strength: float, seed: int, stopped: str = "", **more: object) -> Outcome:
    told = {"reason": "", "delay": 0, "gold": 1.0, "gold_low": 0.5, "copy": 0.0} | more
    return Outcome(fault.name, strength, seed, stopped, **told)  # type: ignore[arg-type]


def test_rates_delays_and_gates_are_counted() -> None:
    fault = BY_NAME["constant answer"]
    strength = fault.strengths[0]
    done = Drill(
        (
            outcome(fault, strength, 1, "guard", delay=0),
            outcome(fault, strength, 2, "guard", delay=2),
            outcome(fault, strength, 3, "ab"),
            outcome(fault, strength, 4),
        )
    )
    (row,) = done.rows()
    assert (row.num_caught, row.num_stopped, row.num_trials, row.delay) == (2, 3, 4, 1.0)
    assert row.stopped_by == {"guard": 2, "ab": 1}
    assert row.rate and row.rate.estimate == 0.5


@pytest.mark.parametrize(("caught", "is_missed"), [(5, False), (4, False), (3, True), (0, True)])
def test_a_fault_that_is_caught_in_less_than_four_of_five_is_missed(
    caught: int, is_missed: bool
) -> None:
    fault = BY_NAME["constant answer"]
    done = Drill(
        tuple(outcome(fault, 1.0, at, "guard" if at < caught else "ab") for at in range(5))
    )
    assert bool(done.missed) == is_missed


def test_the_bound_on_false_alarms_is_clopper_and_pearsons() -> None:
    honest = [outcome(CONTROL, 0.0, at) for at in range(60)]
    assert Drill(tuple(honest)).bound == pytest.approx(1 - 0.05 ** (1 / 60))  # 4.87 %
    one = outcome(CONTROL, 0.0, 60, "guard")
    bound = Drill((*honest, one)).bound
    assert bound is not None and binom.cdf(1, 61, bound) == pytest.approx(0.05)
    assert Drill(()).bound is None


def test_only_truly_better_candidates_that_forgot_nothing_can_be_false_alarms() -> None:
    no_better = outcome(CONTROL, 0.0, 1, "ab", gold_low=-0.1)
    better = outcome(CONTROL, 0.0, 2, "guard")
    forgot = outcome(CONTROL, 0.0, 3, "evaluate", copy=-0.05)
    done = Drill((no_better, better, forgot))
    assert done.false_alarms == [better]
    assert done.left_out == 2
    assert done.controls()[0].num_trials == 1


def test_a_drill_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = BY_NAME["judge that favours places"]
    first = run(tmp_path, faults=[fault], num_seeds=1, num_controls=0, jobs=1)
    assert [row.num_stopped for row in first.rows([fault])] == [1, 1, 1]
    (kept,) = tmp_path.glob("outcomes-*.jsonl")
    with kept.open("a") as lines:
        lines.write('{"fault": "judge th')  # killed as it wrote

    def never(*args: object, **settings: object) -> Iterator[None]:
        raise AssertionError("asked again")

    monkeypatch.setattr(sys.modules["trueup.drill.run"], "attempt", never)
    again = run(tmp_path, faults=[fault], num_seeds=1, num_controls=0, jobs=1)
    assert again == first
    assert len(kept.read_text().splitlines()) == 3


# --- the command ----------------------------------------------------------------------------------


def test_the_command_prints_a_row_a_strength(tmp_path: Path) -> None:
    asked = ["drill", "--only", "judge that favours places", "--seeds", "1", "--controls", "0"]
    asked += ["--folder", str(tmp_path), "--jobs", "1"]
    said = CliRunner().invoke(cli, asked)
    assert said.exit_code == 0, said.output
    assert said.stdout.count("judge that favours places") == 3
    told = json.loads(CliRunner().invoke(cli, [*asked, "--json"]).stdout)
    assert [row["num_stopped"] for row in told["faults"]] == [1, 1, 1]
    assert told["missed"] == [] and told["false_alarms"] == []


def test_an_unknown_fault_is_named(tmp_path: Path) -> None:
    said = CliRunner().invoke(cli, ["drill", "--only", "fire"])
    assert said.exit_code == 2 and "length-loving labeller" in said.output


# --- names of the toy language's judges -----------------------------------------------------------


def test_a_toy_labeller_is_named_with_what_makes_it_another() -> None:
    assert resolve("toy-labeller") == Labeller()
    assert resolve("toy-labeller(length_bias=0.5, flips=0.1,seed=3)") == Labeller(
        length_bias=0.5, flips=0.1, seed=3
    )
    assert isinstance(resolve("toy-gold"), GoldJudge)


@pytest.mark.parametrize(
    "name", ["toy-labeller(", "toy-labeller(kind=1)", "toy-labeller(seed=x)", "toy-labellers"]
)
def test_a_toy_labeller_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no toy labeller"):
        resolve(name)


# --- a project of one's own -----------------------------------------------------------------------


def test_a_teams_own_gates_are_drilled_and_its_store_is_left_alone(folder: Path) -> None:
    project = Project(folder)
    champion = project.champion()
    prompts = [asked(f"colour of {thing}?" + " " * i) for thing in COLOURS for i in range(6)]
    said = champion.complete(prompts, Sampling(max_tokens=24))
    project.store.add_all(
        Interaction(prompt=prompt, completion=answers[0], source="gateway", request_id=str(i))
        for i, (prompt, answers) in enumerate(zip(prompts, said, strict=True))
    )
    kinds = (Interaction, Label, Checkpoint, GuardReport, Release)
    before = [project.store.count(kind) for kind in kinds]

    done = run_on(project)
    assert [one.fault for one in done.outcomes] == [
        "collapsed candidate",
        "constant answer",
        WELL_TAUGHT.name,
    ]
    assert done.outcomes[1].stopped_by == "guard", done.outcomes[1]
    assert [project.store.count(kind) for kind in kinds] == before
