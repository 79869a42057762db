"""The project's own flagger: learned from its labels, kept as JSON, named by its contents.

    .trueup/flagger/
    ├── current.json          what is used
    └── learned_….json        every version

A new one takes the old one's place unless it is shown to be worse on the labels that came since, to
prompts that the old one has not learned from: the new one's scores of them are out of fold, so that
neither side has seen what it is measured on.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trueup.errors import DataError
from trueup.flag.config import FlagConfig
from trueup.flag.features import COLUMNS, Known, columns, vectors
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

ENOUGH_TO_COMPARE = 10
"""Fresh answers of each side."""


class Trained(NamedTuple):
    """What a training came to."""

    weak: int
    fine: int
    learned: Learned | None
    """None where there are too few labels."""
    is_used: bool
    reason: str
    difference: Interval | None = None
    """Average precision of the new one, out of fold, less that of the one before, on the labels
    that the one before has not learned from; None where they are too few to say."""


def train(store: Store, config: FlagConfig, embedder: Embedder | None) -> Trained:
    """Learn a flagger from what labels and thumbs say.

    Reads:   interactions that somebody spoke of, by the rule in `truth`.
    Writes:  `flagger/learned_….json`, and `flagger/current.json` where it is not shown to be worse.
    Again:   the same labels give the same flagger.
    """
    said = truths(store)
    interactions = [one for one in store.get_all(Interaction, said) if not one.error]
    weak = np.array([said[one.id] for one in interactions], int)
    num_weak, num_fine = int(weak.sum()), int((weak == 0).sum())
    if min(num_weak, num_fine) < config.min_labels:
        reason = f"{num_weak} weak and {num_fine} fine answers; {config.min_labels} of each needed"
        return Trained(num_weak, num_fine, None, False, reason)
    known = known_of(interactions, Population(store.each(Interaction)), config, embedder)
    groups = [content_hash([m.model_dump() for m in one.prompt]) for one in interactions]
    name = embedder.id if embedder else ""
    try:
        made = learn(known, weak, groups, embedder=name)
    except DataError as error:
        return Trained(num_weak, num_fine, None, False, f"too few prompts: {error.got}")
    tails = [_tail(one.id) for one in interactions]
    figures = made.figures | {"labels": float(len(weak))}
    made = made.model_copy(update={"figures": figures, "taught": tuple(sorted(tails))})
    before, gap = _usable(_current_file(store)), None
    if before and before.id != made.id and before.embedder in ("", name):
        gap = _gap(before, known, weak, groups, tails)
    # the interval must reach above zero: a new one that is shown to be worse does not replace
    is_used = gap is None or gap.high >= 0
    _write(store, made, is_used)
    reason = "learned" if is_used else f"worse than {before.id if before else ''}, which is kept"
    return Trained(num_weak, num_fine, made, is_used, reason, gap)


def _gap(
    before: Learned, known: Known, weak: np.ndarray, groups: Sequence[str], tails: Sequence[str]
) -> Interval | None:
    """What can be learned now less the one before, on answers to prompts new to both."""
    taught = set(before.taught)
    seen = {group for group, tail in zip(groups, tails, strict=True) if tail in taught}
    fresh = np.array([n for n, group in enumerate(groups) if group not in seen], int)
    is_weak = weak[fresh] > 0
    if not taught or min(is_weak.sum(), (~is_weak).sum()) < ENOUGH_TO_COMPARE:
        return None
    _, margins = chosen(known, weak, groups)
    weights = resampled_weights(is_weak, [groups[n] for n in fresh])
    theirs = before.margins(known.rows(fresh))
    return ranking_difference(margins[fresh], theirs, is_weak, weights).auprc


def _tail(interaction_id: str) -> str:
    """Twelve hex digits, enough to tell a project's interactions apart."""
    return interaction_id[-12:]


def retrain(store: Store, config: FlagConfig, embedder: Callable[[], Embedder]) -> Trained | None:
    """As `train`, where `flag.retrain_every` more answers are spoken of than the last flagger was
    learned from, used or not; None where that is not so."""
    if not config.retrain_every:
        return None
    made = sorted(_folder(store).glob("learned_*.json"), key=lambda path: path.stat().st_mtime)
    before = _usable(made[-1]) if made else None
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
        DataError: its file is not what was written, or a trueup wrote it that looked at other
            columns.
    """
    path = _current_file(store)
    return _read(path) if path.is_file() else None


def _usable(path: Path) -> Learned | None:
    """The flagger of this file; one that cannot be used is there to be replaced."""
    try:
        return _read(path) if path.is_file() else None
    except DataError:
        return None


def _read(path: Path) -> Learned:
    try:
        found = Learned.model_validate_json(path.read_text("utf-8"))
        if found.columns != COLUMNS:
            raise ValueError("learned from other columns, by another version of trueup")
        return found
    except (ValueError, OSError) as error:
        raise DataError(
            f"The learned flagger {path} cannot be read",
            got=str(error).splitlines()[0],
            expected="the file that 'trueup flag train' wrote",
            next="train it again, or set flag.learned = false",
        ) from None


def _current_file(store: Store) -> Path:
    return _folder(store) / "current.json"


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
