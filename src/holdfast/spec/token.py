"""Tokens of the TLS door as they cross the wire; the secret is shown once and never stored."""

from datetime import datetime

from pydantic import Field

from holdfast.spec.access import Role
from holdfast.spec.model import Frozen
from holdfast.spec.names import Name


class TokenCreate(Frozen):
    name: Name
    role: Role
    days: float | None = Field(default=None, gt=0, le=36500)
    """How long it holds; None: until it is deleted."""


class TokenView(Frozen):
    name: str
    role: Role
    created: datetime
    expires: datetime | None
    last_used: datetime | None
    """Kept to the minute."""


class TokenCreated(Frozen):
    token: TokenView
    secret: str
    """`hf_` and 43 characters of base64url: 256 random bits."""
    fingerprint: str | None
    """SHA-256 of the daemon's certificate, `sha256:` and hex digits, for pinning."""
