"""What people's votes add up to: which answer each task has, and what each annotator is worth.

Nothing is written here; `settle` makes labels of it, pages and commands show it. A vote counts if
it is its annotator's newest on the task, and if the annotator knows the answers to gold questions.
Where a lead gave a task a second look, that vote decides.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from trueup.label.config import LabelConfig
from trueup.label.tasks import tasks_of
from trueup.label.votes import CHOICES, SECOND_LOOK, Choice, VoteBook, choice_of, gold_choice
from trueup.records import Label, ReviewTask
from trueup.stats.agreement import krippendorff_alpha
from trueup.stats.dawid_skene import DawidSkene, Vote, dawid_skene
from trueup.stats.intervals import Interval, wilson
from trueup.store import Store

__all__ = ["Annotator", "GoldMark", "Outcome", "Weighed", "fails_gold", "weigh"]

MIRROR = tuple(CHOICES.index(one) for one in ("second", "first", "tie", "both bad"))
"""Which of the two answers a task names first is nobody's doing, and people see them in random
order: what is found must not depend on it."""

TIE: Choice = "tie"

Votes = dict[str, dict[str, Label]]
"""By task, then by annotator."""


class GoldMark(NamedTuple):
    """How an annotator did on gold questions."""

    num_right: int
    num_asked: int

    @property
    def accuracy(self) -> Interval | None:
        """With Wilson's interval; None before the first question."""
        return wilson(self.num_right, self.num_asked)


class Outcome(NamedTuple):
    """What the votes on one task say."""

    choice: Choice
    confidence: float
    """Probability of that choice (Dawid-Skene), or its share of the votes (majority)."""
    vote_ids: tuple[str, ...]
    is_settled: bool
    """False where the confidence is below `label.min_confidence`: another look is needed."""


@dataclass
class Annotator:
    """One line of the table of annotators."""

    name: str
    num_votes: int
    """On tasks that are no gold questions."""
    gold: GoldMark
    left_out: bool
    """True where too many gold questions were answered wrong: none of the votes count."""
    agreement: Interval | None = None
    """Share of votes that say what the task was settled as; their own vote is among those."""
    reliability: float | None = None
    """Probability of a right vote by the confusion matrix that Dawid-Skene found; None for those
    who are left out."""


@dataclass
class Weighed:
    """Every task with the votes that count, and what comes of them."""

    tasks: dict[str, ReviewTask]
    votes: Votes
    """Those that count, gold questions included."""
    outcomes: dict[str, Outcome]
    """Of tasks with as many votes as `label.overlap` asks for; gold questions have none."""
    annotators: list[Annotator]
    model: DawidSkene | None = None
    overlap: int = 1
    waiting: list[ReviewTask] = field(default_factory=list)
    """Tasks with fewer votes than that, oldest first. Gold questions are for everybody and never
    wait."""

    @property
    def unsettled(self) -> list[ReviewTask]:
        """Tasks whose votes do not say enough, the least certain first."""
        doubtful = [
            (one.confidence, key) for key, one in self.outcomes.items() if not one.is_settled
        ]
        return [self.tasks[key] for _, key in sorted(doubtful)]

    def open_to(self, annotator: str) -> list[ReviewTask]:
        """What to ask this annotator: tasks that wait or are unsettled, and gold questions, without
        those they have voted on; in the order of their hashes, so that no kind stands out."""
        asked = [*self.waiting, *self.unsettled]
        asked += [one for one in self.tasks.values() if one.gold is not None]
        left = [one for one in asked if annotator not in self.votes.get(one.id, ())]
        return sorted(left, key=lambda one: one.id)

    def alpha(self) -> Interval | None:
        """Krippendorff's alpha of everybody whose votes count, over tasks that are no gold
        questions. A second look is no vote of its own: whoever gave it saw the others'."""
        names = [one.name for one in self.annotators if not one.left_out]
        asked = [key for key, one in self.tasks.items() if one.gold is None and key in self.votes]
        said = {
            key: {
                name: choice_of(one)
                for name, one in self.votes[key].items()
                if one.source != SECOND_LOOK
            }
            for key in asked
        }
        return krippendorff_alpha([[said[key].get(name) for key in asked] for name in names])


