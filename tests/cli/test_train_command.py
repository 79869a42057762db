"""`trueup train` as typed: every method on a file, the dry run, and what it refuses."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner, Result

from trueup.cli.main import cli
from trueup.errors import ConfigError, DataError, ModelError
from trueup.train.config import ONLINE, Method
from trueup.train.step import Stepper

SETTINGS = """
[model]
base = "{model}"
num_threads = 1
[train]
epochs = 3
learning_rate = 2e-3
pairs_per_step = 4
lora_rank = 4
"""
OWN_ANSWERS = (
    "--set", "train.online.reward=loop_scorers:plain",
    "--set", "train.online.max_tokens=16",
    "--set", "train.online.steps=3",
)  # fmt: skip
Trueup = Callable[..., Result]


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    (tmp_path / "trueup.toml").write_text(SETTINGS.format(model=tiny_model))
    rows = [
        {"prompt": f"{thing}?" + " " * n, "chosen": f"{colour}.",
         "rejected": f"um, the {thing} is {colour}" + "!" * n}
        for thing, colour in {"sky": "blue", "leaf": "green", "coal": "black"}.items()
        for n in range(4)
    ]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    single = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in rows for side in ("chosen", "rejected")
    ]  # fmt: skip
    (tmp_path / "single.jsonl").write_text("\n".join(map(json.dumps, single)))
    return tmp_path


@pytest.fixture
def trueup(folder: Path) -> Trueup:
    """The command line, in this process: torch is loaded once."""

    def run(*words: str, catch: bool = True) -> Result:
        words = ("--project", str(folder), *words)
        return CliRunner().invoke(cli, words, catch_exceptions=catch)

    return run


@pytest.mark.parametrize("method", [one for one in get_args(Method) if one not in ONLINE])
def test_every_method_trains_on_a_file_and_says_what_it_did(
    trueup: Trueup, folder: Path, method: str
) -> None:
    extra = ("--set", "train.label_smoothing=0.1") if method == "robust_dpo" else ()
    done = trueup(
        *extra, "train", "--method", method, "--dataset", str(folder / "pairs.jsonl"), "--json"
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    metrics = told["checkpoint"]["metrics"]
    assert len(told["dataset"]["pair_ids"]) == 12
    assert (folder / ".trueup" / told["checkpoint"]["path"]).is_dir()
    if method != "reward":
        assert metrics["num_pairs"] == 12
        assert metrics["last"]["loss"] < metrics["first"]["loss"]


@pytest.mark.parametrize("method", [one.replace("_", "-") for one in ONLINE])
def test_online_methods_answer_the_prompts_of_a_file(
    trueup: Trueup, folder: Path, method: str
) -> None:
    file = str(folder / "pairs.jsonl")
    done = trueup(*OWN_ANSWERS, "train", "--method", method, "--dataset", file, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    metrics = told["checkpoint"]["metrics"]
    assert metrics["num_prompts"] == 12 and told["dataset"]["pair_ids"] == []
    assert metrics["rewarded_by"] == "code:loop_scorers:plain"
    assert [one["answers"] for one in metrics["history"]] == [32.0, 16.0, 32.0]
    shown = trueup(*OWN_ANSWERS, "train", "--method", method, "--dataset", file)
    assert "KL to the reference" in shown.stdout  # the same run, read from its record
    assert max(map(len, shown.stdout.splitlines()[1:])) <= 80
    assert "Trained on" in shown.stderr and "already" in shown.stderr


def test_the_dry_run_of_an_online_method_counts_prompts_and_batches(
    trueup: Trueup, folder: Path
) -> None:
    words = (*OWN_ANSWERS, "--set", "train.online.steps=7", "train", "--method", "rloo")
    words = (*words, "--dataset", str(folder / "pairs.jsonl"), "--dry-run")
    done = trueup(*words)
    assert done.exit_code == 0, done.output
    assert "12 prompts to answer, 0 held out; 7 batches of 8 prompts with 4 answers" in done.stdout
    assert json.loads(trueup(*words, "--json").stdout)["answers_per_prompt"] == 4
    assert json.loads(trueup("status", "--json").stdout)["counts"]["checkpoint"] == 0


def test_an_online_method_without_a_reward_says_which_setting(trueup: Trueup, folder: Path) -> None:
    refused = trueup("train", "--method", "ppo", "--dataset", str(folder / "pairs.jsonl"))
    assert isinstance(refused.exception, ConfigError)
    assert "train.online.reward" in str(refused.exception)


def test_a_dry_run_and_a_reward_model_leave_the_new_pairs_to_a_policy(
    trueup: Trueup, folder: Path
) -> None:
    assert trueup("import", str(folder / "pairs.jsonl")).exit_code == 0
    for words in (("--dry-run",), ("--method", "reward")):
        assert trueup("train", *words).exit_code == 0
    made = json.loads(trueup("train", "--json").stdout)
    assert len(made["dataset"]["pair_ids"]) == 12
    with pytest.raises(DataError, match="nothing to train on"):
        trueup("train", catch=False)


@pytest.mark.parametrize("method", ["dpo", "rloo"])
def test_a_stopped_run_goes_on_with_its_own_data_whatever_came_since(
    trueup: Trueup, folder: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def bring(things: range) -> None:
        pairs = [{"prompt": f"{n}?", "chosen": "yes.", "rejected": "um, no"} for n in things]
        traffic = [{"prompt": f"{n}?", "completion": "yes."} for n in things]
        for rows in (pairs, traffic):
            (folder / "more.jsonl").write_text("\n".join(map(json.dumps, rows)))
            assert trueup("import", str(folder / "more.jsonl")).exit_code == 0

    words = (*OWN_ANSWERS, "--set", "train.save_every_steps=1", "train", "--method", method)
    bring(range(8))
    take, taken = Stepper.take, []

    def twice(stepper: Stepper) -> None:
        if len(taken) == 2:
            raise KeyboardInterrupt
        taken.append(take(stepper))

    monkeypatch.setattr(Stepper, "take", twice)
    stopped = trueup(*words, "--json")
    assert len(taken) == 2 and stopped.exit_code != 0, stopped.output
    monkeypatch.setattr(Stepper, "take", take)
    bring(range(8, 12))

    done = trueup(*words[:2], "--set", "train.online.reward_timeout_s=77", *words[2:], "--json")
    assert done.exit_code == 0, done.output
    assert "Going on with the data set of" in done.stderr
    first = json.loads(done.stdout)
    after = trueup(*words, "--json")
    assert "Going on" not in after.stderr
    second = json.loads(after.stdout)
    told = [one["checkpoint"]["metrics"] for one in (first, second)]
    if method == "dpo":
        assert [one["num_pairs"] for one in told] == [8, 4]
    else:
        assert [one["num_prompts"] for one in told] == [8, 12]


def test_what_promotes_may_not_reward(trueup: Trueup, folder: Path) -> None:
    (folder / "suite.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "?"}]})
    )
    words = ("--set", "ab.prompts=suite.jsonl", "--set", "ab.scorer=loop_scorers:plain")
    with pytest.raises(ConfigError, match="scorer that promotes"):
        trueup(*words, *OWN_ANSWERS, "train", "--method", "rloo", "--dataset", "x", catch=False)


def test_single_ratings_are_trained_on_by_kto_and_refused_by_dpo(
    trueup: Trueup, folder: Path
) -> None:
    file = str(folder / "single.jsonl")
    done = trueup("train", "--method", "kto", "--dataset", file, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["dataset"]["pair_ids"] == [] and len(told["dataset"]["label_ids"]) == 24
    history = told["checkpoint"]["metrics"]["history"]
    assert history[-1]["chosen_logps_change"] > 0 > history[-1]["rejected_logps_change"]
    refused = trueup("train", "--dataset", file)
    assert isinstance(refused.exception, DataError)
    assert "--method kto" in str(refused.exception)


def test_the_dry_run_shows_the_tokens_with_loss_and_trains_nothing(
    trueup: Trueup, folder: Path
) -> None:
    file = str(folder / "pairs.jsonl")
    done = trueup("train", "--dataset", file, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "<|im_end|>" in done.stdout
    assert "template_" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    told = json.loads(trueup("train", "--dataset", file, "--dry-run", "--json").stdout)
    tokens = told["samples"][0]["chosen"]
    assert any(t[2] if isinstance(t, list) else t["carries_loss"] for t in tokens)
    counts = json.loads(trueup("status", "--json").stdout)["counts"]
    assert counts["checkpoint"] == 0


def test_a_limit_takes_the_first_records(trueup: Trueup, folder: Path) -> None:
    done = trueup("train", "--dataset", str(folder / "pairs.jsonl"), "--limit", "5", "--json")
    assert json.loads(done.stdout)["checkpoint"]["metrics"]["num_pairs"] == 5


def test_settings_that_contradict_each_other_are_refused(trueup: Trueup, folder: Path) -> None:
    done = trueup("train", "--method", "robust_dpo", "--dataset", str(folder / "pairs.jsonl"))
    assert isinstance(done.exception, ConfigError)
    assert "label_smoothing above 0" in str(done.exception)


def test_the_real_program_prints_a_summary_of_80_columns(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trueup", "train", "--dataset", "pairs.jsonl"],
        cwd=folder, capture_output=True, text=True, timeout=180,
        env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "12 records, loss 0.6931 -> " in done.stdout
    assert "Traceback" not in done.stderr


def test_a_reward_model_is_no_candidate(trueup: Trueup, folder: Path) -> None:
    file = str(folder / "pairs.jsonl")
    told = json.loads(trueup("train", "--method", "reward", "--dataset", file, "--json").stdout)
    (folder / "heldout.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "rose?"}]})
    )
    settings = (folder / "trueup.toml").read_text() + '[ab]\nprompts = "heldout.jsonl"\n'
    (folder / "trueup.toml").write_text(settings)
    refused = trueup("guard", "--checkpoint", told["checkpoint"]["id"])
    assert isinstance(refused.exception, ModelError), refused.output
    assert "does not answer" in str(refused.exception)
