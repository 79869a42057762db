"""The error tree: drawn as it is, four parts in every message, and whole after pickling."""

import builtins
import pickle
import re

import pytest

from trueup import errors
from trueup.errors import (
    ConfigError,
    DataError,
    IdentityError,
    RecordNotFound,
    StorageError,
    TrueupError,
)

CLASSES = [getattr(errors, name) for name in errors.__all__]


def drawn() -> dict[str, tuple[str, str | None]]:
    """Each class in the docstring's tree: the class above it, and the built-in in brackets."""
    found: dict[str, tuple[str, str | None]] = {}
    above = {0: "TrueupError"}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([│ ]*)[├└]── (\w+)(?: \((\w+)\))?  ", line)
        if match:
            depth = len(match[1]) // 4
            found[match[2]] = above[depth], match[3]
            above[depth + 1] = match[2]
    return found


def test_the_docstring_draws_every_class_and_no_other() -> None:
    assert {"TrueupError", *drawn()} == set(errors.__all__)


@pytest.mark.parametrize("name", drawn())
def test_a_class_has_exactly_the_bases_that_are_drawn(name: str) -> None:
    parent, builtin = drawn()[name]
    wanted = [getattr(errors, parent)] + ([getattr(builtins, builtin)] if builtin else [])
    assert list(getattr(errors, name).__bases__) == wanted


def test_every_error_is_a_trueup_error_and_a_standard_one() -> None:
    for kind in CLASSES:
        standard = [b for b in kind.__mro__ if b.__module__ == "builtins"]
        assert issubclass(kind, TrueupError)
        assert kind is TrueupError or standard[0] not in (Exception, BaseException), kind


def test_all_is_sorted_and_complete() -> None:
    defined = {n for n, v in vars(errors).items() if isinstance(v, type)}
    assert errors.__all__ == sorted(defined)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_message_says_what_was_wrong_what_came_what_was_expected_and_what_to_do(
    kind: type[TrueupError],
) -> None:
    error = kind("beta is wrong", got="high", expected="a number above 0", next="set train.beta")
    assert str(error) == (
        "beta is wrong. Got 'high'. Expected a number above 0. Next: set train.beta."
    )


def test_a_part_with_nothing_to_say_is_left_out_and_no_full_stop_is_doubled() -> None:
    assert str(DataError("It broke.")) == "It broke."
    assert str(DataError("It broke", next="mend it.")) == "It broke. Next: mend it."


@pytest.mark.parametrize("got", [0, False, "", [], float("nan")])
def test_a_value_that_counts_as_false_is_quoted_all_the_same(got: object) -> None:
    assert f"Got {got!r}." in str(DataError("It broke", got=got))


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_survives_pickling_with_its_parts(kind: type[TrueupError]) -> None:
    before = kind("no such record", got={"id": 3}, expected="an id", next="list them")
    after = pickle.loads(pickle.dumps(before))
    assert type(after) is kind
    assert str(after) == str(before)
    assert (after.what, after.got, after.expected, after.next) == (
        "no such record",
        {"id": 3},
        "an id",
        "list them",
    )


def test_callers_may_catch_the_standard_exception() -> None:
    for kind, standard in (
        (ConfigError, ValueError),
        (RecordNotFound, LookupError),
        (StorageError, OSError),
        (IdentityError, ValueError),
    ):
        with pytest.raises(standard, match="It broke"):
            raise kind("It broke")
