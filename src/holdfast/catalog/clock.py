"""Times in records: UTC without a zone, as SQLite compares them; models carry the zone."""

from datetime import UTC, datetime


def now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def aware(stored: datetime) -> datetime:
    """A stored time as models carry it."""
    return stored.replace(tzinfo=UTC)
