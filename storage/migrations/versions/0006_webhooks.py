"""Webhooks that are to be sent."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(80), nullable=False, comment="of the message, the same for every attempt"),
        sa.Column("job_id", sa.String(32), nullable=True, comment="that it tells of"),
        sa.Column("plan_id", sa.String(32), nullable=True, comment="that it tells of"),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("made_at", sa.Float(), nullable=False),
        sa.Column("due_at", sa.Float(), nullable=False, comment="not to be sent before"),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_deliveries_job_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["plan_id"], ["plans.id"], name=op.f("fk_deliveries_plan_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
    )
    for column in ("due_at", "job_id", "plan_id"):
        op.create_index(op.f(f"ix_deliveries_{column}"), "deliveries", [column], unique=False)


def downgrade() -> None:
    """Undo."""
    op.drop_table("deliveries")
