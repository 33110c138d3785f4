"""Know tests of failovers, and when they are to be made."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_table(
        "failover_tests",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("replica", sa.String(length=63, collation="NOCASE"), nullable=False),
        sa.Column("started", sa.DateTime(), nullable=False),
        sa.Column("ended", sa.Boolean(), nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_failover_tests_replica", "failover_tests", ["replica"])
    op.create_index("ix_failover_tests_ended", "failover_tests", ["ended"])
    op.create_table(
        "failover_test_plans",
        sa.Column("replica", sa.String(length=63, collation="NOCASE"), nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("replica"),
    )
