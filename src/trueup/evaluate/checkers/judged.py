"""Graded by a judge, where no program can tell right from wrong.

What passes must beat a text of the item's own, in both orders, or reach a score. A tie is a no: a
judge that likes whatever stands first ties with everything and so passes nothing. The judge is
never the one that labelled; `evaluate.gold_judge` holds that.
"""

from typing import TYPE_CHECKING, Any

from trueup.errors import UnreadableVerdict
from trueup.evaluate.checkers.outcome import Outcome, verdict
from trueup.records import Completion, Messages

if TYPE_CHECKING:
    from trueup.judges import Judge

__all__ = ["check_judge"]


def check_judge(
    checker: dict[str, Any], text: str, prompt: Messages, judge: "Judge | None"
) -> Outcome:
    """The judge prefers the answer to `beats`, and scores it `min_score` or more; undecided where
    there is no judge, or its verdict cannot be read."""
    if judge is None:
        return Outcome(None, "not judged: there is no judge")
    answer = Completion(text=text)
    try:
        if not _beats(checker, prompt, answer, judge):
            return Outcome(False, f"does not beat {checker['beats'][:60]!r} by {judge.id}")
        score = judge.rank(prompt, [answer]).scores[0] if "min_score" in checker else None
    except UnreadableVerdict as error:
        return Outcome(None, f"not judged: {error}")
    if score is None:
        return verdict(True, "")
    return verdict(score >= checker["min_score"], f"{judge.id} scores it {score:g}")


def _beats(checker: dict[str, Any], prompt: Messages, answer: Completion, judge: "Judge") -> bool:
    """True, too, where nothing is to be beaten."""
    from trueup.judges import compare

    if "beats" not in checker:
        return True
    return compare(judge, prompt, answer, Completion(text=checker["beats"])) == "win"
