"""What is kept, how long a lease was granted for, and evaluations found by their job."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

KEPT = "name under which it is kept when others are aged out"
GRANTED = "for how long it was granted: a longer lease is of before the clock was set"


def upgrade() -> None:
    """Apply."""
    op.add_column("jobs", sa.Column("lease_seconds", sa.Float(), nullable=True, comment=GRANTED))
    for table in ("jobs", "plans"):
        op.add_column(table, sa.Column("kept", sa.Text(), nullable=True, comment=KEPT))
    op.create_index(op.f("ix_evaluations_job_id"), "evaluations", ["job_id"], unique=False)


def downgrade() -> None:
    """Undo."""
    op.drop_index(op.f("ix_evaluations_job_id"), "evaluations")
    for table in ("jobs", "plans"):
        op.drop_column(table, "kept")
    op.drop_column("jobs", "lease_seconds")
