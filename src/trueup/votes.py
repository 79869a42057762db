"""What a person's answer to a review task looks like as a label: one convention for the review
page, Label Studio, files, and whoever settles votes.

    answer      scores, in the order of the task's candidates     reasons
    first       1, 0                                              what is wrong with each
    second      0, 1
    tie         0.5, 0.5
    both bad    0, 0                                              ... and "both bad" in each

A vote is withdrawn by deleting its label, which is possible until something was made from it.
Where one annotator left several votes on one task nevertheless, the newest counts. An edit is a
label of its own, the edited text over the answer it mends, without a task: it is paired at once.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from trueup.records import Completion, Label, ReviewTask

__all__ = [
    "ANSWERS",
    "BOTH_BAD",
    "EDIT",
    "REVIEW",
    "SECOND_LOOK",
    "Answer",
    "answer_of",
    "edit",
    "newest",
    "vote",
]

Answer = Literal["first", "second", "tie", "both bad"]

ANSWERS: tuple[Answer, ...] = get_args(Answer)
BOTH_BAD = "both bad"

REVIEW = "review"
"""Source of a vote from the review page."""
SECOND_LOOK = "review:second-look"
"""Source of a lead's vote on a task that others disagree on; where there is one, it decides."""
EDIT = "review:edit"
"""Source of an edit from the review page."""

_SCORES: dict[Answer, tuple[float, float]] = {
    "first": (1.0, 0.0),
    "second": (0.0, 1.0),
    "tie": (0.5, 0.5),
    "both bad": (0.0, 0.0),
}


def vote(
    task: ReviewTask,
    answer: Answer,
    annotator: str,
    *,
    reasons: Sequence[Sequence[str]] = ((), ()),
    comment: str = "",
    source: str = REVIEW,
) -> Label:
    """The label of one person's answer to a task of two candidates.

    Args:
        reasons: what the person ticked of the rubric, for each candidate.
    """
    said = [tuple(one for one in some if one != BOTH_BAD) for some in reasons]
    if answer == BOTH_BAD:
        said = [(BOTH_BAD, *some) for some in said]
    return Label(
        prompt=task.prompt,
        candidates=task.candidates,
        scores=_SCORES[answer],
        annotator=annotator,
        annotator_kind="human",
        interaction_id=task.interaction_id,
        source=source,
        reasons=tuple(said),
        task_id=task.id,
        comment=comment,
    )


def edit(task: ReviewTask, place: int, text: str, annotator: str, *, comment: str = "") -> Label:
    """The label that prefers a person's text to the candidate it was made of."""
    return Label(
        prompt=task.prompt,
        candidates=(Completion(text=text, finish_reason="stop"), task.candidates[place]),
        scores=(1.0, 0.0),
        annotator=annotator,
        annotator_kind="human",
        interaction_id=task.interaction_id,
        source=EDIT,
        comment=comment,
    )


def answer_of(label: Label) -> Answer | None:
    """What a label of two candidates answers, whoever wrote it; None for any other label."""
    if len(label.scores) != 2:
        return None
    one, other = label.scores
    if one != other:
        return "first" if one > other else "second"
    is_bad = label.reasons and all(BOTH_BAD in some for some in label.reasons)
    return "both bad" if is_bad else "tie"


def newest(labels: Iterable[Label]) -> list[Label]:
    """The votes that count among labels in the order they were written: of each annotator on each
    task the last."""
    found: dict[tuple[str, str], Label] = {}
    for label in labels:
        if label.is_vote:
            found.pop((label.task_id, label.annotator), None)
            found[label.task_id, label.annotator] = label
    return list(found.values())
