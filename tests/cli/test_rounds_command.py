"""`trueup rounds`, `best-of-n` and `ceiling` as typed, on the colour project."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from trueup.cli.main import cli

SETTINGS = [
    "rounds.reward=loop_scorers:plain",
    "rounds.prompts=train.jsonl",
    "rounds.max_tokens=24",
    "train.epochs=2",
]


def trueup(folder: Path, *words: str) -> Result:
    overrides = [word for one in SETTINGS for word in ("--set", one)]
    return CliRunner().invoke(cli, ["--project", str(folder), *overrides, *words])


def test_rounds_shows_a_line_a_round_and_names_the_candidate(folder: Path) -> None:
    done = trueup(folder, "rounds", "--rounds", "2", "--num-samples", "4")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["round", "pairs", "score"]
    assert [line.split()[0] for line in lines[1:3]] == ["1", "2"]
    assert max(map(len, lines[:3])) <= 80  # a gate's reason, where one refused, is as long as it is
    told = json.loads(
        trueup(folder, "rounds", "--rounds", "2", "--num-samples", "4", "--json").stdout
    )
    assert [one["number"] for one in told["rounds"]] == [1, 2]
    assert f"trueup promote --checkpoint {told['best']}" in done.stdout
    promoted = trueup(folder, "promote", "--checkpoint", told["best"], "--json")
    is_better = told["rounds"][-1]["reports"][-1]["verdict"]["status"] == "passed"
    assert promoted.exit_code == (0 if is_better else 3)


def test_a_refused_round_exits_with_three_and_says_why(folder: Path) -> None:
    done = trueup(folder, "--set", "guard.max_kl=0.001", "rounds", "--rounds", "2")
    assert done.exit_code == 3
    assert "Round 1: REFUSED by guard: kl" in done.stdout
    assert "champion serves on" in done.stdout


def test_best_of_n_shows_the_gain_and_both_arms(folder: Path) -> None:
    done = trueup(folder, "best-of-n", "--num-samples", "4")
    assert done.exit_code in (0, 3), done.output  # so small a model may not be better
    assert "nats away, at most 0.64" in done.stdout
    assert "best answer" in done.stdout and "random answer" in done.stdout
    told = json.loads(trueup(folder, "best-of-n", "--num-samples", "4", "--json").stdout)
    assert len(told["expected_scores"]) == 4
    assert [arm["name"] for arm in told["arms"]] == ["best", "random"]


def test_what_best_of_n_could_not_use_is_told_and_a_refusal_exits_with_three(folder: Path) -> None:
    words = ("--set", "rounds.max_tokens=16", "--set", "guard.max_kl=0.0001", "best-of-n")
    done = trueup(folder, *words, "--reward", "loop_scorers:no_sky")
    assert done.exit_code == 3, done.output
    assert "3 reward: it raised RuntimeError" in done.stdout
    assert "Best answer: REFUSED by guard: kl" in done.stdout


def test_the_ceiling_names_what_no_draw_solves(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "gold.jsonl").read_text().splitlines()]
    rows[0]["checker"] = {"type": "contains", "all": ["zebra"]}
    (folder / "gold.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = trueup(folder, "ceiling", "--num-samples", "4")
    assert done.exit_code == 0, done.output
    assert "pass@4" in done.stdout and "SFT first" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    told = json.loads(trueup(folder, "ceiling", "--num-samples", "4", "--json").stdout)
    assert rows[0]["id"] in told["out_of_reach"]


@pytest.mark.parametrize(
    "words", [("rounds", "--rounds", "0"), ("best-of-n", "--num-samples", "1")]
)
def test_too_few_is_a_usage_error(folder: Path, words: tuple[str, ...]) -> None:
    assert trueup(folder, *words).exit_code == 2
