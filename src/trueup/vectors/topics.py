"""What people ask about: topics of the traffic, their names, and how they move week by week.

k-means on the vectors. The number of topics is the one with the best silhouette (Rousseeuw 1987)
among a few, unless it is given. A topic is called by the words that it has and others have not, by
class TF-IDF (Grootendorst 2022, arXiv:2203.05794): tf(word, topic) * log(1 + A / f(word)), with A
the mean number of words a topic and f over all topics.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np

from trueup.errors import DataError
from trueup.judges.text import content_words, words
from trueup.records import Interaction
from trueup.stats import wilson
from trueup.store import Store
from trueup.vectors.config import VectorsConfig
from trueup.vectors.embed import text_of
from trueup.vectors.index import EVERYTHING, Filter, Index, Row

__all__ = ["Topic", "Topics", "find_topics", "topic_names"]

CHOICES = (2, 3, 4, 6, 8, 12, 16, 24)
"""Numbers of topics that are tried."""
FITTED = 10_000  # vectors that the centres are fitted to
JUDGED = 1_000  # vectors a silhouette is taken over
READ = 200  # texts a topic that give its name
EXAMPLES = 3


class Topic(NamedTuple):
    """One topic of the traffic."""

    name: str
    num_interactions: int
    share: float
    flag_rate: float
    flag_low: float
    flag_high: float
    """Wilson's 95 % interval."""
    shares: tuple[float | None, ...]
    """Of each week's interactions, oldest week first; None where a week has none."""
    change: float | None
    """Share in the newest week less that in the week before; None where one of them is empty."""
    examples: tuple[str, ...]
    """Ids nearest to the centre, of different texts."""


class Topics(NamedTuple):
    """The topics of some traffic, the largest first."""

    topics: tuple[Topic, ...]
    weeks: tuple[str, ...]
    """The Mondays they begin with, UTC."""
    num_by_week: tuple[int, ...]
    silhouette: float
    """From -1 to 1: how much nearer vectors are to their own topic than to the next. Below about
    0.1 topics run into each other."""


def find_topics(
    store: Store,
    index: Index,
    config: VectorsConfig,
    *,
    k: int = 0,
    where: Filter = EVERYTHING,
    seed: int = 0,
) -> Topics:
    """The topics of what the filter lets through; the same traffic and seed give the same ones.

    Args:
        k: how many; 0 takes the number with the best silhouette.

    Raises:
        DataError: fewer different vectors than topics, or than four, among those that the centres
            are fitted to.
    """
    rows, vectors = index.read(where)
    chance = np.random.default_rng(seed)
    sample = chance.permutation(len(rows))[:FITTED]
    different = len(np.unique(vectors[sample].round(5), axis=0))
    if different < max(4, k + 1):
        raise DataError(
            "There is too little embedded traffic to find topics in",
            got=f"{different} different texts",
            expected=f"at least {max(4, k + 1)}",
            next="capture more and run trueup embed, or widen the filter",
        )
    tried = [k] if k else [one for one in CHOICES if one < min(different, len(sample))]
    fitted = [_fit(vectors[sample], one, seed) for one in tried]
    centres, silhouette = max(fitted, key=lambda one: one[1])
    # the nearest centre; a vector's own length is the same for all
    labels = np.argmin((centres**2).sum(axis=1) - 2 * vectors @ centres.T, axis=1)
    members = [np.flatnonzero(labels == topic) for topic in range(len(centres))]
    members = sorted((one for one in members if len(one)), key=len, reverse=True)
    texts = [_texts(store, config, rows, chance.permutation(at)[:READ]) for at in members]
    names = topic_names([list(one.values()) for one in texts])
    weeks, week_of = _weeks(rows)
    totals = np.bincount(week_of, minlength=len(weeks))
    found = []
    for at, name in zip(members, names, strict=True):
        raised = sum(rows[i].raised for i in at)
        rate = wilson(raised, len(at))
        assert rate is not None, "a topic has members"
        counts = np.bincount(week_of[at], minlength=len(weeks))
        shares = tuple(float(c / n) if n else None for c, n in zip(counts, totals, strict=True))
        new, old = (shares[-1], shares[-2]) if len(shares) > 1 else (None, None)
        found.append(
            Topic(
                name,
                len(at),
                len(at) / len(rows),
                *rate,
                shares,
                None if new is None or old is None else new - old,
                _nearest(store, config, rows, vectors, at),
            )
        )
    return Topics(tuple(found), weeks, tuple(totals.tolist()), silhouette)


def topic_names(topics: Sequence[Sequence[str]], num_words: int = 3) -> list[str]:
    """The words of the highest class TF-IDF for each topic's texts; a number where names meet."""
    spelled = [Counter(w for text in texts for w in words(text)) for texts in topics]
    counts = [_stems(one) for one in spelled]
    everywhere = sum(counts, Counter())
    mean = sum(everywhere.values()) / max(1, len(topics))
    named, seen = [], Counter()
    for stems, forms in zip(counts, spelled, strict=True):
        size = sum(stems.values())
        weights = {w: n / size * np.log1p(mean / everywhere[w]) for w, n in stems.items()}
        best = sorted(weights, key=lambda w: (-weights[w], w))[:num_words]
        name = " ".join(_commonest(stem, forms) for stem in best) or "other"
        seen[name] += 1
        named.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return named


def _stems(forms: Counter[str]) -> Counter[str]:
    found = Counter[str]()
    for form, n in forms.items():
        for stem in content_words(form):
            found[stem] += n
    return found


def _commonest(stem: str, forms: Counter[str]) -> str:
    """The spelling of a stem that a person would read."""
    same = [form for form in forms if stem in content_words(form)]
    return max(same, key=lambda form: (forms[form], form))


def _fit(vectors: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, float]:
    """Centres, and the silhouette of a sample."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    kmeans: Any = KMeans  # its hints take `n_init` for a string
    found = kmeans(k, n_init=2, random_state=seed).fit(vectors)
    labels = found.labels_[:JUDGED]
    is_judged = 1 < len(set(labels.tolist())) < len(labels)
    score = float(silhouette_score(vectors[:JUDGED], labels)) if is_judged else -1.0
    return found.cluster_centers_, score


def _texts(
    store: Store, config: VectorsConfig, rows: list[Row], places: np.ndarray
) -> dict[str, str]:
    found = store.get_all(Interaction, [rows[i].id for i in places])
    return {one.id: text_of(one, config) for one in found}


def _nearest(
    store: Store, config: VectorsConfig, rows: list[Row], vectors: np.ndarray, at: np.ndarray
) -> tuple[str, ...]:
    centre = vectors[at].mean(axis=0)
    order = at[np.argsort(-(vectors[at] @ centre), kind="stable")]
    texts = _texts(store, config, rows, order[: 10 * EXAMPLES])
    first_of = {text: one for one, text in reversed(texts.items())}
    return tuple(one for one, text in texts.items() if first_of[text] == one)[:EXAMPLES]


def _weeks(rows: list[Row]) -> tuple[tuple[str, ...], np.ndarray]:
    """Every week from the first to the last, and the place of each row's."""
    days = [datetime.fromtimestamp(row.created_us / 1e6, UTC).date() for row in rows]
    mondays = [day - timedelta(days=day.weekday()) for day in days]
    first = min(mondays)
    places = np.array([(monday - first).days // 7 for monday in mondays])
    every = [first + timedelta(weeks=n) for n in range(int(places.max()) + 1)]
    return tuple(str(monday) for monday in every), places
