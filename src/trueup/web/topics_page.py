"""The page of the topics: what people ask about, and how it moves from week to week."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueup.records import Interaction, content_hash
from trueup.store import Store
from trueup.web.page import excerpt, plain, write_page

if TYPE_CHECKING:
    from trueup.vectors import Topics, VectorsConfig

__all__ = ["topics_data", "write_topics"]


def write_topics(
    store: Store, found: "Topics", config: "VectorsConfig", *, embedder: str = ""
) -> Path:
    """Write the page, and its figures as JSON, to `reports/` in the store's folder. It is named by
    its figures: the same ones write the same page.

    Raises:
        StorageError: it cannot be written there.
    """
    data = topics_data(store, found, config, embedder=embedder)
    return write_page(
        store.folder / "reports" / f"topics_{content_hash(data)}.html",
        "topics.html",
        data,
        "The page {page} could not be written",
    )


def topics_data(
    store: Store, found: "Topics", config: "VectorsConfig", *, embedder: str = ""
) -> dict[str, Any]:
    """Every figure of the page, as plain JSON values."""
    from trueup.vectors import text_of

    wanted = [one for topic in found.topics for one in topic.examples]
    texts = {one.id: text_of(one, config) for one in store.get_all(Interaction, wanted)}
    return plain(
        {
            "embedder": embedder,
            "text": config.text,
            "silhouette": found.silhouette,
            "weeks": found.weeks,
            "num_by_week": found.num_by_week,
            "num_interactions": sum(found.num_by_week),
            "topics": [
                {
                    **topic._asdict(),
                    "examples": [
                        {"id": one, "prompt": excerpt(texts[one])}
                        for one in topic.examples
                        if one in texts
                    ],
                }
                for topic in found.topics
            ],
        }
    )
