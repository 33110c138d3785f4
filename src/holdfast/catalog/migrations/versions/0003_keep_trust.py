"""Keep what is known of VMs' trust, and the verdicts on them."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "trust",
        sa.Column("vm", sa.String(length=36), nullable=False),
        sa.Column("enrolment", sa.JSON(), nullable=True),
        sa.Column("policy", sa.JSON(), nullable=True),
        sa.Column("interval_seconds", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["vm"], ["vms.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("vm"),
    )
    op.create_table(
        "verdicts",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("vm", sa.String(length=36), nullable=False),
        sa.Column("time", sa.DateTime(), nullable=False),
        sa.Column("verdict", sa.String(length=8), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["vm"], ["vms.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("number"),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("verdicts", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_verdicts_vm"), ["vm"], unique=False)
