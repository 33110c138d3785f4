"""Secrets that are given to a guest only while its verdict holds."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from holdfast.spec.model import Frozen

MAX_SECRET = 64 * 1024
"""Bytes."""

SecretName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
GuestPath = Annotated[str, Field(pattern=r"^/[^\x00-\x1f\x7f]{1,1000}$")]


class SecretAdd(Frozen):
    """A secret for one VM; one of the same name is replaced."""

    name: SecretName
    content: Annotated[str, Field(max_length=MAX_SECRET * 4 // 3 + 4, repr=False)]
    """Base64 (RFC 4648, section 4)."""


class SecretView(Frozen):
    """All that is told of a secret; never its content."""

    name: str
    size: int
    """Bytes."""
    stored: datetime


class SecretRelease(Frozen):
    """Put a secret into the guest, which must pass at this moment."""

    name: SecretName
    path: GuestPath | None = None
    """Where, in the guest; None: a file of its name in `/run/holdfast/secrets`."""
