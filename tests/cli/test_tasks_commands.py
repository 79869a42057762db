"""`trueup tasks` and `trueup annotators`, from questions to labels, as a shell sees them."""

import csv
import io
import json
from pathlib import Path

import pytest

from trueup.cli.main import main


def run(folder: Path, *words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["--project", str(folder), *words])
    return int(stop.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "trueup.toml").write_text("[label]\njudge = 'people'\n")
    return tmp_path


def rows(*found: object) -> str:
    return "".join(json.dumps(one) + "\n" for one in found)


def test_questions_go_in_and_labels_come_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, gold = folder / "q.jsonl", folder / "gold.jsonl"
    questions.write_text(
        rows(*({"prompt": f"[red]Q{n}\x1b[31m?", "candidates": ["x", "=y"]} for n in range(3)))
    )
    gold.write_text(rows({"prompt": "G?", "chosen": "yes", "rejected": "no"}, {"prompt": 3}))
    assert run(folder, "tasks", "add", str(questions)) == 0
    assert run(folder, "tasks", "add", "--gold", str(gold)) == 0
    said = capsys.readouterr()
    assert "3 rows: 3 new tasks" in said.out
    assert "row 2: no prompt" in said.err

    out = folder / "ann.csv"
    assert run(folder, "tasks", "export", "--annotator", "ann", "--out", str(out)) == 0
    table = list(csv.DictReader(io.StringIO(out.read_text(), newline="")))
    assert len(table) == 4
    with out.open("w", newline="") as written:
        writer = csv.DictWriter(written, list(table[0]))
        writer.writeheader()
        writer.writerows(row | {"vote": "1"} for row in table)
    capsys.readouterr()
    assert run(folder, "tasks", "import", str(out), "--json") == 0
    assert json.loads(capsys.readouterr().out)["new"] == 4
    assert run(folder, "tasks", "import", str(out)) == 0
    assert "0 new votes, 4 known" in capsys.readouterr().out

    assert run(folder, "audit-trail", "--json") == 0
    (line,) = json.loads(capsys.readouterr().out)["entries"]
    assert (line["action"], line["details"]["what"]) == ("export", "tasks")
    assert line["details"]["to"] == str(out)

    assert run(folder, "tasks", "settle", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"labels": 3, "waiting": 0, "unsettled": 0}
    assert run(folder, "annotators", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["votes"], one["gold_asked"]) for one in found["annotators"]] == [
        ("ann", 3, 1)
    ]
    assert run(folder, "annotators") == 0
    assert run(folder, "tasks", "export", "--jsonl", "--votes") == 0
    assert run(folder, "tasks", "list") == 0
    assert "\x1b" not in capsys.readouterr().out
    assert run(folder, "status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["counts"]["tasks waiting"] == 0


def test_an_export_to_where_no_file_can_be_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in (folder, folder / "nowhere" / "ann.csv"):
        assert run(folder, "tasks", "export", "--out", str(out)) == 1
        assert f"{out} could not be written" in capsys.readouterr().err.replace("\n", " ")


def test_a_webhook_without_a_secret_or_beyond_loopback_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABEL_STUDIO_WEBHOOK_SECRET", raising=False)
    assert run(folder, "label-studio", "serve-webhook") == 1
    assert "anybody could vote" in capsys.readouterr().err
    monkeypatch.setenv("LABEL_STUDIO_WEBHOOK_SECRET", "s" * 16)
    assert run(folder, "label-studio", "serve-webhook", "--host", "0.0.0.0") == 1
    said = capsys.readouterr().err
    assert "beyond this machine" in said
    assert "s" * 16 not in said
