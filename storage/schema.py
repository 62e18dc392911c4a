"""The tables. Times are seconds since 1970 (UTC) by the database's clock, so that leases need no common clock."""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

plans = Table(
    "plans",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", Text, nullable=False),
    Column("spec", JSON, nullable=False, comment="with all stages spelled out"),
    Column("state", String(16), nullable=False, comment="of the whole; while it is running, its job says more"),
    Column("stage", Integer, nullable=False, comment="number of the present one; how many there are at the end"),
    Column("idempotency_key", String(200), unique=True),
    Column("request_sha256", String(64), nullable=False, comment="of the submitted specification"),
    Column("submitted_by", String(16), comment="id of an API key"),
    Column("submitted_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("events", Integer, nullable=False, comment="number of the last event"),
    Column("error", Text),
    Column("kept", Text, comment="name under which it is kept when others are aged out"),
    Index(None, "state"),
    Index(None, "submitted_at", "id"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", Text, nullable=False),
    Column("kind", String(16), nullable=False, server_default="search"),
    Column("plan_id", String(32), comment="of which it is a stage"),
    Column("plan_stage", Text, comment="name of that stage"),
    Column("spec", JSON, nullable=False),
    Column("spec_sha256", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("request", String(16), comment="pause or cancel: what a coordinator shall do as soon as it can"),
    Column("idempotency_key", String(200), unique=True),
    Column("request_sha256", String(64), nullable=False, comment="of the submitted specification, budget included"),
    Column("submitted_by", String(16), comment="id of an API key"),
    Column("submitted_at", Float, nullable=False),
    Column("started_at", Float),
    Column("ended_at", Float),
    Column("owner", String(64), comment="the coordinator that drives it, or did last"),
    Column("attempt", Integer, nullable=False, comment="raised by each claim; with owner, the fence of every write"),
    Column("claims_in_vain", Integer, nullable=False, comment="claims since something was last recorded"),
    Column("lease_until", Float),
    Column(
        "lease_seconds", Float, comment="for how long it was granted: a longer lease is of before the clock was set"
    ),
    Column("waits_until", Float, comment="not to be claimed before: it did not fit the capacity"),
    Column("events", Integer, nullable=False, comment="number of the last event"),
    Column("progress", JSON, nullable=False),
    Column("error", Text),
    Column("factors", JSON, comment="the factors file"),
    Column("report", JSON),
    Column("outcome", JSON, comment="what it hands to the stages behind it, if it is one of a plan"),
    Column(
        "tokens",
        BigInteger,
        nullable=False,
        server_default="0",
        comment="scored or read by devices for it; evaluations that others had computed cost nothing",
    ),
    Column("device_seconds", Float, nullable=False, server_default="0", comment="that devices computed for it"),
    Column("kept", Text, comment="name under which it is kept when others are aged out"),
    Index(None, "state", "submitted_at"),
    Index(None, "spec_sha256"),
    Index(None, "submitted_at", "id"),
    Index(None, "plan_id"),
)

plan_stages = Table(
    "plan_stages",
    metadata,
    Column("plan_id", String(32), ForeignKey("plans.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("work", JSON, comment="what is to be done, once the stages before it have ended"),
    Column("job_id", String(32), ForeignKey("jobs.id", ondelete="SET NULL"), comment="that does it, or had done it"),
    Column("reused", Boolean, nullable=False, comment="whether the job had done it for another plan, or before"),
    Column("outcome", JSON, comment="what it hands to those behind it"),
)

searches = Table(
    "searches",  # of jobs that evaluate candidates, one each
    metadata,
    Column("job_id", String(32), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("target_length", Integer, nullable=False),
    Column("study", String(200), nullable=False, comment="name of its Optuna study"),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("prepared", JSON, nullable=False, comment="geometry, closed forms and documents: what figures are drawn of"),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("scope", String(32), primary_key=True, comment="empty if every job may use it, else the job it holds for"),
    Column("job_id", String(32), nullable=False, comment="the job that had it computed"),
    Column("part", String(16), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("factors", JSON, nullable=False),
    Column("losses", JSON, nullable=False),
    Column("tokens", JSON, nullable=False),
    Column("losses_at", JSON, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("worker", String(100), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("error", Text),
    Column("recorded_at", Float, nullable=False),
    Index(None, "outcome"),
    Index(None, "job_id"),
)

candidates = Table(
    "candidates",
    metadata,
    Column("job_id", String(32), ForeignKey("searches.job_id", ondelete="CASCADE"), primary_key=True),
    Column("part", String(16), primary_key=True),
    Column("number", Integer, primary_key=True, comment="in the order proposed, from 0"),
    Column("generation", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("key", String(64), nullable=False, comment="of its evaluation"),
    Column("scope", String(32), nullable=False, comment="of its evaluation"),
    Column("factors", JSON, nullable=False),
    Column("losses_so_far", JSON, comment="mean loss of each document known while it runs"),
    Column("reused", Boolean, nullable=False, comment="whether the evaluation was known before"),
    Column("projected", String(16), comment="the state that Optuna's tables show"),
    Index(None, "key"),
)

events = Table(
    "events",
    metadata,
    Column("job_id", String(32), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, comment="from 1 without gaps, in the order of the commits"),
    Column("at", Float, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("data", JSON, nullable=False),
)

plan_events = Table(
    "plan_events",
    metadata,
    Column("plan_id", String(32), ForeignKey("plans.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, comment="from 1 without gaps, in the order of the commits"),
    Column("at", Float, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("data", JSON, nullable=False),
)

deliveries = Table(
    "deliveries",  # webhooks that are to be sent
    metadata,
    Column("id", String(80), primary_key=True, comment="of the message, the same for every attempt"),
    Column("job_id", String(32), ForeignKey("jobs.id", ondelete="CASCADE"), comment="that it tells of"),
    Column("plan_id", String(32), ForeignKey("plans.id", ondelete="CASCADE"), comment="that it tells of"),
    Column("url", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("made_at", Float, nullable=False),
    Column("due_at", Float, nullable=False, comment="not to be sent before"),
    Column("attempts", Integer, nullable=False),
    Index(None, "due_at"),
    Index(None, "job_id"),
    Index(None, "plan_id"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", Text, nullable=False),
    Column("sha256", String(64), nullable=False, unique=True, comment="of the whole key, which is random and long"),
    Column("scopes", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
)

coordinators = Table(
    "coordinators",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("host", Text, nullable=False),
    Column("process", Integer, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("seen_at", Float, nullable=False),
    Column("capacity", JSON, nullable=False, comment="workers alive and busy, processors, GPUs"),
)


class now(FunctionElement[float]):  # noqa: N801 - reads like SQL's own function
    """The database's clock, in seconds since 1970."""

    type = Float()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: SQLCompiler, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: SQLCompiler, **options: Any) -> str:
    return "extract(epoch from clock_timestamp())::float"
