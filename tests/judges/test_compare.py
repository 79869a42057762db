"""Two answers compared: a judge that depends on the order is asked in both, and no other twice."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from trueup.errors import ConfigError
from trueup.judges import compare, resolve
from trueup.judges.base import Ranking
from trueup.records import Completion, Message, Messages

PROMPT: Messages = (Message(role="user", content="How long does the battery last?"),)
OURS, THEIRS = Completion(text="Nine days."), Completion(text="Well, it depends.")
asked: list[str] = []


class Judge:
    """A team's own: it scores whatever stands in each place as it was told."""

    id, kind = "code:own/1", "code"

    def __init__(self, score: Callable[[int, str], float]) -> None:
        self.score = score
        self.asked: list[tuple[str, ...]] = []

    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        self.asked.append(tuple(c.text for c in candidates))
        scores = tuple(self.score(place, c.text) for place, c in enumerate(candidates))
        return Ranking(scores, ((),) * len(scores))


class SymmetricJudge(Judge):
    is_symmetric = True


def short(_: int, text: str) -> float:
    return -len(text)


def first(place: int, _: str) -> float:
    return -place


def counted(_: Messages, text: str) -> float:
    asked.append(text)
    return -len(text)


def test_a_judge_that_says_nothing_of_symmetry_is_asked_in_both_orders() -> None:
    judge = Judge(short)
    assert compare(judge, PROMPT, OURS, THEIRS) == "win"
    assert judge.asked == [(OURS.text, THEIRS.text), (THEIRS.text, OURS.text)]


def test_a_judge_that_denies_symmetry_is_asked_in_both_orders_too() -> None:
    judge = Judge(short)
    judge.is_symmetric = False  # type: ignore[attr-defined]
    compare(judge, PROMPT, OURS, THEIRS)
    assert len(judge.asked) == 2


def test_a_symmetric_judge_is_asked_once() -> None:
    judge = SymmetricJudge(short)
    assert compare(judge, PROMPT, OURS, THEIRS) == "win"
    assert judge.asked == [(OURS.text, THEIRS.text)]


@pytest.mark.parametrize("kind", [Judge, SymmetricJudge])
def test_the_outcome_is_ours_and_turns_round_with_the_answers(kind: type[Judge]) -> None:
    assert compare(kind(short), PROMPT, OURS, THEIRS) == "win"
    assert compare(kind(short), PROMPT, THEIRS, OURS) == "loss"
    assert compare(kind(short), PROMPT, OURS, OURS) == "tie"


def test_a_judge_that_likes_the_first_place_wins_nothing_by_it() -> None:
    assert compare(Judge(first), PROMPT, OURS, THEIRS) == "tie"
    assert compare(Judge(first), PROMPT, THEIRS, OURS) == "tie"


def test_a_lead_in_one_order_and_none_in_the_other_is_a_tie() -> None:
    judge = Judge(lambda place, text: 1.0 if (place, text) == (0, OURS.text) else 0.0)
    assert compare(judge, PROMPT, OURS, THEIRS) == "tie"


def test_a_scoring_function_is_asked_about_each_answer_once() -> None:
    asked.clear()
    judge = resolve(f"{__name__}:counted")
    assert compare(judge, PROMPT, OURS, THEIRS) == "win"
    assert asked == [OURS.text, THEIRS.text]


@pytest.mark.parametrize("name", ["house-style", "llm", f"{__name__}:counted"])
def test_the_judges_that_come_with_the_package_say_that_they_are_symmetric(name: str) -> None:
    assert resolve(name).is_symmetric


class NeedsMore(SymmetricJudge):
    """One that cannot be made without being told something."""


class Nameless:
    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        return Ranking((), ())


CONSTANT = 3.0


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (":f", "could not be imported.*ValueError"),
        ("no_such_module:f", "could not be imported"),
        (f"{__name__}:no_such_function", "could not be imported"),
        (f"{__name__}:NeedsMore", "could not be imported.*TypeError"),
        (f"{__name__}:Nameless", "no judge.*id, kind and rank"),
        (f"{__name__}:CONSTANT", "no judge.*float"),
    ],
)
def test_what_is_no_judge_is_refused_before_it_is_asked(name: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        resolve(name)


@pytest.mark.parametrize(
    "source", ["def f(:", "raise ValueError('not today')", "import sys; no_such_name"]
)
def test_a_module_that_cannot_be_run_is_refused_in_words(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"broken_{abs(hash(source))}"
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=f"could not be imported.*{module}"):
        resolve(f"{module}:f")
