"""Plans, their stages and events; jobs that are stages of plans."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "plans",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False, comment="with all stages spelled out"),
        sa.Column(
            "state",
            sa.String(length=16),
            nullable=False,
            comment="of the whole; while it is running, its job says more",
        ),
        sa.Column(
            "stage",
            sa.Integer(),
            nullable=False,
            comment="number of the present one; how many there are at the end",
        ),
        sa.Column("idempotency_key", sa.String(length=200), nullable=True),
        sa.Column("request_sha256", sa.String(length=64), nullable=False, comment="of the submitted specification"),
        sa.Column("submitted_by", sa.String(length=16), nullable=True, comment="id of an API key"),
        sa.Column("submitted_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("events", sa.Integer(), nullable=False, comment="number of the last event"),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plans")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_plans_idempotency_key")),
    )
    op.create_index(op.f("ix_plans_state"), "plans", ["state"], unique=False)
    op.create_index(op.f("ix_plans_submitted_at_id"), "plans", ["submitted_at", "id"], unique=False)
    _add_columns_of_jobs()
    op.create_table(
        "plan_events",
        sa.Column("plan_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False, comment="from 1 without gaps, in the order of the commits"),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["plan_id"], ["plans.id"], name=op.f("fk_plan_events_plan_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("plan_id", "number", name=op.f("pk_plan_events")),
    )
    op.create_table(
        "plan_stages",
        sa.Column("plan_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("work", sa.JSON(), nullable=True, comment="what is to be done, once the stages before it have ended"),
        sa.Column("job_id", sa.String(length=32), nullable=True, comment="that does it, or had done it"),
        sa.Column(
            "reused",
            sa.Boolean(),
            nullable=False,
            comment="whether the job had done it for another plan, or before",
        ),
        sa.Column("outcome", sa.JSON(), nullable=True, comment="what it hands to those behind it"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_plan_stages_job_id"), ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["plan_id"], ["plans.id"], name=op.f("fk_plan_stages_plan_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("plan_id", "number", name=op.f("pk_plan_stages")),
    )


def _add_columns_of_jobs() -> None:
    """In place: a table that is made anew and swapped would take its jobs' events and candidates with it."""
    op.add_column("jobs", sa.Column("kind", sa.String(length=16), server_default="search", nullable=False))
    op.add_column("jobs", sa.Column("plan_id", sa.String(length=32), nullable=True, comment="of which it is a stage"))
    op.add_column("jobs", sa.Column("plan_stage", sa.Text(), nullable=True, comment="name of that stage"))
    op.add_column(
        "jobs",
        sa.Column(
            "outcome",
            sa.JSON(),
            nullable=True,
            comment="what it hands to the stages behind it, if it is one of a plan",
        ),
    )
    op.create_index(op.f("ix_jobs_spec_sha256"), "jobs", ["spec_sha256"], unique=False)


def downgrade() -> None:
    """Undo."""
    op.drop_table("plan_stages")
    op.drop_table("plan_events")
    op.drop_index(op.f("ix_jobs_spec_sha256"), "jobs")
    for column in ("outcome", "plan_stage", "plan_id", "kind"):
        op.drop_column("jobs", column)
    op.drop_table("plans")
