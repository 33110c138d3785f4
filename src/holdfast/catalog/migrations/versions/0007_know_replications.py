"""Know VMs that are replicated, and those that are held for others."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("replica_tokens", sa.Column("limits", sa.JSON(), nullable=False, server_default="{}"))
    op.create_table(
        "replications",
        sa.Column("vm", sa.String(length=36), nullable=False),
        sa.Column("peer", sa.String(length=63, collation="NOCASE"), nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["vm"], ["vms.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("vm"),
    )
    op.create_index("ix_replications_peer", "replications", ["peer"])
    op.create_table(
        "replicas",
        sa.Column("name", sa.String(length=63, collation="NOCASE"), nullable=False),
        sa.Column("vm", sa.String(length=36), nullable=False),
        sa.Column("source", sa.String(length=80), nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
        sa.UniqueConstraint("vm"),
    )
    op.create_index("ix_replicas_source", "replicas", ["source"])
