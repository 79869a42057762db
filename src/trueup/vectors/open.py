"""Which index a project has."""

from trueup.errors import ConfigError, MissingDependency
from trueup.store import Store
from trueup.vectors.config import VectorsConfig
from trueup.vectors.index import Index

__all__ = ["open_index"]


def open_index(store: Store, config: VectorsConfig, embedder_id: str) -> Index:
    """The index of an embedder's vectors: pgvector where the store is Postgres, LanceDB elsewhere,
    or what `vectors.backend` says. Nothing is written before something is added.

    Raises:
        ConfigError: pgvector without a Postgres store.
        MissingDependency: the extra is not installed.
        StorageError: the folder cannot be written.
    """
    is_postgres = getattr(store, "is_postgres", False)
    if config.backend == "pgvector" and not is_postgres:
        raise ConfigError(
            "vectors.backend asks for pgvector, and the store is no Postgres",
            got=config.backend,
            expected="a store in Postgres, or 'lancedb'",
            next="delete vectors.backend: by default it follows the store",
        )
    uses_postgres = is_postgres and config.backend != "lancedb"
    try:
        if uses_postgres:
            from trueup.vectors.postgres import PgIndex

            return PgIndex(store.engine, config, embedder_id)
        from trueup.vectors.lance import LanceIndex

        return LanceIndex(store.folder / "vectors", config, embedder_id)
    except ImportError as error:
        extra = "postgres" if uses_postgres else "vectors"
        raise MissingDependency(
            "The vector index needs a database library",
            got=str(error),
            expected=f"the extra '{extra}'",
            next=f"pip install 'trueup[{extra}]'",
        ) from error
