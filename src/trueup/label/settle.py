"""Many votes become one label, which is what the next stages learn from."""

from collections import Counter
from typing import Any, NamedTuple

from trueup.label.config import LabelConfig
from trueup.label.votes import EDIT, Choice, choice_of
from trueup.label.weigh import Outcome, Weighed, weigh
from trueup.records import Label, ReviewTask
from trueup.store import Store

__all__ = ["Settled", "settle"]

UNSETTLED = "unsettled"
LEFT_OUT = "left out"
SOURCE = "people"
VERSION = 1
"""Of how votes are settled; it is part of the annotator's name on the label."""


class Settled(NamedTuple):
    """What a call wrote, and what it was made of."""

    written: list[Label]
    weighed: Weighed


def settle(store: Store, config: LabelConfig) -> Settled:
    """Settle every task that has votes enough into one label.

    Reads:   review tasks; of each annotator the newest vote on each.
    Writes:  one Label a task, by `people:METHOD/VERSION`, whose parents are the votes; its margin
             is the confidence, and a tie or both bad has none. Where the votes have changed since,
             another that replaces it; where they do not say enough any more, an unsettled one,
             which gives no pair. What annotators mended who fail gold questions is set aside by
             one that prefers nothing, and comes back when they fail no more.
    Skips:   gold questions; tasks with fewer votes than `overlap`, or whose confidence is below
             `min_confidence`; votes of annotators who fail gold questions.
    Again:   writes nothing until there are new votes; a confidence that others' votes have moved
             is no reason to write.
    Killed:  all labels of the call or none.
    Cost:    no model calls; linear in votes.
    Next:    pair.run
    """
    weighed = weigh(store, config)
    before = _newest(store)
    name = f"people:{config.settle}/{VERSION}"
    written = []
    for key, task in weighed.tasks.items():
        outcome, last = weighed.outcomes.get(key), before.get(key)
        if outcome and outcome.is_settled:
            if last and (last.vote_ids, _said(last)) == (outcome.vote_ids, outcome.choice):
                continue
            written.append(_label(task, outcome, name, last))
        elif last and _said(last) != UNSETTLED:
            written.append(_unsettled(task, outcome, name, last))
    written += _edits(store, {one.name for one in weighed.annotators if one.left_out})
    store.add_all(written)
    return Settled(written, weighed)


def _newest(store: Store) -> dict[str, Label]:
    """What each task was settled as, by task."""
    settled = [one for one in store.each(Label, source=SOURCE) if one.vote_ids]
    replaced = {one.replaces for one in settled}
    return {one.task_id: one for one in settled if one.id not in replaced}


def _said(label: Label) -> Choice | str | None:
    return UNSETTLED if (UNSETTLED,) in label.reasons else choice_of(label)


def _label(task: ReviewTask, outcome: Outcome, name: str, last: Label | None) -> Label:
    c = outcome.confidence
    scores = {"first": (c, 0.0), "second": (0.0, c), "tie": (0.5, 0.5), "both bad": (0.0, 0.0)}
    is_bad = outcome.choice == "both bad"
    return _made(
        task,
        name,
        last,
        scores=scores[outcome.choice],
        reasons=(("both bad",), ("both bad",)) if is_bad else (),
        vote_ids=outcome.vote_ids,
        comment=f"confidence {c:.3f}, {len(outcome.vote_ids)} votes",
    )


def _unsettled(task: ReviewTask, outcome: Outcome | None, name: str, last: Label) -> Label:
    """What takes the place of a label that its votes carry no longer."""
    how = f"confidence {outcome.confidence:.3f}" if outcome else "too few votes"
    return _made(
        task,
        name,
        last,
        scores=(0.5, 0.5),
        reasons=((UNSETTLED,), (UNSETTLED,)),
        vote_ids=outcome.vote_ids if outcome else last.vote_ids,
        comment=how,
    )


def _edits(store: Store, out: set[str]) -> list[Label]:
    """What sets aside the edits of those who are left out, and brings back those of others."""
    edits = list(store.each(Label, source=EDIT))
    times = Counter(one.replaces for one in edits)
    made = []
    for one in (one for one in edits if not times[one.id]):
        is_aside = (LEFT_OUT,) in one.reasons
        if one.annotator in out and one.scores[0] > one.scores[1]:
            why = ((LEFT_OUT,), (LEFT_OUT,))
            made.append(_again(one, scores=(0.0, 0.0), reasons=why))
        # where the person has mended the answer anew meanwhile, that is what counts
        elif one.annotator not in out and is_aside and times[one.replaces] == 1:
            made.append(_again(one, scores=(1.0, 0.0), reasons=()))
    return made


def _again(edit: Label, **other: Any) -> Label:
    """The same edit, saying something else, in the place of the one before."""
    kept = edit.model_dump(exclude={"id", "created_at"})
    return Label.model_validate(kept | other | {"replaces": edit.id})


def _made(
    task: ReviewTask,
    name: str,
    last: Label | None,
    *,
    scores: tuple[float, float],
    reasons: tuple[tuple[str, ...], ...],
    vote_ids: tuple[str, ...],
    comment: str,
) -> Label:
    return Label(
        prompt=task.prompt,
        candidates=task.candidates,
        scores=scores,
        reasons=reasons,
        annotator=name,
        annotator_kind="human",
        interaction_id=task.interaction_id,
        source=SOURCE,
        task_id=task.id,
        vote_ids=vote_ids,
        comment=comment,
        replaces=last.id if last else "",
    )
