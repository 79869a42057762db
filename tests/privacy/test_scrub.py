"""Personal data leaves texts, ordinary things stay, and a record is whole again afterwards."""

import re
import time
from importlib.util import find_spec

import pytest

from trueup.errors import MissingDependency
from trueup.privacy import PrivacyConfig, Scrubber
from trueup.privacy.patterns import is_card, is_iban
from trueup.privacy.scrub import scrub_text
from trueup.records import (
    Completion,
    Feedback,
    Flag,
    Interaction,
    Label,
    Message,
    ReviewTask,
    Sampling,
    ToolCall,
)
from trueup.store import Store

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\nabc+/=\n-----END RSA PRIVATE KEY-----"

# --- a labelled set: «…» marks what must go -------------------------------------------------------

PERSONAL = [
    ("EMAIL", "Write to «ann.o'neil+x@mail.example.co.uk», please.".replace("o'neil", "oneil")),
    ("EMAIL", "From: Ann <«ann@example.com»>"),
    ("EMAIL", "mailto:«a_b-c.d%e@sub.domain.example» (home)"),
    ("EMAIL", "«jürgen@example.de» hat geschrieben"),
    ("EMAIL", "kontakt «info@firma.museum»."),
    ("PHONE", "Call «+49 171 1234567» now"),
    ("PHONE", "call «+1 (415) 555-2671»."),
    ("PHONE", "my number: «+442071838750»"),
    ("PHONE", "«+33 1 42 68 53 00» or later"),
    ("PHONE", "ring «(415) 555-2671» after six"),
    ("PHONE", "ring «415-555-2671»"),
    ("PHONE", "ring «1-800-555-2671», extension 12"),
    ("PHONE", "ring «415.555.2671»!"),
    ("CARD", "card «4111 1111 1111 1111» exp 12/25"),
    ("CARD", "card «4111111111111111», thanks"),
    ("CARD", "amex «3782-822463-10005»"),
    ("CARD", "mastercard «5555 5555 5555 4444»."),
    ("CARD", "discover «6011111111111117» please"),
    ("CARD", "«4111 1111 1111 1111» 123"),
    ("IBAN", "pay to «DE89 3704 0044 0532 0130 00» today"),
    ("IBAN", "pay to «DE89370400440532013000»."),
    ("IBAN", "«GB29 NWBK 6016 1331 9268 19» PLEASE"),
    ("IBAN", "FR: «FR14 2004 1010 0505 0001 3M02 606»"),
    ("IBAN", "BE «BE68 5390 0754 7034» WITH CARE"),
    ("IBAN", "«MT84 MALT 0110 0001 2345 MTLC AST0 01S»!"),
    ("IBAN", "«NL91ABNA0417164300»"),
    ("IBAN", "kz «KZ86 125K ZT50 0410 0100»"),
    ("SSN", "my SSN is «078-05-1120»"),
    ("SSN", "(«123-45-6789»)"),
    ("IP", "from «203.0.113.7» at noon"),
    ("IP", "host «8.8.8.8»:53"),
    ("IP", "at «2001:db8:85a3::8a2e:370:7334» yesterday"),
    ("IP", "link «fe80::1ff:fe23:4567:890a»"),
    ("KEY", "OPENAI_API_KEY=«sk-proj-abcdefghijklmnopqrstuvwx1234567890»"),
    ("KEY", "key «AKIAIOSFODNN7EXAMPLE» leaked"),
    ("KEY", "token «ghp_abcdefghijklmnopqrstuvwxyz0123456789»"),
    ("KEY", f"cookie «{JWT}»;"),
    ("KEY", "Authorization: Bearer «abcdef0123456789abcdef0123456789»"),
    ("KEY", "«xoxb-123456789012-abcdefABCDEF»"),
    ("KEY", "key=«AIzaSyA-1234567890abcdefghijklmnopqrstuv»"),
    ("PRIVATE_KEY", f"«{PEM}»\nthat was it"),
    ("CREDENTIALS", "git clone https://«ann:hunter2»@git.example/x.git"),
    ("CREDENTIALS", "postgres://«app:s3cr%40et»@db:5432/x"),
]

