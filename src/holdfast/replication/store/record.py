"""What a replica has: its points, and which of them are lost to damage. Values; the file of damages."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from holdfast.replication.store.index import Head
from holdfast.spec.model import Frozen
from holdfast.spec.names import Name
from holdfast.spec.replica import Consistency


@dataclass(frozen=True)
class Cycle:
    """One instant of a VM, as its source announces it."""

    number: int
    """The source's; each is greater than the one before."""
    taken: datetime
    """By the source's clock, with a zone."""
    disks: dict[str, int]
    """Bytes of each."""
    base: int = 0
    """The source's number of the cycle that it changes; 0: none, what is not sent reads as zeroes.

    A cycle of base 0 is a full copy and brings every attachment.
    """
    compared: bool = False
    """It brings all that a comparison of both sides found to differ, and every attachment.

    `base` is then not looked at.
    """
    consistency: Consistency = Consistency.CRASH


@dataclass(frozen=True)
class Point:
    """A cycle that arrived whole and can be opened, unless it is lost."""

    number: int
    """The receiver's, rising without gaps as cycles arrive."""
    cycle: int
    taken: datetime
    disks: dict[str, int]
    received: int
    """Bytes that arrived since the point before, as far as points are kept."""
    lost: str = ""
    """Why it cannot be opened."""
    consistency: Consistency = Consistency.CRASH


class Damage(Frozen):
    first: int
    """The first point that is lost by it."""
    found: int
    """The newest point when it was found: one that was compared later is whole again."""
    until: int | None = None
    """From this point on the damaged blocks do not matter any more."""
    reason: str
    disks: tuple[Name, ...] = ()
    """Those that have damaged blocks; empty: it is not known."""


class Damages(Frozen):
    damages: tuple[Damage, ...] = ()


def reason_lost(head: Head, damages: Iterable[Damage]) -> str:
    """Why the point that `head` ends with cannot be used; empty: it can."""
    for each in damages:
        mended = head.compared > each.found or (each.until is not None and head.last >= each.until)
        if head.last >= each.first and not mended:
            return each.reason
    return ""


def points_of(heads: Sequence[Head], damages: Sequence[Damage]) -> tuple[Point, ...]:
    """The oldest first."""
    return tuple(
        Point(
            number=head.last,
            cycle=head.cycle,
            taken=head.taken,
            disks=dict(head.disks),
            received=head.received,
            lost=reason_lost(head, damages),
            consistency=head.consistency,
        )
        for head in heads
    )


def read_damages(path: Path) -> tuple[Damage, ...] | None:
    """None: the file itself cannot be read, and damage is to be looked for anew."""
    try:
        return Damages.model_validate_json(path.read_bytes()).damages
    except FileNotFoundError:
        return ()
    except (OSError, ValidationError):
        return None
