"""Long work as a person sees it: one Operation with progress, cancel and an end."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from holdfast.spec.model import Frozen


class OperationState(StrEnum):
    RUNNING = "running"
    UNDOING = "undoing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (self.SUCCEEDED, self.FAILED, self.CANCELLED)


class Operation(Frozen):
    id: str
    kind: str
    """`vm.create`, `image.pull`, ..."""
    subject: str
    """Name of what it works on."""
    state: OperationState
    phase: str = ""
    """The step under way, in words."""
    progress: float = 0.0
    """0 to 1 of the whole."""
    text: str = ""
    """Amounts and rate, for people: `412 MiB of 650 MiB, 88 MiB/s`."""
    error: dict[str, Any] | None = None
    """`HoldfastError.as_dict` of what ended it."""
    result: dict[str, Any] | None = None
    actor: str = ""
    """Who asked for it."""
    created: datetime
    ended: datetime | None = None