ORDINARY = [
    "On 2026-11-23 at 18:45:03, and on 23/11/2026, 11-23-2026 and 23.11.2026.",
    "2024-01-15T10:30:00.000+00:00 [INFO] took 1234.5678 ms",
    "It costs $1,234,567.89, or 1.234.567,89 EUR, or 12 345 678 yen.",
    "pi is 3.14159265358979323846 and e is 2.718281828459045",
    "for i in range(1000000): x[i] += 12345678901234567890",
    "Version 1.2.3.4, v10.20.30.40, release 5.6.7.8 and 2.0.1",
    "listen on 127.0.0.1:8080 or 0.0.0.0; ::1 is the same",
    "std::vector<int> a::b::c; Foo::Bar; dead::beef in Rust",
    "MAC 00:1B:44:11:3A:B7 and the time 12:30:45",
    "uuid 550e8400-e29b-41d4-a716-446655440000",
    "sha 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "unix 1700000000, in nanoseconds 1700000000000000000",
    "order 4111111111111112 (no card: the check digit is wrong)",
    "ISBN 978-3-16-148410-0, EAN 4006381333931",
    "DE89 3704 0044 0532 0130 01 has a wrong check",
    "@decorator\ndef f(a, b): return a @ b  # numpy@home",
    "see https://example.com:8080/a@b?c=d and ssh://git@host/x",
    "a sk-like word, a task-force, ask-me-anything-about-all-things",
    "score 100-200-3000, pages 415-416, call 911, 555-2671",
    "x+12345678 == y, C++17, 1e+10, +5 points, +1 000 words",
    "123-45-678 and 000-12-3456 and 666-12-3456 and 900-12-3456",
    "twelve o'clock; 50 % of 1000; 3 x 4 = 12; 10-20-30",
    "the bearer of this letter and a Bearer of good news everywhere",
    "192.168 is half an address, 1.2.3 a version, 300.1.2.3 neither",
    "<EMAIL_1> was here before",
    "phone-number-format: 3-3-4",
    "matrix [[2000, 3000, 4000, 5000], [6011, 1111, 1111, 1111]]",
]


def marked(text: str) -> tuple[str, list[str]]:
    return re.sub("[«»]", "", text), re.findall("«(.*?)»", text, re.DOTALL)


@pytest.mark.parametrize(("kind", "text"), PERSONAL, ids=lambda value: value[:40])
def test_what_is_personal_goes_and_the_rest_of_the_text_stays(kind: str, text: str) -> None:
    plain, hidden = marked(text)
    found = scrub_text(plain)
    assert found == re.sub("«.*?»", f"<{kind}_1>", text, flags=re.DOTALL)
    assert not any(one in found for one in hidden)
    assert scrub_text(found) == found, "scrubbing again changes nothing"


@pytest.mark.parametrize("text", ORDINARY, ids=lambda value: value[:40])
def test_what_is_ordinary_stays(text: str) -> None:
    assert scrub_text(text) == text


def test_precision_and_recall_on_the_labelled_set_in_one_long_text() -> None:
    """All side by side, so that nothing leans on where a text begins or ends."""
    whole = " \n".join(
        [t for pair in zip(PERSONAL, ORDINARY, strict=False) for t in (pair[0][1], pair[1])]
    )
    plain, hidden = marked(whole)
    found = scrub_text(plain)
    num_found = len(re.findall(r"<[A-Z_]+_\d+>", found)) - 1  # one stood there before
    missed = [one for one in hidden if one in found]
    assert missed == []  # recall 1
    assert num_found == len(hidden)  # and precision 1


def test_the_same_value_is_the_same_placeholder_in_every_writing() -> None:
    text = "a@x.example, b@x.example and A@X.example; +1 415 555 2671 = +14155552671"
    assert scrub_text(text) == "<EMAIL_1>, <EMAIL_2> and <EMAIL_1>; <PHONE_1> = <PHONE_1>"


# --- the checks, against their definitions --------------------------------------------------------


def luhn_by_table(number: str) -> bool:
    table = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
    total = sum(int(c) if at % 2 == 0 else table[int(c)] for at, c in enumerate(reversed(number)))
    return total % 10 == 0


def test_luhn_is_that_of_the_table() -> None:
    for last in range(10):
        for middle in range(50):
            number = f"41111111{middle:07d}{last}"
            assert is_card(number) == luhn_by_table(number)


def test_any_digit_of_an_iban_that_is_wrong_shows() -> None:
    good = "DE89370400440532013000"
    assert is_iban(good)
    for at in range(2, len(good)):
        for digit in "0123456789":
            if digit != good[at]:
                assert not is_iban(good[:at] + digit + good[at + 1 :])


