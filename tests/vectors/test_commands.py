"""`trueup topics`, `duplicates`, `shift --weeks` and `suite --diverse` through the terminal, and
the pages that two of them write."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import delete, insert

from page_reader import assert_safe
from trueup.cli.main import main
from trueup.project import Project
from trueup.records import Completion, Interaction, Message
from trueup.store import Store
from trueup.store.tables import TABLES

FORMS = {
    "battery": "my battery charger number {} does not charge the battery",
    "train": "train {} to Rome: when does the train leave",
    "python": "how to sort python list {} in reverse",
}
HOSTILE = "<script>alert(1)</script> \x1b[31m battery \u202e"


def interaction(topic: str, week: int, n: int, text: str = "") -> Interaction:
    return Interaction(
        prompt=(Message(role="user", content=text or FORMS[topic].format(n)),),
        completion=Completion(text="An answer."),
        source="gateway",
        request_id=f"{topic} {week} {n} {text}",
        user=f"user-{n % 2}",
        created_at=f"2026-03-{2 + 7 * week + n % 7:02}T10:00:00+00:00",
    )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Two weeks about batteries, the second one nearly the first again, then one about others."""
    (tmp_path / "trueup.toml").write_text('[embedder]\nname = "lexical"\n')
    opened = Project(tmp_path)
    store = opened.store
    store.add_all(interaction("battery", 0, n) for n in range(40))
    store.add_all(interaction("battery", 1, n) for n in range(20, 60))
    store.add_all(interaction(topic, 2, n) for n in range(30) for topic in ("train", "python"))
    store.add_all(interaction("battery", 0, n, HOSTILE) for n in range(3))
    return opened


def run(project: Project, *words: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["-p", str(project.folder), *words])
    assert stop.value.code == 0


def test_topics_in_the_terminal_and_on_a_page(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    run(project, "embed")
    run(project, "topics", "--num", "3")
    out = capsys.readouterr().out
    assert "train" in out and "python" in out and "points" in out
    assert not {"\x1b", "\u202e"} & set(out)
    run(project, "topics", "--num", "3", "--json")
    told = json.loads(capsys.readouterr().out)
    assert sum(one["num_interactions"] for one in told["topics"]) == 143
    assert told["weeks"] == ["2026-03-02", "2026-03-09", "2026-03-16"]
    page = Path(told["report"])
    text = page.read_text("utf-8")
    drawn = assert_safe(text, page.with_suffix(".json").name).drawn()
    assert "\x1b" not in text and "\u202e" not in text
    assert all(one["name"] in text for one in told["topics"])
    assert len(set(drawn)) == len(told["topics"])
    assert json.loads(page.with_suffix(".json").read_text())["num_by_week"] == told["num_by_week"]


def test_serving_embeds_in_a_process_beside_it_that_ends_with_it(project: Project) -> None:
    command = [sys.executable, "-m", "trueup", "-p", str(project.folder)]
    for setting in ("serve.port=0", "vectors.while_serving=true", "vectors.poll_s=0.1"):
        command += ["--set", setting]
    command += ["--set", "serve.upstream=http://127.0.0.1:9/v1", "serve"]
    served = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: project.vectors.count() == 143)
        project.store.add(interaction("train", 2, 99))
        wait_for(lambda: project.vectors.count() == 144)
        one, other = list(project.store.each(Interaction))[3], interaction("train", 2, 100)
        replace(project.store, one, other)
        wait_for(
            lambda: project.vectors.ids() >= {other.id} and one.id not in project.vectors.ids()
        )
        listed = Path(f"/proc/{served.pid}/task/{served.pid}/children").read_text().split()
        (child,) = [one for one in listed if "--watch" in command_of(one)]
    finally:
        served.kill()  # it has no time to end its child
        served.wait()
    wait_for(lambda: "--watch" not in command_of(child))


STARTED_AND_GONE = """
import os, sys
from pathlib import Path
from trueup.vectors.beside import embedding_beside
from trueup.vectors.config import VectorsConfig

with embedding_beside(VectorsConfig(while_serving=True), Path(sys.argv[1]), ()):
    print(Path(f"/proc/self/task/{os.getpid()}/children").read_text(), flush=True)
    os._exit(9)
"""


def test_an_embedding_process_whose_server_dies_at_once_ends_as_well(project: Project) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARTED_AND_GONE, str(project.folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        stdout=subprocess.PIPE,
        text=True,
    )
    (child,) = done.stdout.split()
    wait_for(lambda: "--watch" not in command_of(child))


