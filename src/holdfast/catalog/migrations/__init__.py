"""Alembic's scripts: each brings the records from one version to the next."""