# --- records --------------------------------------------------------------------------------------

ANN = "ann@example.com"


def interaction(prompt: str = "Hi", answer: str = "Hello", **fields) -> Interaction:
    completion = Completion(
        text=answer, token_ids=(1, 2), logprobs=(-0.5, -0.1), after="digest", weights="w"
    )
    return Interaction(
        prompt=(Message(role="user", content=prompt),), completion=completion, source="x", **fields
    )


def scrub(record):
    return Scrubber(PrivacyConfig())(record)


def test_a_record_without_finds_is_the_same_object() -> None:
    for one in (
        interaction(),
        Feedback(interaction_id="i", comment="fine"),
        Flag(interaction_id="i", flagger="f", score=0.1, raised=False),
    ):
        assert scrub(one) is one


def test_an_interaction_is_scrubbed_in_every_text_with_one_numbering() -> None:
    asked = interaction(
        f"I am {ANN}",
        f"Hello {ANN}, or b@example.com?",
        tools=({"name": "mail", "description": f"as {ANN}", "n": [1, {"x": ANN}]},),
    )
    call = ToolCall(name="mail", arguments=f'{{"to": "{ANN}"}}')
    asked = asked.model_copy(
        update={"completion": asked.completion.model_copy(update={"tool_calls": (call,)})}
    )
    found = scrub(asked)
    assert ANN not in found.model_dump_json() and "b@example.com" not in found.model_dump_json()
    assert found.prompt[0].content == "I am <EMAIL_1>"
    assert found.completion.text == "Hello <EMAIL_1>, or <EMAIL_2>?"
    assert found.completion.tool_calls[0].arguments == '{"to": "<EMAIL_1>"}'
    assert found.tools[0]["n"][1]["x"] == "<EMAIL_1>"
    assert found.id == found.expected_id() != asked.id
    assert Interaction.model_validate_json(found.model_dump_json()) == found
    assert scrub(found) is found


@pytest.mark.parametrize(("prompt", "answer"), [(ANN, "ok"), ("who?", ANN)])
def test_tokens_and_log_probs_go_with_the_text_they_belong_to(prompt: str, answer: str) -> None:
    found = scrub(interaction(prompt, answer)).completion
    assert (found.token_ids, found.logprobs, found.after) == (None, None, None)
    assert found.weights == "w"


def test_feedback_labels_and_tasks_are_scrubbed() -> None:
    said = scrub(Feedback(interaction_id="i", rating=1, edit=f"to {ANN}", comment=f"by {ANN}"))
    assert (said.edit, said.comment, said.rating) == ("to <EMAIL_1>", "by <EMAIL_1>", 1)
    fields = {
        "prompt": (Message(role="user", content=ANN),),
        "candidates": (Completion(text=f"{ANN}!"), Completion(text="no", token_ids=(1,))),
    }
    label = Label(**fields, scores=(1, 0), annotator="a", annotator_kind="human", comment=ANN)
    for found in (scrub(label), scrub(ReviewTask(**fields))):
        assert ANN not in found.model_dump_json()
        assert found.candidates[0].text == "<EMAIL_1>!"
        assert found.candidates[1].token_ids is None, "it was drawn after another prompt"
        assert found.id == found.expected_id()


# every field of a record that a client may fill with what it likes
EVERYWHERE = {
    "role": lambda: {"prompt": (Message(role=f"friend of {ANN}", content="Hi"),)},
    "content": lambda: {"prompt": (Message(role="system", content=f"The user is {ANN}."),)},
    "call of a turn": lambda: {
        "prompt": (Message(role="assistant", content="", tool_calls=(CALL,)),)
    },
    "id of a tool's answer": lambda: {
        "prompt": (Message(role="tool", content="ok", tool_call_id=f"call {ANN}"),)
    },
    "answer": lambda: {"completion": Completion(text=f"Hello {ANN}")},
    "call of the answer": lambda: {"completion": Completion(text="", tool_calls=(CALL,))},
    "stop": lambda: {
        "completion": Completion(text="Hi", sampling=Sampling(stop=("\n", f"{ANN}:")))
    },
    "names in tools": lambda: {"tools": ({"parameters": {"properties": {f"mail to {ANN}": {}}}},)},
    "texts in tools": lambda: {"tools": ({"description": f"As {ANN}."},)},
    "model": lambda: {"model": f"tuned for {ANN}"},
    "request id": lambda: {"request_id": f"of {ANN}"},
    "error": lambda: {"error": f"no such user {ANN}"},
}
CALL = ToolCall(id=f"id {ANN}", name=f"name {ANN}", arguments=f"arguments {ANN}")