def weigh(store: Store, config: LabelConfig) -> Weighed:
    """Add up every vote in the store. Linear in votes; no model calls."""
    tasks = {one.id: one for one in tasks_of(store)}
    cast = {key: votes for key, votes in VoteBook(store).standing().items() if key in tasks}
    marks = _gold_marks(tasks, cast)
    out = {name for name, mark in marks.items() if fails_gold(*mark, config)}
    votes = {
        key: kept
        for key, by in cast.items()
        if (kept := {name: one for name, one in by.items() if name not in out})
    }
    names = sorted({name for by in cast.values() for name in by})
    counts = Counter(name for key, by in cast.items() if tasks[key].gold is None for name in by)
    annotators = [
        Annotator(name, counts[name], marks.get(name, GoldMark(0, 0)), name in out)
        for name in names
    ]
    model, shares = _model(tasks, votes)
    found = Weighed(tasks, votes, {}, annotators, model, config.overlap)
    for key, task in tasks.items():
        if task.gold is not None:
            continue
        by = votes.get(key, {})
        looks = [one for one in by.values() if one.source == SECOND_LOOK]
        newest = max(looks, key=lambda one: one.created_at, default=None)
        if newest and (decided := choice_of(newest)):
            ids = tuple(sorted(one.id for one in by.values()))
            found.outcomes[key] = Outcome(decided, 1.0, ids, True)
            continue
        if len(by) < config.overlap:
            found.waiting.append(task)
            continue
        says = shares[key] if config.settle == "dawid-skene" else _majority(by)
        choice, confidence = says
        ids = tuple(sorted(one.id for one in by.values()))
        is_settled = confidence >= config.min_confidence
        found.outcomes[key] = Outcome(choice, round(confidence, 6), ids, is_settled)
    _rate(found)
    return found


def _gold_marks(tasks: Mapping[str, ReviewTask], cast: Votes) -> dict[str, GoldMark]:
    right, asked = Counter[str](), Counter[str]()
    for key, by in cast.items():
        known = gold_choice(tasks[key])
        if known is None:
            continue
        for name, one in by.items():
            asked[name] += 1
            right[name] += choice_of(one) == known
    return {name: GoldMark(right[name], n) for name, n in asked.items()}


def fails_gold(num_right: int, num_asked: int, config: LabelConfig) -> bool:
    """True for an annotator whose votes are left out."""
    enough = num_asked >= config.min_gold_votes
    return enough and num_right < config.min_gold_accuracy * num_asked


def _majority(by: Mapping[str, Label]) -> tuple[Choice, float]:
    """What most say and their share; a draw is a tie, with the share of one side."""
    counts = Counter[Choice](choice for one in by.values() if (choice := choice_of(one)))
    (choice, most), *others = counts.most_common(2)
    if others and others[0][1] == most:
        return "tie", most / len(by)
    return choice, most / len(by)


def _model(
    tasks: Mapping[str, ReviewTask], votes: Votes
) -> tuple[DawidSkene | None, dict[str, tuple[Choice, float]]]:
    """Dawid-Skene over all votes that count, and each task's likeliest choice. Gold questions are
    items whose class is known."""
    keys, known, cast = list(votes), dict[int, int](), list[Vote]()
    names = sorted({name for by in votes.values() for name in by})
    place = {name: at for at, name in enumerate(names)}
    for item, key in enumerate(keys):
        gold = gold_choice(tasks[key])
        if gold in CHOICES:
            known[item] = CHOICES.index(gold)
        for name, one in sorted(votes[key].items()):
            said = choice_of(one)
            if said in CHOICES:
                cast.append(Vote(item, place[name], CHOICES.index(said)))
    if not cast:
        return None, {}
    model = dawid_skene(cast, len(CHOICES), known=known, mirror=MIRROR)
    found = dict[str, tuple[Choice, float]]()
    for item, key in enumerate(keys):
        best = float(model.posterior[item].max())
        # two choices that are equally likely are a tie, not the one that is named first
        row = map(float, model.posterior[item])
        likeliest: list[Choice] = [
            choice for choice, p in zip(CHOICES, row, strict=True) if best - p < 1e-9
        ]
        found[key] = likeliest[0] if len(likeliest) == 1 else TIE, best
    return model, found


def _rate(found: Weighed) -> None:
    """What each annotator is worth, into their lines."""
    counted = sorted({name for by in found.votes.values() for name in by})
    worth = found.model.accuracy() if found.model else ()
    accuracy = dict(zip(counted, map(float, worth), strict=True))
    for line in found.annotators:
        line.reliability = accuracy.get(line.name)
        same = [
            choice_of(by[line.name]) == found.outcomes[key].choice
            for key, by in found.votes.items()
            if line.name in by and key in found.outcomes and found.outcomes[key].is_settled
        ]
        line.agreement = wilson(sum(same), len(same))
