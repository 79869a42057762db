"""When is a logged answer weak? The one rule by which labels teach and measure flaggers.

1. A label that ranks the logged answer among others: weak if its score is under the mean of the
   others', fine otherwise. In a pair that is "it lost"; a tie is no loss.
2. A label of the logged answer alone: weak if its score is below zero.
3. Without a label: a thumb down is weak, a thumb up is fine.

People come before models and code, and of one kind the newest speaks. Single votes that wait to be
settled do not count, nor does an edit, by a user or a reviewer, which says that the answer can be
bettered and always wins. Answers that something broke off are neither.
"""

from trueup.records import Feedback, Interaction, Label
from trueup.store import Store

__all__ = ["truths", "weak_by"]

EDITS = ("feedback:edit", "review:edit")
"""Annotator of users' edits, source of reviewers'."""
BOTH_BAD = "both bad"
NOTHING = {"withdrawn", "unsettled", "gold question"}
"""Reasons on people's labels that say nothing of the answers: `trueup.label`, `trueup.review`."""


def truths(store: Store, *, thumbs: bool = True) -> dict[str, bool]:
    """By interaction: True where its answer is weak. Those that nobody spoke of are left out.

    Args:
        thumbs: count them where there is no label.
    """
    said: dict[str, tuple[int, str, bool]] = {}
    labels = [one for one in store.each(Label) if one.interaction_id and not one.is_vote]
    replaced = {one.replaces for one in labels if one.replaces}
    labels = [one for one in labels if one.id not in replaced]
    answers = {
        one.id: one.completion.text
        for one in store.get_all(Interaction, {str(label.interaction_id) for label in labels})
        if not one.error
    }
    for label in labels:
        text = answers.get(str(label.interaction_id))
        weak = None if text is None else weak_by(label, text)
        if weak is not None:
            rank = (1 if label.annotator_kind == "human" else 0, label.created_at, weak)
            key = str(label.interaction_id)
            said[key] = max(said.get(key, rank), rank, key=lambda one: one[:2])
    given: dict[str, tuple[str, bool]] = {}
    for one in store.each(Feedback) if thumbs else ():
        if one.rating is not None:
            told = (one.created_at, one.rating == -1)
            before = given.get(one.interaction_id, told)
            given[one.interaction_id] = told if told[0] >= before[0] else before
    found = {key: weak for key, (_, weak) in given.items() if key not in said}
    whole = {one.id for one in store.get_all(Interaction, found) if not one.error}
    found = {key: weak for key, weak in found.items() if key in whole}
    return found | {key: weak for key, (_, _, weak) in said.items()}


def weak_by(label: Label, answer: str) -> bool | None:
    """What a label says of the logged answer; None where it says nothing of it."""
    is_edit = label.annotator in EDITS or label.source in EDITS
    own = [s for c, s in zip(label.candidates, label.scores, strict=True) if c.text == answer]
    others = [s for c, s in zip(label.candidates, label.scores, strict=True) if c.text != answer]
    if not own or (label.annotator_kind == "human" and is_edit):
        return None
    reasons = {reason for some in label.reasons for reason in some}
    if label.annotator_kind == "human" and reasons & NOTHING:
        return None
    if len(label.candidates) == 1:
        return own[0] < 0
    if label.annotator_kind == "human" and BOTH_BAD in reasons:
        return True
    return own[0] < sum(others) / len(others) if others else None
