"""Know which replicas are sent on to further hosts."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.create_table(
        "replica_extensions",
        sa.Column("vm", sa.String(length=36), nullable=False),
        sa.Column("peer", sa.String(length=63, collation="NOCASE"), nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("vm", "peer"),
    )
    op.create_index("ix_replica_extensions_peer", "replica_extensions", ["peer"])
