"""A VM may be replicated to several peers."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "replications_by_peer",
        sa.Column("vm", sa.String(length=36), nullable=False),
        sa.Column("peer", sa.String(length=63, collation="NOCASE"), nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["vm"], ["vms.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("vm", "peer"),
    )
    op.execute("INSERT INTO replications_by_peer SELECT vm, peer, record FROM replications")
    op.drop_table("replications")
    op.rename_table("replications_by_peer", "replications")
    op.create_index("ix_replications_peer", "replications", ["peer"])
