"""Know attested hosts."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "attested_hosts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63, collation="NOCASE"), nullable=False),
        sa.Column("enrolled", sa.DateTime(), nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    with op.batch_alter_table("attested_hosts", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_attested_hosts_enrolled"), ["enrolled"], unique=False)
