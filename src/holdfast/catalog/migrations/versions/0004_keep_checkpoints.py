"""Keep checkpoints of VMs."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("vm", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=63, collation="NOCASE"), nullable=False),
        sa.Column("parent", sa.String(length=36), nullable=True),
        sa.Column("type", sa.String(length=16), nullable=False),
        sa.Column("notes", sa.String(length=4096), nullable=False),
        sa.Column("created", sa.DateTime(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("running_spec", sa.JSON(), nullable=True),
        sa.Column("machine_type", sa.String(length=64), nullable=True),
        sa.Column("acceleration", sa.String(length=8), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("stall_seconds", sa.Float(), nullable=True),
        sa.Column("scheduled", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["vm"], ["vms.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("vm", "name"),
    )
    with op.batch_alter_table("checkpoints", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_checkpoints_vm"), ["vm"], unique=False)
    op.create_table(
        "checkpoint_trees",
        sa.Column("vm", sa.String(length=36), nullable=False),
        sa.Column("current", sa.String(length=36), nullable=True),
        sa.Column("schedule", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(["vm"], ["vms.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("vm"),
    )
