"""Records on disk: SQL tables with numbered migrations, lineage, and the turn lock."""

from trueup.store.store import CHAMPION, Store, storage_errors

__all__ = ["CHAMPION", "Store", "storage_errors"]
