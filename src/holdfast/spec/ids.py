"""Identifiers: random version 4 UUIDs in their canonical text form (RFC 9562)."""

import uuid


def new_id() -> str:
    return str(uuid.uuid4())
