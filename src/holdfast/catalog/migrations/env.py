"""Alembic's entry point: runs the migrations on the connection that `catalog.store` hands over."""

from alembic import context

from holdfast.catalog.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    render_as_batch=True,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
