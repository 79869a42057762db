"""Where the records live."""

from typing import Annotated

from pydantic import AfterValidator
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from trueup.config import OPERATIONAL, StageConfig

__all__ = ["URL_ENV", "StoreConfig", "postgres_url"]

URL_ENV = "TRUEUP_STORE_URL"
"""Environment variable with the whole URL, password and all; it goes before the setting."""


def postgres_url(text: str) -> URL:
    """The URL of a Postgres database, as SQLAlchemy and psycopg want it.

    Raises:
        ValueError: it is none.
    """
    try:
        url = make_url(text)
    except ArgumentError:
        raise ValueError("not a URL of a database: write postgresql://user@host/name") from None
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise ValueError("the store is SQLite in the project's folder, or Postgres: postgresql://…")
    return url.set(drivername="postgresql+psycopg")


def _without_password(text: str) -> str:
    if text:
        url = postgres_url(text)
        if url.password or {"password", "passfile"} & set(url.query):
            raise ValueError(
                f"a URL must not hold a password: it comes from PGPASSWORD, or all of {URL_ENV}"
            )
    return text


class StoreConfig(StageConfig):
    """Where records are kept. Weights and reports are folders in either case."""

    url: Annotated[str, AfterValidator(_without_password), OPERATIONAL] = ""
    """`postgresql://user@host/name` keeps the records in Postgres, for gateways and loops on
    several machines; empty is the SQLite file `.trueup/store.sqlite`. The password comes from the
    environment: `PGPASSWORD`, or the whole URL as `TRUEUP_STORE_URL`."""
