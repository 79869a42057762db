"""Names of judges, and what makes one judge another."""

import sys
from pathlib import Path

import pytest

from trueup.judges import resolve, signature, version_of
from trueup.judges.panel import Panel


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


def test_a_panel_is_mended_when_a_member_is(monkeypatch: pytest.MonkeyPatch) -> None:
    one = resolve("loop_scorers:plain")
    panel = Panel([one, resolve("house-style")])
    assert version_of(panel) == version_of(one) != ""
    assert signature(one) == f"{one.id}@{version_of(one)}"
    monkeypatch.setattr(one, "version", "mended")
    after = Panel([one, resolve("house-style")])
    assert after.id == panel.id and signature(after) != signature(panel)
    assert signature(resolve("house-style")) == "code:house-style/1"
