"""Interactions by meaning: the index finds ids, the store has the texts."""

from typing import NamedTuple

from trueup.models.embedder import Embedder
from trueup.records import Interaction
from trueup.store import Store
from trueup.vectors.index import EVERYTHING, Filter, Index

__all__ = ["Match", "search"]


class Match(NamedTuple):
    """An interaction and how near it is."""

    interaction: Interaction
    similarity: float
    """Cosine to the text asked for: 1 is the same text."""


def search(
    store: Store,
    index: Index,
    embedder: Embedder,
    text: str,
    *,
    limit: int = 10,
    where: Filter = EVERYTHING,
    exact: bool = False,
) -> list[Match]:
    """The interactions nearest to `text`, nearest first.

    What has left the store since it was embedded is passed over, so an erased text is never shown.
    """
    text = text.encode("utf-8", "replace").decode()  # a terminal may give bytes that are no text
    hits = index.search(embedder.once([text])[0], limit, where, exact=exact)
    found = {one.id: one for one in store.get_all(Interaction, [hit.id for hit in hits])}
    return [Match(found[hit.id], hit.similarity) for hit in hits if hit.id in found]
