"""Stop strings: found wherever tokens end, never shown in part, whatever the bytes."""

import random
from collections.abc import Sequence

import pytest

from trueup.models.pieces import Piece, PieceStream
from trueup.models.stopping import GrowingText, before_stop
from trueup.records import Completion

STOPS = [("stop",), ("aab", "b"), ("ö",), ("🙂🙂",), ("abab", "ba"), ("\ufffd",)]


def decode(token_ids: Sequence[int]) -> str:
    """A tokenizer of single bytes."""
    return bytes(token_ids).decode(errors="replace")


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two", ("two",), "one "),
        ("one two", ("two", "e t"), "on"),
        ("one two", ("three",), "one two"),
        ("one", (), "one"),
        ("two two", ("two",), ""),
    ],
)
def test_a_text_ends_where_the_first_stop_string_begins(text, stop, expected) -> None:
    assert before_stop(text, stop) == expected


def test_a_stop_string_over_several_tokens_is_found_at_its_last() -> None:
    text = GrowingText(decode, ["d🙂e"])
    seen = []
    for token in b"abcd\xf0\x9f\x99\x82ef":
        text.push(token)
        seen.append((text.is_stopped, text.text[: text.num_safe]))
    shown = ["a", "ab", "abc", "abc", "abc", "abc", "abc", "abc", "abc", "abc"]
    assert [one for _, one in seen] == shown
    assert [found for found, _ in seen] == [False] * 8 + [True] * 2


def test_a_beginning_is_held_back_only_while_it_is_one() -> None:
    text = GrowingText(decode, ["aab"])
    shown = []
    for token in b"aaaaxaab":
        text.push(token)
        shown.append(text.num_safe)
    assert shown == [0, 0, 1, 2, 5, 5, 5, 5]


def test_a_stop_string_beside_the_beginning_of_a_character_is_found_at_once() -> None:
    """One token may hold the end of the string and half a character."""
    text = GrowingText(lambda ids: b"".join(PARTS[i] for i in ids).decode(errors="replace"), ["X!"])
    text.push(0)
    assert (text.num_safe, text.is_stopped) == (1, False)
    text.push(1)
    assert (text.num_safe, text.is_stopped) == (1, True)


PARTS = [b"aX", b"!\xf0\x9f"]


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("seed", range(40))
def test_pieces_join_to_the_text_before_the_stop_string(stop: tuple[str, ...], seed: int) -> None:
    """Random bytes of a few letters, against decoding everything at every token."""
    dice = random.Random(seed)
    alphabet = b"stopaabb" + "ö🙂🙂".encode() + b"\xff"
    tokens = dice.choices(alphabet, k=60) + list(dice.choice(["stop", "ö", "🙂🙂", "x"]).encode())
    heard: list[Piece] = []
    stream = PieceStream(decode, heard.append, 0, stop)
    drawn: list[int] = []
    for token in tokens:
        drawn.append(token)
        if stream.push(token, -1.0):
            break
    whole = decode(drawn)
    text = before_stop(whole, stop)
    if "\ufffd" not in stop:  # what is half a character and what is none shows later
        assert (len(text) < len(whole)) == stream.push(ord("\n"), -1.0)
        assert not any(one in decode(drawn[:-1]).rstrip("\ufffd") for one in stop)
        drawn.append(ord("\n"))
        text = before_stop(decode(drawn), stop)
    for piece in heard:
        assert piece.text and text.startswith("".join(p.text for p in heard))
    stream.finish(Completion(text=text, finish_reason="stop"))
    assert "".join(p.text for p in heard) == text
    assert [t for p in heard for t in p.token_ids] == drawn
