"""One turn after another with people as the judge: tasks, votes, a candidate."""

from pathlib import Path

from test_people import says

from test_loop import send_traffic
from trueup.loop import turn
from trueup.project import Project
from trueup.records import Label, PreferencePair, ReviewTask


def test_a_turn_waits_for_people_and_the_next_goes_on_with_what_they_said(folder: Path) -> None:
    """People prefer the shorter of two answers, two of them alike, and one never sees the rest."""
    project = Project(folder, ("label.judge=people", "label.overlap=2", "train.epochs=1"))
    store = project.store
    send_traffic(project, week=0)
    first = turn(project)
    tasks = store.all(ReviewTask)
    assert first.verdict.status == "pending"
    assert first.counts["tasks waiting"] == len(tasks) > 24
    assert first.counts["labelled"] == store.count(Label) == 0

    for one in tasks[:24]:
        lengths = [len(answer.text) for answer in one.candidates]
        says(store, one, "second" if lengths[0] > lengths[1] else "first", "ann", "bob")
    says(store, tasks[24], "first", "ann")
    second = turn(project)
    assert second.counts["labelled"] == 24
    assert second.counts["tasks waiting"] == len(tasks) - 24
    assert second.counts["new_pairs"] >= 12
    assert second.checkpoint is not None
    assert second.verdict.gate != "train"
    for pair in store.each(PreferencePair):
        assert len(pair.chosen.text) <= len(pair.rejected.text)
        assert 0.9 < pair.margin < 1, "two who agree"