@pytest.mark.parametrize("field", EVERYWHERE)
def test_no_field_of_an_interaction_lets_personal_data_through(field: str) -> None:
    plain = {"prompt": (), "completion": Completion(text="Hi"), "source": "x"}
    one = Interaction(**{**plain, **EVERYWHERE[field]()})
    assert ANN in one.model_dump_json()
    made = scrub(one)
    assert ANN not in made.model_dump_json() and "<EMAIL_1>" in made.model_dump_json()
    assert made.id == made.expected_id() and scrub(made) is made


def test_a_tools_answer_still_names_the_call_it_answers() -> None:
    others = ToolCall(id="id b@example.com", name="f", arguments="{}")
    turns = (
        Message(role="assistant", content="", tool_calls=(CALL, others)),
        Message(role="tool", content="1", tool_call_id=others.id),
        Message(role="tool", content="2", tool_call_id=CALL.id),
    )
    one = Interaction(prompt=turns, completion=Completion(text="Hi"), source="x")
    made = scrub(one).prompt
    assert [one.tool_call_id for one in made[1:]] == [
        made[0].tool_calls[1].id,
        made[0].tool_calls[0].id,
    ]
    assert len({one.id for one in made[0].tool_calls}) == 2


def test_stop_strings_that_change_leave_the_tokens_of_the_answer() -> None:
    """They say what was to end it; the answer is drawn after the same prompt."""
    one = interaction()
    asked = one.completion.model_copy(update={"sampling": Sampling(stop=(ANN,))})
    made = scrub(one.model_copy(update={"completion": asked})).completion
    assert made.sampling and made.sampling.stop == ("<EMAIL_1>",)
    assert made.token_ids == (1, 2) and made.after == "digest"


def test_request_ids_stay_apart_and_can_be_found_again(tmp_path) -> None:
    store = Store(tmp_path)
    hidden = Scrubber(PrivacyConfig(), store)
    ids = [f"of {ANN}", "of b@example.com", "chatcmpl-1"]
    kept = [hidden(interaction(request_id=one)).request_id for one in ids]
    assert kept == [hidden.request_id(one) for one in ids]
    assert len(set(kept)) == 3 and kept[2] == "chatcmpl-1" and "@" not in "".join(kept)
    assert kept[0].startswith("request_") and hidden.request_id(kept[0]) == kept[0]
    store.close()


def test_reasons_of_labels_are_scrubbed() -> None:
    label = Label(
        prompt=(), candidates=(Completion(text="a"), Completion(text="b")), scores=(1, 0),
        annotator="bob", annotator_kind="human", reasons=(("fine",), ("rude", f"names {ANN}")),
    )  # fmt: skip
    assert scrub(label).reasons == (("fine",), ("rude", "names <EMAIL_1>"))


def test_many_finds_in_one_text_take_no_longer_each() -> None:
    started = time.process_time()
    for text in (" ".join(f"user{i}@mail.example" for i in range(8000)), "-eyJAAAAAAAA" * 30_000):
        scrub_text(text)
    assert time.process_time() - started < 5  # quadratic, each took ten and more


def test_off_is_off() -> None:
    one = interaction(ANN)
    assert Scrubber(PrivacyConfig(scrubber="off"))(one) is one


@pytest.mark.skipif(bool(find_spec("presidio_analyzer")), reason="Presidio is installed here")
def test_presidio_that_is_not_there_says_how_to_get_it() -> None:
    with pytest.raises(MissingDependency, match=r"trueup\[presidio\]"):
        Scrubber(PrivacyConfig(scrubber="presidio"))


# --- speed and hostile texts ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "piece",
    ["a", "1", "1 ", "@", "a@", "a.", "+1", "sk-", "eyJ", "eyJa.", "AB12", "://", "a://b:", ":",
     "1.", "-----BEGIN PRIVATE KEY-----", "4-", "Bearer ", "\0", "é@", "2001:"],
)  # fmt: skip
def test_no_text_takes_longer_than_its_length(piece: str) -> None:
    """A megabyte of what each pattern likes best; quadratic time would be minutes."""
    text = (piece * (1_000_000 // len(piece)))[:1_000_000]
    began = time.perf_counter()
    scrub_text(text)
    assert time.perf_counter() - began < 10
