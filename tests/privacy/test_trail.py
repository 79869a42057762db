"""The audit trail says who did what, and shows when a line was changed or taken out."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from trueup.privacy.trail import entries, first_broken, note
from trueup.store import Store


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = None if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    opened = Store(tmp_path, url=url)
    for n in range(5):
        note(opened, "export", {"pairs": n}, who="ann")
    yield opened
    opened.close()


def test_lines_say_who_did_what_and_when(store: Store) -> None:
    lines = entries(store)
    assert [one.number for one in lines] == [1, 2, 3, 4, 5]
    assert {(one.who, one.action) for one in lines} == {("ann", "export")}
    assert lines[2].details == {"pairs": 2}
    assert lines[0].at <= lines[4].at and len({one.hash for one in lines}) == 5
    assert first_broken(store) is None


def test_by_default_it_is_the_user_of_this_machine(store: Store) -> None:
    note(store, "role", {})
    assert entries(store)[-1].who not in ("", "ann")


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ("UPDATE audit_trail SET who = 'bob' WHERE number = 3", 3),
        ("UPDATE audit_trail SET details = '{\"pairs\": 9}' WHERE number = 1", 1),
        ("UPDATE audit_trail SET at = '2020' WHERE number = 5", 5),
        ("DELETE FROM audit_trail WHERE number = 2", 2),
        ("DELETE FROM audit_trail WHERE number = 1", 1),
        ("UPDATE audit_trail SET number = 9 WHERE number = 4", 4),
    ],
)
def test_a_line_that_was_changed_or_taken_out_shows(store: Store, change: str, broken: int) -> None:
    with store.writing() as connection:
        connection.execute(text(change))
    assert first_broken(store) == broken


def test_a_gap_that_was_closed_shows_too(store: Store) -> None:
    with store.writing() as connection:
        connection.execute(text("DELETE FROM audit_trail WHERE number = 3"))
        connection.execute(text("UPDATE audit_trail SET number = 3 WHERE number = 4"))
        connection.execute(text("UPDATE audit_trail SET number = 4 WHERE number = 5"))
    assert first_broken(store) == 3


def test_lines_written_at_once_are_one_chain(store: Store) -> None:
    threads = [
        threading.Thread(target=lambda: [note(store, "role", {}) for _ in range(5)])
        for _ in range(4)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(entries(store)) == 25 and first_broken(store) is None