def replace(store: Store, one: Interaction, other: Interaction) -> None:
    """In one transaction, so that nobody sees another number of them."""
    table = TABLES[Interaction]
    with store.writing() as connection:
        connection.execute(delete(table).where(table.c.id == one.id))
        row = {name: getattr(other, name) for name in ("id", "created_at", *Interaction.indexed)}
        connection.execute(insert(table), row | {"body": other.model_dump_json()})


def command_of(process: str) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""


def wait_for(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 300
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_status_says_how_many_have_vectors(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    run(project, "status", "--json")
    assert json.loads(capsys.readouterr().out)["counts"]["with a vector"] == 0
    run(project, "embed")
    capsys.readouterr()
    run(project, "status", "--json")
    assert json.loads(capsys.readouterr().out)["counts"]["with a vector"] == 143
    for file in project.store.folder.rglob("*.manifest"):
        file.write_bytes(b"broken")
    run(project, "status")
    assert "interaction" in capsys.readouterr().out


def test_a_damaged_index_is_made_again_with_one_command(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    run(project, "embed")
    for file in (project.store.folder / "vectors").rglob("*.manifest"):
        file.write_bytes(b"broken")
    with pytest.raises(SystemExit) as stop:
        main(["-p", str(project.folder), "search", "battery"])
    assert stop.value.code == 1
    assert "trueup embed --rebuild" in capsys.readouterr().err
    run(project, "embed", "--rebuild")
    run(project, "search", "battery", "--limit", "1", "--json")
    out = capsys.readouterr().out
    assert "battery" in json.loads(out[out.index("[") :])[0]["interaction"]["prompt"][0]["content"]


def test_duplicates_in_the_terminal(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    run(project, "embed")
    capsys.readouterr()
    run(project, "duplicates", "--threshold", "0.999", "--json")
    groups = json.loads(capsys.readouterr().out)
    assert len(groups[0]["ids"]) == 3 and groups[0]["least"] == pytest.approx(1)
    assert len(groups) == 21, "the three hostile ones, and the twenty that both weeks have"
    run(project, "duplicates", "--user", "user-1", "--limit", "1")
    out = capsys.readouterr().out
    assert "groups;" in out and not {"\x1b", "\u202e"} & set(out)


def test_weeks_are_held_against_the_weeks_before(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    run(project, "shift", "--weeks", "8", "--json")
    told = json.loads(capsys.readouterr().out)
    first, same, moved = told["weeks"]
    assert first["drift"] is None and first["num_interactions"] == 43
    assert same["drift"]["auc"] < 0.75 < 0.95 < moved["drift"]["auc"]
    assert moved["drift"]["mmd_p_value"] < 0.01
    assert moved["monday"] == "2026-03-16"
    page = Path(told["report"])
    text = page.read_text("utf-8")
    assert set(assert_safe(text, page.with_suffix(".json").name).drawn()) == {"auc", "counts"}
    assert "2026-03-16" in text
    run(project, "shift", "--weeks", "1")
    out = capsys.readouterr().out
    assert "2026-03-16" in out and "2026-03-09" not in out


def test_weeks_without_traffic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trueup.toml").write_text('[embedder]\nname = "lexical"\n')
    run(Project(tmp_path), "shift", "--weeks", "4", "--json")
    assert json.loads(capsys.readouterr().out)["weeks"] == []


def test_a_diverse_suite_takes_other_prompts_than_a_random_one(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    from trueup.vectors import diverse

    (project.folder / "gold.jsonl").write_text(
        '{"id": "a", "prompt": "Is it?", "checker": {"type": "contains", "any": ["yes"]}}\n'
    )
    spread, vectors = {}, project.embedder([""])
    for name, words in {"random": [], "diverse": ["--diverse"]}.items():
        target = project.folder / f"{name}.jsonl"
        run(project, "suite", "--size", "12", "--topics", "3", "--out", str(target), *words)
        rows = [json.loads(line) for line in target.read_text().splitlines()]
        assert len({row["messages"][-1]["content"] for row in rows}) == 12
        vectors = project.embedder([row["messages"][-1]["content"] for row in rows])
        spread[name] = float((vectors @ vectors.T).mean())
    assert spread["diverse"] < spread["random"]
    assert diverse(vectors, 12)[0] in range(12)
    nowhere = project.folder / "nowhere" / "suite.jsonl"
    words = ["suite", "--size", "12", "--topics", "3", "--out", str(nowhere)]
    with pytest.raises(SystemExit) as stop:
        main(["-p", str(project.folder), *words])
    assert stop.value.code == 1
    assert "suite.jsonl could not be written" in capsys.readouterr().err.replace("\n", " ")
