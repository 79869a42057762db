"""The terminal door: loop order, --json everywhere, exit codes, and errors a person can act on."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from trueup.cli.main import COMMANDS, cli
from trueup.cli.turn import turn_data, turn_page
from trueup.loop import Turn
from trueup.records import Checkpoint, TrainingRun, Verdict
from trueup.store import Store

LOOP = ["serve", "import", "flag", "label", "pair", "train", "guard", "evaluate", "ab", "promote"]


def trueup(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The real program, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "trueup", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "80"},
    )


def leaves(group: click.Group, context: click.Context) -> list[click.Command]:
    found: list[click.Command] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        found += leaves(command, context) if isinstance(command, click.Group) else [command]
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    assert trueup("init", str(tmp_path), cwd=tmp_path).returncode == 0
    return tmp_path


def test_help_lists_the_stages_in_loop_order(tmp_path: Path) -> None:
    shown = trueup("--help", cwd=tmp_path).stdout
    places = [shown.index(f"\n  {name} ") for name in LOOP]
    assert places == sorted(places)
    assert set(LOOP) < set(COMMANDS)


def test_every_command_has_json_and_help_that_says_something() -> None:
    for command in leaves(cli, click.Context(cli)):
        assert any({"--json", "--jsonl"} & set(p.opts) for p in command.params), command.name
        assert len((command.help or "").split()) > 4, command.name


def test_status_of_a_new_project_as_json(project: Path) -> None:
    done = trueup("status", "--json", cwd=project)
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert told["counts"]["interaction"] == 0
    assert told["champion"] is None
    assert told["config"]["train"]["min_new_pairs"] == 500


def test_an_unknown_setting_exits_1_in_two_lines_and_names_the_nearest(project: Path) -> None:
    with (project / "trueup.toml").open("a") as settings:
        settings.write("\n[train]\nepoch = 2\n")
    done = trueup("status", cwd=project)
    assert done.returncode == 1
    assert done.stdout == ""
    first, second = done.stderr.strip().splitlines()
    assert "there is no setting 'train.epoch'" in first
    assert "Expected 'epochs'" in first
    assert second.startswith("  next: rename it to 'epochs'")


def test_a_wrong_command_line_exits_2(project: Path) -> None:
    assert trueup("flagg", cwd=project).returncode == 2
    assert trueup("import", cwd=project).returncode == 2


def test_a_folder_without_a_project_says_how_to_start_one(tmp_path: Path) -> None:
    done = trueup("run", cwd=tmp_path)
    assert done.returncode == 1
    assert "trueup init" in done.stderr


def test_promoting_nothing_says_what_is_missing(project: Path) -> None:
    done = trueup("promote", cwd=project)
    assert done.returncode == 1
    assert "There is no checkpoint yet" in done.stderr
    assert "trueup train" in done.stderr


def test_a_malformed_line_is_counted_and_the_good_ones_are_kept(project: Path) -> None:
    good = {"prompt": "Hi?", "chosen": "Hello.", "rejected": "What?"}
    (project / "rows.jsonl").write_text(json.dumps(good) + "\n{broken\n")
    done = trueup("import", "rows.jsonl", cwd=project)
    assert done.returncode == 1
    assert "line 2" in done.stderr
    kept = json.loads(trueup("status", "--json", cwd=project).stdout)["counts"]
    assert kept["label"] == 1
    again = trueup("import", "rows.jsonl", "--max-skip-rate", "0.6", "--json", cwd=project)
    assert again.returncode == 0
    assert json.loads(again.stdout)["new"] == 0


def test_flagging_an_empty_project_is_no_error(project: Path) -> None:
    done = trueup("flag", "--json", cwd=project)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"examined": 0, "raised": 0})


def test_a_turn_without_a_candidate_is_pending_and_writes_no_page(
    project: Path, tiny_model: Path
) -> None:
    asked = {"messages": [{"role": "user", "content": "sky?"}], "facts": [["blue"]]}
    gold = {"id": "1", "prompt": "leaf?", "checker": {"type": "contains", "all": ["green"]}}
    (project / "heldout.jsonl").write_text(json.dumps(asked))
    (project / "gold.jsonl").write_text(json.dumps(gold))
    words = ["--set", f"model.base={tiny_model}", "run", "--json"]
    done = trueup(*words, cwd=project)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["verdict"]["status"] == "pending"
    assert (told["checkpoint"], told["report"], told["reports"]) == (None, None, [])
    assert list(project.rglob("*.html")) == []


def test_a_turn_with_a_candidate_has_a_page_and_names_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run = TrainingRun(
        dataset_id="dataset_1",
        method="dpo",
        config={},
        base_weights="weights_0",
        start_weights="weights_0",
        ref_weights="weights_0",
        template="template_0",
    )
    checkpoint = Checkpoint(run_id=run.id, path="c", weights="weights_1", base_weights="weights_0")
    store.add(run, checkpoint)
    refused = Verdict(gate="guard", status="refused", reason="length: twice the old one")
    turn = Turn(refused, checkpoint=checkpoint, counts={"flagged": 3})
    page = turn_page(store, turn)
    store.close()
    assert page and "length: twice the old one" in page.read_text()
    told = turn_data(turn, page)
    assert (told["report"], told["checkpoint"]) == (str(page), checkpoint.id)


def test_a_model_that_was_never_pulled_says_how_to_pull_it(project: Path) -> None:
    done = trueup("--set", "model.base=nowhere/nothing", "label", cwd=project)
    assert done.returncode == 1
    assert "trueup model pull nowhere/nothing" in done.stderr


WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from trueup.cli.main import main
main(sys.argv[2:])
"""


def trueup_without(packages: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The program where these packages are not installed."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, packages, *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "80"},
    )


@pytest.mark.parametrize(
    ("package", "command", "extra"),
    [
        ("torch", "label", "train"),
        ("transformers", "label", "train"),
        ("huggingface_hub", "model pull nobody/nothing", "train"),
        ("starlette", "serve", "gateway"),
        ("uvicorn", "judge serve --port 0", "gateway"),
    ],
)
def test_a_package_that_is_not_installed_exits_1_in_two_lines_that_name_its_extra(
    project: Path, package: str, command: str, extra: str
) -> None:
    words = ["--set", f"model.base={project}", *command.split()]
    done = trueup_without(package, *words, cwd=project)
    assert done.returncode == 1
    assert done.stdout == ""
    first, second = done.stderr.strip().splitlines()
    assert first.startswith("error: ") and package in first and f"extra '{extra}'" in first
    assert re.fullmatch(rf"  next: pip install 'trueup\[[\w,]*\b{extra}\b[\w,]*\]'\.", second)


def test_what_needs_no_extra_works_without_any(project: Path) -> None:
    extras = "torch,transformers,peft,safetensors,gguf,huggingface_hub,starlette,uvicorn"
    assert trueup_without(extras, "status", "--json", cwd=project).returncode == 0


def test_with_debug_a_missing_package_keeps_its_traceback(project: Path) -> None:
    words = ["--debug", "--set", f"model.base={project}", "label"]
    done = trueup_without("torch", *words, cwd=project)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "No module named 'torch'" in done.stderr


def test_a_missing_package_of_the_base_is_a_broken_install_and_shows_where(project: Path) -> None:
    done = trueup_without("sqlalchemy", "status", cwd=project)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "pip install" not in done.stderr
