"""Records on disk: SQL tables with numbered migrations, lineage, and the turn lock."""

from trueup.store.store import CHAMPION, Load, Store, row_of, storage_errors

__all__ = ["CHAMPION", "Load", "Store", "row_of", "storage_errors"]
