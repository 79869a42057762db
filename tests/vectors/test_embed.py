"""Interactions into the index: all of them, once, also after a kill; none that was erased; and a
search that finds them, whichever database keeps the vectors."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import delete

from trueup.cli.main import main
from trueup.models.embedder import Embedder, lexical
from trueup.project import Project
from trueup.records import Completion, Flag, Interaction, Message
from trueup.store import Store
from trueup.store.tables import TABLES
from trueup.vectors import Filter, Index, VectorsConfig, embed, erase_vectors, search, text_of

Opener = Callable[..., Index]
TOPICS = {
    "cooking": ["how do I boil rice", "boil an egg", "rice with beans recipe"],
    "travel": ["train to Paris", "when does the train leave for Rome", "train ticket price"],
    "code": ["sort a list in python", "python list comprehension", "reverse a python list"],
}


def interaction(text: str, n: int = 0, **given: str | None) -> Interaction:
    return Interaction(
        prompt=(Message(role="system", content="Be brief."), Message(role="user", content=text)),
        completion=Completion(text=f"An answer to {text}"),
        source="gateway",
        request_id=f"{text} {n}",
        **given,
    )


def letters(texts: Sequence[str]) -> np.ndarray:
    return np.array([[t.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz "] for t in texts])


@pytest.fixture
def filled(either_store: Store) -> Store:
    texts = [text for topic in TOPICS.values() for text in topic]
    either_store.add_all(
        interaction(text, user=f"user-{i % 2}", model="small") for i, text in enumerate(texts)
    )
    return either_store


def test_everything_is_embedded_once_and_found_by_meaning(filled: Store, either: Opener) -> None:
    embedder, config = lexical(), VectorsConfig(batch=4)
    index = either(embedder.id, batch=4)
    assert embed(filled, index, embedder, config)._asdict() == {
        "added": 9, "raised": 0, "removed": 0, "total": 9,
    }  # fmt: skip
    assert embed(filled, index, embedder, config).added == 0
    found = search(filled, index, embedder, "boil rice", limit=3)
    assert {text_of(m.interaction, config) for m in found} == set(TOPICS["cooking"])
    vectors = embedder(["boil rice", *(text_of(m.interaction, config) for m in found)])
    assert [m.similarity for m in found] == pytest.approx(vectors[1:] @ vectors[0], abs=1e-5)
    ours = search(filled, index, embedder, "boil rice", where=Filter(user="user-1"))
    assert [m.interaction.user for m in ours] == ["user-1"] * 4


def test_the_answer_is_embedded_where_the_settings_say_so(filled: Store, either: Opener) -> None:
    config = VectorsConfig(text="answer")
    index = either(lexical().id, text="answer")
    embed(filled, index, lexical(), config)
    found = search(filled, index, lexical(), "An answer to boil an egg", limit=1)[0]
    assert found.similarity == pytest.approx(1, abs=1e-5)
    assert either(lexical().id).count() == 0, "prompts have an index of their own"


def test_what_a_flagger_raises_later_is_found_as_flagged(filled: Store, either: Opener) -> None:
    embedder, config = Embedder("letters/1", letters), VectorsConfig()
    index = either(embedder.id)
    raised, quiet = list(filled.each(Interaction))[:2]
    filled.add(Flag(interaction_id=raised.id, flagger="signals/1", score=0.9, raised=True))
    embed(filled, index, embedder, config)
    assert index.ids(Filter(raised=True)) == {raised.id}
    filled.add(Flag(interaction_id=quiet.id, flagger="signals/1", score=0.8, raised=True))
    assert embed(filled, index, embedder, config).raised == 1
    assert index.ids(Filter(raised=True)) == {raised.id, quiet.id}


def test_what_left_the_store_leaves_the_index(filled: Store, either: Opener) -> None:
    embedder, config = Embedder("letters/1", letters), VectorsConfig()
    index = either(embedder.id)
    embed(filled, index, embedder, config)
    gone = next(filled.each(Interaction)).id
    forget(filled, gone)
    assert gone not in {m.interaction.id for m in search(filled, index, embedder, "rice")}
    assert embed(filled, index, embedder, config).removed == 1
    assert gone not in index.ids()


def test_what_is_erased_while_it_is_embedded_does_not_come_back(
    filled: Store, either: Opener
) -> None:
    gone = next(filled.each(Interaction)).id

    def slow(texts: Sequence[str]) -> np.ndarray:
        forget(filled, gone)  # between the reading of its text and the adding of its vector
        erase_vectors(filled, VectorsConfig(), [gone])
        return letters(texts)

    embedder = Embedder("letters/1", slow)
    index = either(embedder.id)
    assert embed(filled, index, embedder, VectorsConfig()).added == 8
    assert gone not in index.ids()


def test_erasing_reaches_the_vectors_of_every_embedder(filled: Store, either: Opener) -> None:
    every = [Embedder("letters/1", letters), lexical()]
    for embedder in every:
        embed(filled, either(embedder.id), embedder, VectorsConfig())
    gone = [one.id for one in filled.each(Interaction, user="user-1")]
    assert erase_vectors(filled, VectorsConfig(), gone) == 2 * len(gone) == 8
    assert [either(one.id).count() for one in every] == [5, 5]


def test_odd_texts_are_embedded(either_store: Store, either: Opener) -> None:
    odd = ["", "nul \0 inside", "x" * 20_000, "\x1b[2J"]
    either_store.add_all(interaction(text, i, user="o'hara \\") for i, text in enumerate(odd))
    embedder, config = lexical(), VectorsConfig()
    index = either(embedder.id)
    assert embed(either_store, index, embedder, config).added == len(odd)
    assert index.count(Filter(user="o'hara \\")) == len(odd)


def forget(store: Store, interaction_id: str) -> None:
    table = TABLES[Interaction]
    with store.engine.begin() as connection:
        connection.execute(delete(table).where(table.c.id == interaction_id))


# --- through the terminal -------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "trueup.toml").write_text('[embedder]\nname = "lexical"\n')
    opened = Project(tmp_path)
    texts = [text for topic in TOPICS.values() for text in topic]
    opened.store.add_all(interaction(text, user="ann", model="small") for text in texts)
    opened.store.add(interaction("boil \x1b[31mred\x1b[0m rice\u202e \n" + "grain " * 200))
    return opened


def run(project: Project, *words: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["-p", str(project.folder), *words])
    assert stop.value.code == 0


def test_the_terminal_embeds_and_searches(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    run(project, "embed")
    assert "10 interactions have vectors, 10 of them new" in capsys.readouterr().out
    run(project, "search", "boil rice", "--user", "ann", "--limit", "2", "--json")
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 2
    assert found[0]["interaction"]["prompt"][-1]["content"] == "how do I boil rice"
    assert found[0]["similarity"] > found[1]["similarity"]


def test_a_user_is_asked_for_by_id_and_kept_under_pseudonyms(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    scrub = project.scrub
    assert scrub is not None
    asked = [interaction(f"boil {t}", user="zoe", tenant=t) for t in ("rice", "eggs")]
    project.store.add_all(scrub(one) for one in asked)
    kept = {one.user for one in project.store.each(Interaction)}
    assert "zoe" not in kept and len(kept) == 4, "ann, nobody, and a pseudonym a tenant"
    run(project, "embed", "--json")
    capsys.readouterr()
    run(project, "search", "boil", "--user", "zoe", "--json")
    assert len(json.loads(capsys.readouterr().out)) == 2
    run(project, "search", "boil", "--user", "zoe", "--tenant", "eggs", "--json")
    assert len(json.loads(capsys.readouterr().out)) == 1
    run(project, "search", "boil", "--user", "zo", "--json")
    assert json.loads(capsys.readouterr().out) == []


def test_nothing_that_a_user_wrote_commands_the_terminal(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    run(project, "embed")
    capsys.readouterr()
    run(project, "search", "boil red grain rice", "--limit", "1")
    out = capsys.readouterr().out
    assert "boil" in out and "red" in out
    assert not {"\x1b", "\u202e"} & set(out)
    assert max(map(len, out.splitlines())) < 200


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["search", "rice"], "Nothing has a vector yet"),
        (["search", "rice", "--since", "yesterday"], "--since is no date"),
    ],
)
def test_a_search_that_cannot_be_made_says_what_to_do(
    project: Project, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["-p", str(project.folder), *words])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert said in error and "next:" in error


def test_killed_half_way_the_next_call_goes_on(project: Project) -> None:
    project.store.add_all(interaction(f"question {i}", i) for i in range(3000))
    command = [sys.executable, "-m", "trueup", "-p", str(project.folder)]
    child = subprocess.Popen(
        [*command, "--set", "vectors.batch=20", "embed", "--json"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    index = project.vectors
    until = time.monotonic() + 60
    while not 100 <= index.count() < 2500:
        assert time.monotonic() < until and child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = index.count()
    assert before < 3010
    done = embed(project.store, index, project.embedder, project.config.vectors)
    assert done.added == 3010 - before
    assert index.ids() == {one.id for one in project.store.each(Interaction)}
