"""Events: what happened, in order, with ids from which a reader can go on."""

from datetime import datetime
from typing import Any

from holdfast.spec.model import Frozen


class Event(Frozen):
    id: int
    """Grows by at least one with every event of this host; never used twice."""
    time: datetime
    kind: str
    """`vm.started`, `vm.failed`, `operation.progress`, `image.added`, ..."""
    subject: str
    """Name of the VM, image, switch or operation."""
    data: dict[str, Any] = {}
