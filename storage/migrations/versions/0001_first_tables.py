"""Tables of jobs, evaluations, events, keys and coordinators."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False, comment="of the whole key, which is random and long"),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("revoked_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("sha256", name=op.f("uq_api_keys_sha256")),
    )
    op.create_table(
        "coordinators",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("process", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=False),
        sa.Column("capacity", sa.JSON(), nullable=False, comment="workers alive and busy, processors, GPUs"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_coordinators")),
    )
    op.create_table(
        "evaluations",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column(
            "scope",
            sa.String(length=32),
            nullable=False,
            comment="empty if every job may use it, else the job it holds for",
        ),
        sa.Column("job_id", sa.String(length=32), nullable=False, comment="the job that had it computed"),
        sa.Column("part", sa.String(length=16), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("factors", sa.JSON(), nullable=False),
        sa.Column("losses", sa.JSON(), nullable=False),
        sa.Column("tokens", sa.JSON(), nullable=False),
        sa.Column("losses_at", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("worker", sa.String(length=100), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("recorded_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("key", "scope", name=op.f("pk_evaluations")),
    )
    with op.batch_alter_table("evaluations", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_evaluations_outcome"), ["outcome"], unique=False)

    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("spec_sha256", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column(
            "request",
            sa.String(length=16),
            nullable=True,
            comment="pause or cancel: what a coordinator shall do as soon as it can",
        ),
        sa.Column("idempotency_key", sa.String(length=200), nullable=True),
        sa.Column(
            "request_sha256",
            sa.String(length=64),
            nullable=False,
            comment="of the submitted specification, budget included",
        ),
        sa.Column("submitted_by", sa.String(length=16), nullable=True, comment="id of an API key"),
        sa.Column("submitted_at", sa.Float(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=True),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("owner", sa.String(length=64), nullable=True, comment="the coordinator that drives it, or did last"),
        sa.Column(
            "attempt",
            sa.Integer(),
            nullable=False,
            comment="raised by each claim; with owner, the fence of every write",
        ),
        sa.Column("claims_in_vain", sa.Integer(), nullable=False, comment="claims since something was last recorded"),
        sa.Column("lease_until", sa.Float(), nullable=True),
        sa.Column(
            "waits_until", sa.Float(), nullable=True, comment="not to be claimed before: it did not fit the capacity"
        ),
        sa.Column("events", sa.Integer(), nullable=False, comment="number of the last event"),
        sa.Column("progress", sa.JSON(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("factors", sa.JSON(), nullable=True, comment="the factors file"),
        sa.Column("report", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_jobs_idempotency_key")),
    )
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_jobs_state_submitted_at"), ["state", "submitted_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_jobs_submitted_at_id"), ["submitted_at", "id"], unique=False)

    op.create_table(
        "events",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False, comment="from 1 without gaps, in the order of the commits"),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_events_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_events")),
    )
    op.create_table(
        "stages",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("target_length", sa.Integer(), nullable=False),
        sa.Column("study", sa.String(length=200), nullable=False, comment="name of its Optuna study"),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column(
            "prepared",
            sa.JSON(),
            nullable=False,
            comment="geometry, closed forms and documents: what figures are drawn of",
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_stages_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_stages")),
    )
    op.create_table(
        "candidates",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("part", sa.String(length=16), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False, comment="in the order proposed, from 0"),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False, comment="of its evaluation"),
        sa.Column("scope", sa.String(length=32), nullable=False, comment="of its evaluation"),
        sa.Column("factors", sa.JSON(), nullable=False),
        sa.Column("losses_so_far", sa.JSON(), nullable=True, comment="mean loss of each document known while it runs"),
        sa.Column("reused", sa.Boolean(), nullable=False, comment="whether the evaluation was known before"),
        sa.Column("projected", sa.String(length=16), nullable=True, comment="the state that Optuna's tables show"),
        sa.ForeignKeyConstraint(
            ["job_id", "stage"],
            ["stages.job_id", "stages.number"],
            name=op.f("fk_candidates_job_id_stage"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("job_id", "stage", "part", "number", name=op.f("pk_candidates")),
    )
    with op.batch_alter_table("candidates", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_candidates_key"), ["key"], unique=False)


def downgrade() -> None:
    """Undo."""
    with op.batch_alter_table("candidates", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_candidates_key"))

    op.drop_table("candidates")
    op.drop_table("stages")
    op.drop_table("events")
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_jobs_submitted_at_id"))
        batch_op.drop_index(batch_op.f("ix_jobs_state_submitted_at"))

    op.drop_table("jobs")
    with op.batch_alter_table("evaluations", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_evaluations_outcome"))

    op.drop_table("evaluations")
    op.drop_table("coordinators")
    op.drop_table("api_keys")
