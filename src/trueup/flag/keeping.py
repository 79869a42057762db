"""The project's own flagger: learned from its labels, kept as JSON, named by its contents.

    .trueup/flagger/
    ├── current.json          what is used
    └── learned_….json        every version

A new one takes the old one's place only where it is not worse on the labels of today: the old one
is asked as it is, which flatters it where it learned from some of those labels.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trueup.errors import DataError
from trueup.flag.config import FlagConfig
from trueup.flag.features import Known, columns, vectors
from trueup.flag.learn import Learned, chosen, learn
from trueup.flag.remembered import Remembered
from trueup.flag.signals import Population, rating_of
from trueup.flag.truth import truths
from trueup.models.embedder import Embedder
from trueup.records import Interaction, content_hash
from trueup.stats.intervals import Interval
from trueup.stats.ranking import ranking_difference, resampled_weights
from trueup.store import Store, storage_errors

__all__ = ["Trained", "current", "known_of", "retrain", "train"]


class Trained(NamedTuple):
    """What a training came to."""

    weak: int
    fine: int
    learned: Learned | None
    """None where there are too few labels."""
    is_used: bool
    reason: str
    difference: Interval | None = None
    """Average precision of the new one, out of fold, less that of the one before, on all labels."""


def train(store: Store, config: FlagConfig, embedder: Embedder | None) -> Trained:
    """Learn a flagger from what labels and thumbs say.

    Reads:   interactions that somebody spoke of, by the rule in `truth`.
    Writes:  `flagger/learned_….json`, and `flagger/current.json` where it is not worse.
    Again:   the same labels give the same flagger.
    """
    said = truths(store)
    interactions = [one for one in store.get_all(Interaction, said) if not one.error]
    weak = np.array([said[one.id] for one in interactions], int)
    num_weak, num_fine = int(weak.sum()), int((weak == 0).sum())
    if min(num_weak, num_fine) < config.min_labels:
        reason = f"{num_weak} weak and {num_fine} fine answers; {config.min_labels} of each needed"
        return Trained(num_weak, num_fine, None, False, reason)
    known = known_of(interactions, Population(store.all(Interaction)), config, embedder)
    groups = [content_hash([m.model_dump() for m in one.prompt]) for one in interactions]
    name = embedder.id if embedder else ""
    made, before = learn(known, weak, groups, embedder=name), current(store)
    made = made.model_copy(update={"figures": made.figures | {"labels": float(len(weak))}})
    gap = None
    if before and before.id != made.id and before.embedder in ("", name):
        _, margins = chosen(known, weak, groups)
        weights = resampled_weights(weak > 0, groups)
        gap = ranking_difference(margins, before.margins(known), weak > 0, weights).auprc
    # the interval must reach above zero: a new one that is shown to be worse does not replace
    is_used = gap is None or gap.high >= 0
    _write(store, made, is_used)
    reason = "learned" if is_used else f"worse than {before.id if before else ''}, which is kept"
    return Trained(num_weak, num_fine, made, is_used, reason, gap)


def retrain(store: Store, config: FlagConfig, embedder: Callable[[], Embedder]) -> Trained | None:
    """As `train`, where `flag.retrain_every` more answers are spoken of than the flagger in use was
    learned from; None where that is not so."""
    if not config.retrain_every:
        return None
    before = current(store)
    known = before.figures.get("labels", 0) if before else 0
    if len(truths(store)) < known + config.retrain_every:
        return None
    return train(store, config, embedder())


def known_of(
    interactions: Sequence[Interaction],
    population: Population,
    config: FlagConfig,
    embedder: Embedder | None,
) -> Known:
    """What a learned flagger looks at, of interactions as they were captured."""
    ratings = [rating_of(one) for one in interactions]
    nothing = Remembered(None)
    return Known(
        columns(interactions, ratings, population, config), vectors(interactions, embedder, nothing)
    )


def current(store: Store) -> Learned | None:
    """The flagger in use; None where none was trained.

    Raises:
        DataError: its file is not what was written.
    """
    path = _folder(store) / "current.json"
    if not path.is_file():
        return None
    try:
        return Learned.model_validate_json(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(
            f"The learned flagger {path} cannot be read",
            got=str(error).splitlines()[0],
            expected="the file that 'trueup flag train' wrote",
            next="train it again, or set flag.learned = false",
        ) from None


def _folder(store: Store) -> Path:
    return store.folder / "flagger"


def _write(store: Store, made: Learned, is_used: bool) -> None:
    text = json.dumps(made.model_dump(mode="json"))
    names = [made.id.replace("/", "_")] + (["current"] if is_used else [])
    with storage_errors(store.folder):
        _folder(store).mkdir(parents=True, exist_ok=True)
        for name in names:
            half = _folder(store) / f".{name}.half"
            half.write_text(text, "utf-8")
            half.replace(_folder(store) / f"{name}.json")
