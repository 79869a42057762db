"""Held-out prompts from traffic: every topic, by its share, and nothing twice."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from trueup.ab.draw import draw_suite
from trueup.cli.main import cli
from trueup.errors import DataError
from trueup.models.embedder import Embedder, lexical
from trueup.records import Completion, Interaction, Label, Message, Messages, PreferencePair
from trueup.store import Store
from trueup.suite import read_suite

TOPICS = {
    "battery": "How long does the battery of charger {} last?",
    "refund": "May I return parcel {} for a refund?",
    "seeds": "Which seeds fit into feeder {}?",
}


def asked(text: str) -> Messages:
    return (Message(role="user", content=text),)


def traffic(**counts: int) -> list[Messages]:
    return [asked(TOPICS[name].format(i)) for name, n in counts.items() for i in range(n)]


def by_topic(prompts: list) -> Counter[str]:
    return Counter(
        next(name for name, form in TOPICS.items() if form.split("{")[0] in p.messages[0].content)
        for p in prompts
    )


def apart() -> Embedder:
    """Topics on axes of their own, prompts a little apart."""
    names = list(TOPICS)

    def encode(texts):
        rows = np.random.default_rng(0).normal(0, 0.25, (len(texts), 8))
        for row, text in zip(rows, texts, strict=True):
            row[next(i for i, n in enumerate(names) if TOPICS[n].split("{")[0] in text)] += 1
        return rows

    return Embedder("apart", encode)


def test_topics_get_places_by_their_share_of_the_traffic() -> None:
    drawn = draw_suite(traffic(battery=60, refund=30, seeds=10), apart(), size=20, topics=3, seed=1)
    assert by_topic(drawn) == {"battery": 12, "refund": 6, "seeds": 2}
    assert len({p.stratum for p in drawn}) == 3
    assert len({p.messages for p in drawn}) == 20


def test_what_is_asked_often_counts_often() -> None:
    often = traffic(battery=30, refund=30) + traffic(battery=30) * 2
    drawn = draw_suite(often, apart(), size=20, topics=2)
    assert by_topic(drawn) == {"battery": 15, "refund": 5}


def test_a_stratum_is_named_by_its_own_words() -> None:
    drawn = draw_suite(traffic(battery=30, seeds=30), lexical(), size=12, topics=2)
    assert {p.stratum for p in drawn} == {"battery charger", "feeder fit"}


def test_near_duplicates_are_drawn_last() -> None:
    same = [asked("Which seeds fit into feeder 1?" + "!" * n) for n in range(20)]
    vectors = {p[0].content: np.eye(16)[0] for p in same}
    others = traffic(battery=10)
    vectors |= {
        p[0].content: np.eye(16)[1] * 3 + np.eye(16)[i + 2] * 2 for i, p in enumerate(others)
    }
    embedder = Embedder("table", lambda texts: np.stack([vectors[t] for t in texts]))
    drawn = draw_suite([*same, *others], embedder, size=12, topics=2)
    assert sum(p.messages in same for p in drawn) == 8, "by its share, though all say one thing"
    assert sum(p.messages in others for p in drawn) == 4


def test_the_same_traffic_and_seed_draw_the_same() -> None:
    prompts = traffic(battery=40, refund=40, seeds=40)
    first, again, other = (
        draw_suite(prompts, lexical(), size=24, topics=3, seed=seed) for seed in (5, 5, 6)
    )
    assert first == again != other


@pytest.mark.parametrize(("size", "topics"), [(40, 2), (6, 4)])
def test_too_few_are_an_error_that_says_so(size: int, topics: int) -> None:
    with pytest.raises(DataError, match="too few prompts"):
        draw_suite(traffic(battery=30), lexical(), size=size, topics=topics)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "trueup.toml").write_text('[embedder]\nname = "lexical"\n')
    (tmp_path / "gold.jsonl").write_text(
        json.dumps(
            {
                "id": "1",
                "prompt": TOPICS["refund"].format(0),
                "checker": {"type": "exact", "answers": ["yes"]},
            }
        )
    )
    store = Store(tmp_path / ".trueup")
    said = [Completion(text="Yes."), Completion(text="No.")]
    store.add_all(
        Interaction(prompt=p, completion=said[0], source="gateway")
        for p in traffic(battery=30, refund=30)
    )
    label = Label(
        prompt=asked(TOPICS["battery"].format(3)),
        candidates=tuple(said),
        scores=(1.0, 0.0),
        annotator="code:test",
        annotator_kind="code",
    )
    store.add(label)
    store.add(
        PreferencePair(
            prompt=label.prompt, chosen=said[0], rejected=said[1], margin=1.0, label_ids=(label.id,)
        )
    )
    store.close()
    return tmp_path


def test_the_command_writes_a_suite_without_what_was_trained_on_or_is_gold(project: Path) -> None:
    told = CliRunner().invoke(cli, ["-p", str(project), "suite", "--size", "58", "--topics", "2"])
    assert told.exit_code == 0, told.output
    drawn = read_suite(project / "heldout.jsonl")
    asked_for = {p.messages[0].content for p in drawn}
    assert len(asked_for) == 58
    assert TOPICS["battery"].format(3) not in asked_for
    assert TOPICS["refund"].format(0) not in asked_for
    assert len({p.stratum for p in drawn}) == 2


def test_a_suite_that_is_there_is_not_overwritten(project: Path) -> None:
    (project / "heldout.jsonl").write_text("mine\n")
    told = CliRunner().invoke(cli, ["-p", str(project), "suite", "--size", "20"])
    assert told.exit_code == 1 and "is there already" in str(told.exception)
    assert (project / "heldout.jsonl").read_text() == "mine\n"
