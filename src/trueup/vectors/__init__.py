"""Captured traffic by meaning: a vector an interaction, made off the path of any request.

The index holds ids, vectors and filter columns. Texts stay in the records, so that it can be made
again from them, and so that what is erased there is never shown from here.
"""

from trueup.vectors.config import VectorsConfig
from trueup.vectors.diverse import diverse
from trueup.vectors.duplicates import NEARLY_SAME, Group, duplicates
from trueup.vectors.embed import Embedded, embed, text_of
from trueup.vectors.index import Filter, Hit, Index, Row
from trueup.vectors.open import erase_vectors, every_index, open_index
from trueup.vectors.search import Match, search
from trueup.vectors.topics import Topic, Topics, find_topics, topic_names

__all__ = [
    "NEARLY_SAME",
    "Embedded",
    "Filter",
    "Group",
    "Hit",
    "Index",
    "Match",
    "Row",
    "Topic",
    "Topics",
    "VectorsConfig",
    "diverse",
    "duplicates",
    "embed",
    "erase_vectors",
    "every_index",
    "find_topics",
    "open_index",
    "search",
    "text_of",
    "topic_names",
]
