"""Interactions into the index, in batches, off the path of any request."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from trueup import progress
from trueup.models.embedder import Embedder
from trueup.records import Flag, Interaction
from trueup.store import Store
from trueup.vectors.config import VectorsConfig
from trueup.vectors.index import Filter, Index, Row

__all__ = ["Embedded", "embed", "text_of"]


class Embedded(NamedTuple):
    """What a call did."""

    added: int
    raised: int
    """Rows that were there and that a flagger has raised since."""
    removed: int
    """Rows whose interactions are no longer in the store."""
    total: int


def embed(store: Store, index: Index, embedder: Embedder, config: VectorsConfig) -> Embedded:
    """Bring the index to the state of the store.

    Reads:   interactions whose ids the index lacks, in the order they were stored, and flags.
    Writes:  a vector of each interaction's text, `config.batch` a commit.
    Again:   writes nothing new. Killed: the next call goes on behind the last batch.
    Erased:  an interaction that left the store while its vector was computed is not added, and
             one that left before is removed.
    Cost:    the embedder's: about 200 short texts a second for MiniLM on one core.
    """
    known = index.ids()
    stored = [row_id for (row_id,) in store.values(Interaction, "id")]
    removed = index.delete(gone) if (gone := known.difference(stored)) else 0
    missing = [one for one in stored if one not in known]
    raised = {one for (one,) in store.values(Flag, "interaction_id", raised=True)}
    added = 0
    with progress.task("embedding", len(missing)) as advance:
        for ids in _batches(missing, config.batch):
            added += _add(store, index, embedder, config, ids, raised)
            advance(len(ids))
            index.tend()
    late = (raised & known) - index.ids(_RAISED) - gone
    if late:
        index.mark_raised(late)
    index.tend()
    return Embedded(added, len(late), removed, len(known) - removed + added)


_RAISED = Filter(raised=True)


def text_of(one: Interaction, config: VectorsConfig) -> str:
    """What is embedded of an interaction."""
    if config.text == "answer":
        return one.completion.text
    return next((m.content for m in reversed(one.prompt) if m.role == "user"), "")


def _add(
    store: Store,
    index: Index,
    embedder: Embedder,
    config: VectorsConfig,
    ids: Sequence[str],
    raised: set[str],
) -> int:
    """Embed and add those of a batch that are still in the store afterwards."""
    found = store.get_all(Interaction, ids)
    vectors = embedder.once([text_of(one, config) for one in found])
    with index.writing():
        # erasing deletes from the store first and from the index second: what is there now is
        # either here to stay or deleted from the index after this lock is given back
        there = {one for (one,) in store.values(Interaction, "id", among=ids)}
        kept = [at for at, one in enumerate(found) if one.id in there]
        rows = [Row.of(found[at], raised=found[at].id in raised) for at in kept]
        index.add(rows, vectors[kept])
    return len(kept)


def _batches(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for at in range(0, len(ids), size):
        yield ids[at : at + size]
