"""Searches instead of numbered stages of jobs, of which every job had one: number 0."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SEARCH = "job_id, target_length, study, started_at, ended_at, prepared"
CANDIDATE = "job_id, part, number, generation, state, key, scope, factors, losses_so_far, reused, projected"


def upgrade() -> None:
    """Apply."""
    _create_parents("searches")
    op.execute(f"INSERT INTO searches ({SEARCH}) SELECT {SEARCH} FROM stages WHERE number = 0")
    _set_candidates_aside()
    _create_candidates(sa.ForeignKeyConstraint(["job_id"], ["searches.job_id"], ondelete="CASCADE"))
    op.execute(f"INSERT INTO candidates ({CANDIDATE}) SELECT {CANDIDATE} FROM candidates_before WHERE stage = 0")
    op.drop_table("candidates_before")  # first: dropping their parents would delete candidates with them
    op.drop_table("stages")


def downgrade() -> None:
    """Undo."""
    number = sa.Column("number", sa.Integer(), nullable=False)
    _create_parents("stages", number)
    op.execute(f"INSERT INTO stages (number, {SEARCH}) SELECT 0, {SEARCH} FROM searches")
    _set_candidates_aside()
    parents = sa.ForeignKeyConstraint(["job_id", "stage"], ["stages.job_id", "stages.number"], ondelete="CASCADE")
    _create_candidates(parents, sa.Column("stage", sa.Integer(), nullable=False))
    op.execute(f"INSERT INTO candidates (stage, {CANDIDATE}) SELECT 0, {CANDIDATE} FROM candidates_before")
    op.drop_table("candidates_before")
    op.drop_table("searches")


def _create_parents(name: str, *numbers: sa.Column[int]) -> None:
    key = ["job_id", *(column.name for column in numbers)]
    prepared = "geometry, closed forms and documents: what figures are drawn of"
    op.create_table(
        name,
        sa.Column("job_id", sa.String(length=32), nullable=False),
        *numbers,
        sa.Column("target_length", sa.Integer(), nullable=False),
        sa.Column("study", sa.String(length=200), nullable=False, comment="name of its Optuna study"),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("prepared", sa.JSON(), nullable=False, comment=prepared),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f(f"fk_{name}_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint(*key, name=op.f(f"pk_{name}")),
    )


def _set_candidates_aside() -> None:
    """Rename the table; PostgreSQL keeps names of indexes in one space, so that of its key is made free."""
    op.drop_index(op.f("ix_candidates_key"), "candidates")
    op.rename_table("candidates", "candidates_before")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE candidates_before RENAME CONSTRAINT pk_candidates TO pk_candidates_before")


def _create_candidates(parents: sa.ForeignKeyConstraint, *numbers: sa.Column[int]) -> None:
    running = "mean loss of each document known while it runs"
    parents.name = op.f("fk_candidates_" + "_".join(parents.column_keys))
    op.create_table(
        "candidates",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        *numbers,
        sa.Column("part", sa.String(length=16), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False, comment="in the order proposed, from 0"),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False, comment="of its evaluation"),
        sa.Column("scope", sa.String(length=32), nullable=False, comment="of its evaluation"),
        sa.Column("factors", sa.JSON(), nullable=False),
        sa.Column("losses_so_far", sa.JSON(), nullable=True, comment=running),
        sa.Column("reused", sa.Boolean(), nullable=False, comment="whether the evaluation was known before"),
        sa.Column("projected", sa.String(length=16), nullable=True, comment="the state that Optuna's tables show"),
        parents,
        sa.PrimaryKeyConstraint(
            "job_id", *(column.name for column in numbers), "part", "number", name=op.f("pk_candidates")
        ),
    )
    op.create_index(op.f("ix_candidates_key"), "candidates", ["key"], unique=False)
