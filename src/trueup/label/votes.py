"""A person's vote on a task, as a label: the one place that says how choices become scores.

| Choice | Scores, in the task's order of candidates | Reasons |
|---|---|---|
| `first` | (1, 0) | |
| `second` | (0, 1) | |
| `tie` | (0.5, 0.5) | |
| `both bad` | (0, 0) | `both bad` for each |
| `withdrawn` | (0, 0) | `withdrawn` for each |

The order is the task's, not that in which the person saw the answers: whoever shows a task asks
`is_swapped` for the order to show, and `mirrored` to turn what was said back. A vote that changes
another names it in `replaces`; an annotator's newest vote on a task counts, and `withdrawn` is no
vote at all. An answer that a person wrote is no vote but a label of its own, without `task_id`.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

from trueup.privacy import Scrub
from trueup.records import Label, ReviewTask
from trueup.store import Store

__all__ = [
    "CHOICES",
    "EDIT",
    "REVIEW",
    "SECOND_LOOK",
    "Choice",
    "VoteBook",
    "choice_of",
    "choice_of_scores",
    "gold_choice",
    "is_swapped",
    "mirrored",
    "vote",
]

Choice = Literal["first", "second", "tie", "both bad", "withdrawn"]
CHOICES: tuple[Choice, ...] = ("first", "second", "tie", "both bad")
"""What a vote may say, in the order of the keys."""

REVIEW = "review"
"""Source of a vote from the review page."""

SECOND_LOOK = "review:second-look"
"""Source of a lead's vote on a task that others disagree on: where there is one, it decides."""

EDIT = "review:edit"
"""Source of an edit: a label without a task, the edited text over the answer it mends."""

SCORES: dict[Choice, tuple[float, float]] = {
    "first": (1.0, 0.0),
    "second": (0.0, 1.0),
    "tie": (0.5, 0.5),
    "both bad": (0.0, 0.0),
    "withdrawn": (0.0, 0.0),
}
MIRROR: dict[Choice, Choice] = {"first": "second", "second": "first"}


def vote(
    task: ReviewTask,
    choice: Choice,
    annotator: str,
    *,
    source: str = REVIEW,
    reasons: Sequence[Sequence[str]] = ((), ()),
    comment: str = "",
    replaces: str = "",
) -> Label:
    """The label for what somebody said of the two candidates of a task.

    Args:
        reasons: what they found wrong with each candidate.
        source: where it was said: `review`, `file:NAME`, `label-studio:ANNOTATION`.
        replaces: id of the annotator's own vote that this one changes, if any. Without it, going
            back to an earlier choice would be that earlier label, and not a new one.
    """
    if choice in ("both bad", "withdrawn"):
        reasons = [(choice, *some) for some in reasons]
    return Label(
        prompt=task.prompt,
        candidates=task.candidates,
        scores=SCORES[choice],
        reasons=tuple(map(tuple, reasons)) if any(reasons) else (),
        annotator=annotator,
        annotator_kind="human",
        interaction_id=task.interaction_id,
        source=source,
        task_id=task.id,
        comment=comment,
        replaces=replaces,
    )


def choice_of(label: Label) -> Choice | None:
    """What a label of two candidates says; None where there are not two."""
    if len(label.scores) != 2:
        return None
    said = {reason for reasons in label.reasons for reason in reasons}
    if "withdrawn" in said:
        return "withdrawn"
    first, second = label.scores
    if first == second:
        return "both bad" if "both bad" in said else "tie"
    return "first" if first > second else "second"


def choice_of_scores(scores: tuple[float, ...]) -> Choice | None:
    """What two scores alone say: equal and at most 0 is both bad. None where there are not two."""
    if len(scores) != 2:
        return None
    first, second = scores
    if first == second:
        return "tie" if first > 0 else "both bad"
    return "first" if first > second else "second"


def gold_choice(task: ReviewTask) -> Choice | None:
    """The right answer to a gold question; None for any other task."""
    return None if task.gold is None else choice_of_scores(task.gold)


def mirrored(choice: Choice) -> Choice:
    """The same choice with the candidates in the other order."""
    return MIRROR.get(choice, choice)


def is_swapped(task_id: str, viewer: str) -> bool:
    """True where this viewer sees the second candidate first: a coin thrown once for each task and
    viewer, so that a page shows the same order whenever it is opened."""
    return hashlib.sha256(f"{viewer}\n{task_id}".encode("utf-8", "surrogatepass")).digest()[0] < 128


class VoteBook:
    """Every vote in a store, and which of them count.

    Made once for many look-ups; `cast` keeps it up to date with what it gives back.
    """

    def __init__(self, store: Store, task_id: str = "", *, scrub: Scrub | None = None) -> None:
        """Of all tasks, or of this one alone.

        Args:
            scrub: what takes out of a vote what must not be written.
        """
        self._scrub = scrub
        self._votes: dict[tuple[str, str], list[Label]] = {}
        some = {"task_id": task_id} if task_id else {"annotator_kind": "human"}
        for one in store.each(Label, **some):
            if one.is_vote and one.annotator_kind == "human":
                self._votes.setdefault((one.task_id, one.annotator), []).append(one)

    def newest(self, task_id: str, annotator: str) -> Label | None:
        """The annotator's vote that counts, withdrawn or not."""
        return _newest(self._votes.get((task_id, annotator), ()))

    def standing(self) -> dict[str, dict[str, Label]]:
        """The votes that count, by task and annotator; withdrawn ones are left out."""
        found: dict[str, dict[str, Label]] = {}
        for (task_id, annotator), votes in self._votes.items():
            newest = _newest(votes)
            if newest and choice_of(newest) not in (None, "withdrawn"):
                found.setdefault(task_id, {})[annotator] = newest
        return found

    def from_source(self, begins: str) -> list[Label]:
        """The newest vote of every source that begins so, withdrawn or not, by task, annotator and
        source."""
        newest: dict[tuple[str, str, str], Label] = {}
        for key, votes in self._votes.items():
            for one in votes:
                if one.source.startswith(begins):
                    newest[*key, one.source] = one
        return list(newest.values())

    def cast(
        self, task: ReviewTask, choice: Choice, annotator: str, *, source: str, comment: str = ""
    ) -> Label | None:
        """The vote to write, or None where this source says what it said before.

        It is held against the newest vote from the same source: a file that is read again does not
        undo what its annotator has changed elsewhere since.
        """
        votes = self._votes.setdefault((task.id, annotator), [])
        known = _last([one for one in votes if one.source == source])
        before = _newest(votes)
        if before is None and choice == "withdrawn":
            return None
        made = vote(
            task,
            choice,
            annotator,
            source=source,
            comment=comment,
            replaces=before.id if before else "",
        )
        made = self._scrub(made) if self._scrub else made
        if known and (choice_of(known), known.comment) == (choice, made.comment):
            return None
        votes.append(made)
        return made


def _newest(votes: Iterable[Label]) -> Label | None:
    """Of one annotator's votes on one task, the last that no other replaces; where a writer named
    none, the clock decides."""
    votes = list(votes)
    replaced = {one.replaces for one in votes}
    return _last([one for one in votes if one.id not in replaced])


def _last(votes: Iterable[Label]) -> Label | None:
    return max(votes, key=lambda one: one.created_at, default=None)
