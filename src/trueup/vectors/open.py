"""Which index a project has."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trueup.errors import ConfigError, MissingDependency
from trueup.store import Store
from trueup.vectors.config import VectorsConfig
from trueup.vectors.index import Index

__all__ = ["erase_vectors", "every_index", "open_index"]


def open_index(store: Store, config: VectorsConfig, embedder_id: str) -> Index:
    """The index of an embedder's vectors: pgvector where the store is Postgres, LanceDB elsewhere,
    or what `vectors.backend` says. Nothing is written before something is added.

    Raises:
        ConfigError: pgvector without a Postgres store.
        MissingDependency: the extra is not installed.
        StorageError: the folder cannot be written.
    """
    if _uses_postgres(store, config):
        return _postgres()(store.engine, config, embedder_id)
    return _lance()(_folder(store), config, embedder_id)


def every_index(store: Store, config: VectorsConfig) -> list[Index]:
    """All indexes of a store, whichever embedder and text they are of.

    Raises:
        As `open_index`.
    """
    if _uses_postgres(store, config):
        kind = _postgres()
        return [kind(store.engine, config, "", name=one) for one in kind.names(store.engine)]
    if not any(_folder(store).glob("*.lance")):
        return []
    kind = _lance()
    return [kind(_folder(store), config, "", name=one) for one in kind.names(_folder(store))]


def erase_vectors(store: Store, config: VectorsConfig, ids: Iterable[str]) -> int:
    """Remove these interactions from all indexes, bytes and all; returns how many vectors went.

    To be called after they have left the store: whatever is being embedded meanwhile looks there
    before it adds.
    """
    every = list(ids)
    return sum(index.delete(every) for index in every_index(store, config))


def _uses_postgres(store: Store, config: VectorsConfig) -> bool:
    if config.backend == "pgvector" and not store.is_postgres:
        raise ConfigError(
            "vectors.backend asks for pgvector, and the store is no Postgres",
            got=config.backend,
            expected="a store in Postgres, or 'lancedb'",
            next="delete vectors.backend: by default it follows the store",
        )
    return store.is_postgres and config.backend != "lancedb"


def _folder(store: Store) -> Path:
    return store.folder / "vectors"


def _lance() -> Any:
    try:
        from trueup.vectors.lance import LanceIndex
    except ImportError as error:
        raise _missing(error, "vectors") from error
    return LanceIndex


def _postgres() -> Any:
    try:
        from trueup.vectors.postgres import PgIndex
    except ImportError as error:
        raise _missing(error, "postgres") from error
    return PgIndex


def _missing(error: ImportError, extra: str) -> MissingDependency:
    return MissingDependency(
        "The vector index needs a database library",
        got=str(error),
        expected=f"the extra '{extra}'",
        next=f"pip install 'trueup[{extra}]'",
    )
