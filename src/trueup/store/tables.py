"""One SQL table a record kind: id, time, the record as JSON, and the columns we select by.

The JSON is the record; the columns are copies of some of its fields. `edges` holds every
child-parent link, so lineage is a query in both directions. `verdicts` is a cache and no record:
what a language model that judges said, by a hash of what it was asked. `erased` are the ids of
records that are gone, `erasures` the jobs that took them, `salts` the keys of users' pseudonyms,
and `audit_trail` says who did what. The `review_` tables are the review page's own: who may log
in, and who looks at which task now. What people answered there is records.
"""

import hashlib
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from trueup import records

__all__ = [
    "ALIASES",
    "EDGES",
    "KINDS",
    "METADATA",
    "REVIEW_ASSIGNMENTS",
    "REVIEW_HISTORY",
    "REVIEW_LEASES",
    "REVIEW_SESSIONS",
    "REVIEW_USERS",
    "TABLES",
    "VERDICTS",
    "column_value",
    "kind_of",
]

MAX_COLUMN_BYTES = 600  # an entry of a Postgres index holds 2,704

METADATA = MetaData()

KINDS: tuple[type[records.Record], ...] = (
    records.Interaction,
    records.Feedback,
    records.Flag,
    records.Label,
    records.PreferencePair,
    records.Dataset,
    records.TrainingRun,
    records.Checkpoint,
    records.SampleSet,
    records.GuardReport,
    records.EvalReport,
    records.ABReport,
    records.Release,
    records.JudgeAudit,
    records.ReviewTask,
)


def _column(kind: type[records.Record], name: str) -> Column[Any]:
    annotation = kind.model_fields[name].annotation
    types = {bool: Boolean, int: Integer, float: Float}
    return Column(name, types.get(annotation, String) if isinstance(annotation, type) else String)


TABLES: dict[type[records.Record], Table] = {
    kind: Table(
        kind.tag,
        METADATA,
        Column("seq", Integer, primary_key=True, autoincrement=True),
        Column("id", String, nullable=False, unique=True),
        Column("created_at", String, nullable=False),
        *(_column(kind, name) for name in kind.indexed),
        Column("body", Text, nullable=False),
    )
    for kind in KINDS
}

EDGES = Table(
    "edges",
    METADATA,
    Column("child", String, nullable=False),
    Column("parent", String, nullable=False),
    UniqueConstraint("child", "parent"),
)

ALIASES = Table(
    "aliases",
    METADATA,
    Column("name", String, primary_key=True),
    Column("release_id", String, nullable=False),
)


VERDICTS = Table(
    "verdicts",
    METADATA,
    Column("key", String, primary_key=True),
    Column("verdict", String, nullable=False),
)

ERASED = Table(
    "erased",
    METADATA,
    Column("id", String, primary_key=True),
    Column("erasure", String, nullable=False),
)

ERASURES = Table(
    "erasures",
    METADATA,
    Column("id", String, primary_key=True),
    Column("started_at", String, nullable=False),
    Column("finished_at", String),
    Column("details", String, nullable=False),
)

SALTS = Table(
    "salts",
    METADATA,
    Column("tenant", String, primary_key=True),
    Column("salt", String, nullable=False),
)

AUDIT_TRAIL = Table(
    "audit_trail",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at", String, nullable=False),
    Column("who", String, nullable=False),
    Column("action", String, nullable=False),
    Column("details", String, nullable=False),
    Column("hash", String, nullable=False),
)

REVIEW_USERS = Table(
    "review_user",
    METADATA,
    Column("name", String, primary_key=True),
    Column("role", String, nullable=False),
    Column("password", String, nullable=False),
    Column("is_active", Boolean, nullable=False),
    Column("created_at", String, nullable=False),
)

REVIEW_SESSIONS = Table(
    "review_session",
    METADATA,
    Column("token", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("csrf", String, nullable=False),
    Column("until", Float, nullable=False),
)

REVIEW_ASSIGNMENTS = Table(
    "review_assignment",
    METADATA,
    Column("task_id", String, nullable=False),
    Column("name", String, nullable=False),
    Column("assigned_by", String, nullable=False),
    UniqueConstraint("task_id", "name"),
)

REVIEW_LEASES = Table(
    "review_lease",
    METADATA,
    Column("task_id", String, nullable=False),
    Column("name", String, nullable=False),
    Column("until", Float, nullable=False),
    UniqueConstraint("task_id", "name"),
)

REVIEW_HISTORY = Table(
    "review_history",
    METADATA,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("name", String, nullable=False),
    Column("task_id", String, nullable=False),
    Column("action", String, nullable=False),
    Column("label_ids", String, nullable=False),
    Column("created_at", String, nullable=False),
)


def kind_of(record_id: str) -> type[records.Record] | None:
    """The record class that an id's tag names, if any."""
    tag = record_id.partition("_")[0]
    return next((kind for kind in KINDS if kind.tag == tag), None)


def column_value(value: Any) -> Any:
    """A field as a Postgres column can hold and index it; the record's JSON keeps it whole. Text
    that is too long, or has a NUL, stands as its beginning and its hash."""
    if not isinstance(value, str):
        return value
    raw = value.encode("utf-8", "surrogatepass")
    if len(raw) <= MAX_COLUMN_BYTES and b"\0" not in raw:
        return value
    start = value[:40].replace("\0", "\N{REPLACEMENT CHARACTER}")
    return f"{start}\N{HORIZONTAL ELLIPSIS}{hashlib.sha256(raw).hexdigest()}"
