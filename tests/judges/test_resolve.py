"""Names of judges, and what makes one judge another."""

import sys
from pathlib import Path

import pytest

from trueup.judges import resolve


def test_two_names_of_one_function_are_one_scorer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "team_scorers.py").write_text(
        "def score(prompt, text):\n    return 1.0\n\n\nalso = score\nother = lambda p, t: 0.0\n"
    )
    (tmp_path / "team_again.py").write_text("from team_scorers import score\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        names = ("team_scorers:score", "team_scorers:also", "team_again:score")
        assert {resolve(name).id for name in names} == {"code:team_scorers:score"}
        assert resolve("team_scorers:other").id == "code:team_scorers:other"
    finally:
        for name in ("team_scorers", "team_again"):
            sys.modules.pop(name, None)
