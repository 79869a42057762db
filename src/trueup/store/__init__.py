"""Records on disk: SQL tables with numbered migrations, lineage, and the turn lock."""

from trueup.store.store import CHAMPION, Store

__all__ = ["CHAMPION", "Store"]
