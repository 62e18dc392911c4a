"""What jobs have cost: tokens and seconds of devices."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TOKENS = "scored or read by devices for it; evaluations that others had computed cost nothing"
SECONDS = "that devices computed for it"


def upgrade() -> None:
    """Apply."""
    tokens = sa.Column("tokens", sa.BigInteger(), nullable=False, server_default="0", comment=TOKENS)
    seconds = sa.Column("device_seconds", sa.Float(), nullable=False, server_default="0", comment=SECONDS)
    for column in (tokens, seconds):
        op.add_column("jobs", column)
    op.create_index(op.f("ix_jobs_plan_id"), "jobs", ["plan_id"], unique=False)


def downgrade() -> None:
    """Undo."""
    op.drop_index(op.f("ix_jobs_plan_id"), "jobs")
    for name in ("device_seconds", "tokens"):
        op.drop_column("jobs", name)
