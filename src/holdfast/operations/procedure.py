"""What long work is made of: a procedure is a list of phases, each with its own undo.

    do 1 ─▶ do 2 ─▶ do 3 ─▶ succeeded
              │ error or cancel
              ▼
    undo 1 ◀─ undo 2        ─▶ failed / cancelled

After a `kill -9` the phase that was under way runs again from its beginning, so `do` must be safe
to run twice, and `undo` safe whether `do` never ran, ran in part, or ran whole.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass
class Job:
    """One run of a procedure, as its phases see it."""

    id: str
    kind: str
    subject: str
    actor: str
    params: dict[str, Any]
    """What was asked for; never changed."""
    notes: dict[str, Any]
    """JSON that phases leave for later ones; kept when a phase ends, or at once by `keep`."""
    report: Callable[[float, str], None] = field(repr=False)
    keep_notes: Callable[[], Awaitable[None]] = field(repr=False)

    def progress(self, fraction: float, text: str = "") -> None:
        """How far this phase is, 0 to 1, and in words. Cheap; may be called often."""
        self.report(min(max(fraction, 0.0), 1.0), text)

    async def keep(self) -> None:
        """Make `notes` durable now, before the phase ends."""
        await self.keep_notes()


class Phase(Protocol):
    """One step. `title` is shown while it runs; `weight` is its share of the whole progress."""

    title: str
    weight: float

    async def do(self, job: Job) -> None: ...

    async def undo(self, job: Job) -> None: ...


@dataclass(frozen=True)
class Procedure:
    kind: str
    """`vm.create`, `image.pull`, ...; stored, so never renamed."""
    phases: tuple[Phase, ...]
    result: Callable[[Job], dict[str, Any]] | None = None
    """Made from the job once every phase is done."""
