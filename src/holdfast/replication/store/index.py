"""Indexes: which blocks of which disk changed in a span of cycles, and where the journal holds them.

    magic, 8 bytes │ body │ head, JSON │ BLAKE3 of the head, 32 bytes │ u32 length of the head

A body is, for each disk of the head in its order, `zeros` records of 16 bytes (u64 first block, u64 count:
they read as zeroes), then `blocks` records of 20 bytes (u64 block, u64 place, u32 CRC-32 of its 4 KiB), both
ascending and each block once; then the attachments in the head's order. All little-endian; the head holds
the body's BLAKE3. A block of a span counts over a zero range of the same span, and a span over those before.

A place is the number of a journal file in the upper 24 bits and the number of a block in it in the lower 40.
An index is written once and never changed; it is mapped, not read, so a large one costs little memory.
"""

import mmap
import os
import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from holdfast.replication.store.files import Files
from holdfast.spec.model import Frozen
from holdfast.spec.names import Name
from holdfast.spec.replica import Consistency

BLOCK = 4096
ENTRY = np.dtype([("block", "<u8"), ("at", "<u8"), ("crc", "<u4")])
RANGE = np.dtype([("block", "<u8"), ("count", "<u8")])
FILE_SHIFT = 40
PLACE_MASK = (1 << FILE_SHIFT) - 1

Entries = NDArray[np.void]
"""Of `ENTRY`, ascending by block, each once."""
Ranges = NDArray[np.void]
"""Of `RANGE`, ascending, apart from each other."""
Blocks = NDArray[np.uint64]

_MAGIC = b"HFINDEX\x01"
_LENGTH = struct.Struct("<I")
_FOOT = 32 + _LENGTH.size
_LARGEST_HEAD = 1 << 20
_WINDOW = 1 << 22
"""Entries that are merged at a time, about: 80 MiB."""

NO_ENTRIES: Entries = np.empty(0, ENTRY)
NO_RANGES: Ranges = np.empty(0, RANGE)


class IndexDamaged(Exception):
    """The file is not what was written."""


class Section(Frozen):
    disk: Name
    zeros: int = Field(ge=0)
    blocks: int = Field(ge=0)


class Attached(Frozen):
    name: Name
    length: int = Field(ge=0)


class Head(Frozen):
    version: Literal[1] = 1
    first: int = Field(ge=1)
    last: int = Field(ge=1)
    """The spans of a replica follow each other without gaps."""
    cycle: int
    """The source's number of the last cycle."""
    taken: datetime
    """The instant of the last cycle, by the source's clock."""
    disks: dict[Name, int]
    """Bytes of each disk at that instant."""
    compared: int
    """The last cycle, as `last` counts, that followed a comparison of all disks with the source's."""
    received: int = 0
    """Bytes of data that arrived for the span."""
    consistency: Consistency = Consistency.CRASH
    """Of the last cycle."""
    overwritten: bool = False
    """Of a base: later changes are being written into it, and it is no point any more."""
    end: int = 0
    """The place in the journal that nothing lay at or beyond when the last cycle was whole."""
    files: tuple[int, ...] = ()
    """Numbers of the journal files that the blocks lie in."""
    sections: tuple[Section, ...] = ()
    attached: tuple[Attached, ...] = ()
    body: str = ""
    """BLAKE3 of the body, in hex."""


@dataclass(frozen=True)
class Changes:
    """Of one disk in one span."""

    zeros: Ranges = field(default_factory=lambda: NO_RANGES)
    entries: Entries = field(default_factory=lambda: NO_ENTRIES)

    def within(self, first: int, end: int) -> "Changes":
        """Those of the blocks from `first` up to `end`, which zero ranges may overlap."""
        blocks, begins = self.entries["block"], self.zeros["block"]
        low = bisect_left(blocks, first)  # np.searchsorted would copy all of what is mapped
        low_zero = bisect_left(begins, first)
        if low_zero and int(begins[low_zero - 1]) + int(self.zeros["count"][low_zero - 1]) > first:
            low_zero -= 1
        return Changes(
            self.zeros[low_zero : bisect_left(begins, end)], self.entries[low : bisect_left(blocks, end)]
        )


@dataclass(frozen=True)
class Index:
    """One file. It is mapped while its body is looked at: there are too many to keep all mapped."""

    path: Path
    head: Head

    def changes(self, disk: str) -> Changes:
        """Arrays over the file; what they hold was checked by `require_body` or is not to be trusted."""
        mapped, at = _mapped(self.path), len(_MAGIC)
        for section in self.head.sections:
            entries_at = at + section.zeros * RANGE.itemsize
            end = entries_at + section.blocks * ENTRY.itemsize
            if section.disk == disk:
                return Changes(
                    np.frombuffer(mapped, RANGE, section.zeros, at) if section.zeros else NO_RANGES,
                    np.frombuffer(mapped, ENTRY, section.blocks, entries_at)
                    if section.blocks
                    else NO_ENTRIES,
                )
            at = end
        return Changes()

    def attachments(self) -> dict[str, bytes]:
        at = len(_MAGIC) + sum(_section_bytes(each) for each in self.head.sections)
        found: dict[str, bytes] = {}
        if not self.head.attached:
            return found
        mapped = _mapped(self.path)
        for each in self.head.attached:
            found[each.name] = mapped[at : at + each.length]
            at += each.length
        return found

    def require_body(self) -> None:
        """Raises IndexDamaged where the body is not what was written."""
        end = len(_MAGIC) + sum(map(_section_bytes, self.head.sections))
        end += sum(each.length for each in self.head.attached)
        if blake3(memoryview(_mapped(self.path))[len(_MAGIC) : end]).hexdigest() != self.head.body:
            raise IndexDamaged(f"{self.path.name}: its body does not match its digest")


def _section_bytes(section: Section) -> int:
    return section.zeros * RANGE.itemsize + section.blocks * ENTRY.itemsize


def open_index(path: Path) -> Index:
    """Read an index; its head is checked, and that the body has its length.

    Raises:
        IndexDamaged: it is not what was written.
        OSError: it cannot be read.
    """
    mapped = _mapped(path)
    size = len(mapped)
    (length,) = _LENGTH.unpack_from(mapped, size - _LENGTH.size)
    start = size - _FOOT - length
    digest = mapped[size - _FOOT : size - _LENGTH.size]
    whole = mapped[: len(_MAGIC)] == _MAGIC and length <= _LARGEST_HEAD and start >= len(_MAGIC)
    if not whole or blake3(mapped[start : start + length]).digest() != digest:
        raise IndexDamaged(f"{path.name}: its head does not match its digest")
    try:
        head = Head.model_validate_json(mapped[start : start + length])
    except ValidationError as error:
        raise IndexDamaged(f"{path.name}: its head cannot be read") from error
    body = sum(map(_section_bytes, head.sections)) + sum(each.length for each in head.attached)
    if start != len(_MAGIC) + body:
        raise IndexDamaged(f"{path.name}: a body of {start - len(_MAGIC)} bytes instead of {body}")
    return Index(path, head)


def _mapped(path: Path) -> mmap.mmap:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        if size < len(_MAGIC) + _FOOT:
            raise IndexDamaged(f"{path.name}: it is cut off")
        return mmap.mmap(fd, size, prot=mmap.PROT_READ)
    finally:
        os.close(fd)


class IndexWriter:
    """Writes one file front to back; what is merged need not be in memory as a whole."""

    def __init__(self, files: Files, path: Path) -> None:
        """`path`: there is no such file. Raises OSError, as all methods do."""
        self._files = files
        self._path = path
        self._digest = blake3()
        self._at = 0
        self._sections: list[Section] = []
        self._attached: list[Attached] = []
        self._numbers: set[int] = set()
        self._write(_MAGIC)

    def section(self, disk: str, zeros: Ranges, parts: Iterable[Entries]) -> None:
        """The changes of one disk; `parts` follow each other in ascending order."""
        count = 0
        self._body(zeros.tobytes())
        for part in parts:
            count += len(part)
            self._numbers |= {int(number) for number in np.unique(part["at"] >> FILE_SHIFT)}
            self._body(part.tobytes())
        self._sections.append(Section(disk=disk, zeros=len(zeros), blocks=count))

    def attach(self, name: str, data: bytes) -> None:
        """After all sections."""
        self._body(data)
        self._attached.append(Attached(name=name, length=len(data)))

    def finish(self, head: Head) -> None:
        """Whole and durable afterwards, but for its name. What was written is added to `head`."""
        whole = head.model_copy(
            update={
                "sections": tuple(self._sections),
                "attached": tuple(self._attached),
                "files": tuple(sorted(self._numbers)),
                "body": self._digest.hexdigest(),
            }
        )
        text = whole.model_dump_json().encode()
        self._write(text + blake3(text).digest() + _LENGTH.pack(len(text)))
        self._files.sync(self._path)

    def _body(self, data: bytes) -> None:
        self._digest.update(data)
        self._write(data)

    def _write(self, data: bytes) -> None:
        if data:
            self._files.write(self._path, self._at, data)
            self._at += len(data)


def united(ranges: Ranges) -> Ranges:
    """Ranges in any order, made ascending and apart from each other."""
    if len(ranges) < 2:
        return ranges
    ordered = ranges[np.argsort(ranges["block"], kind="stable")]
    ends = np.maximum.accumulate(ordered["block"] + ordered["count"])
    begins = np.concatenate(([True], ordered["block"][1:] > ends[:-1]))
    joined = np.empty(int(begins.sum()), RANGE)
    joined["block"] = ordered["block"][begins]
    joined["count"] = ends[np.concatenate((begins[1:], [True]))] - joined["block"]
    return joined


def covered(blocks: Blocks, ranges: Ranges) -> NDArray[np.bool_]:
    """Which of the blocks lie in a range."""
    if not len(ranges) or not len(blocks):
        return np.zeros(len(blocks), bool)
    before = np.searchsorted(ranges["block"], blocks, side="right")
    ends = np.concatenate((np.zeros(1, np.uint64), ranges["block"] + ranges["count"]))
    result: NDArray[np.bool_] = blocks < ends[before]
    return result


def newest(entries: Entries) -> tuple[Entries, Blocks]:
    """Of entries in the order that they count in, the last of each block, ascending; places of the others."""
    if not len(entries):
        return NO_ENTRIES, np.empty(0, np.uint64)
    order = np.argsort(entries["block"], kind="stable")
    blocks = entries["block"][order]
    last = np.concatenate((blocks[1:] != blocks[:-1], [True]))
    return entries[order[last]], entries["at"][order[~last]]


def merged(spans: Sequence[Changes]) -> tuple[Changes, Blocks]:
    """What spans, the oldest first, come to together; and the places that nothing needs any more."""
    alive, dead = [], []
    later = NO_RANGES
    for span in reversed(spans):
        gone = covered(span.entries["block"], later)
        alive.append(span.entries[~gone])
        dead.append(span.entries["at"][gone])
        later = united(np.concatenate((later, span.zeros)))
    entries, superseded = newest(np.concatenate(list(reversed(alive))) if alive else NO_ENTRIES)
    return Changes(later, entries), np.concatenate([*dead, superseded]).astype(np.uint64)


class Merging:
    """As `merged`, but a window of blocks at a time, so that memory is bounded."""

    def __init__(self, spans: Sequence[Changes]) -> None:
        self._spans = spans
        self._dead: list[Blocks] = []
        self.zeros = united(np.concatenate([each.zeros for each in spans] or [NO_RANGES]))

    def entries(self) -> Iterator[Entries]:
        """Once."""
        for first, end in windows(self._spans):
            part, gone = merged([each.within(first, end) for each in self._spans])
            self._dead.append(gone)
            yield part.entries

    def dead(self) -> Blocks:
        """Places that nothing needs any more, once all entries have been read."""
        return np.concatenate([*self._dead, np.empty(0, np.uint64)])


def windows(spans: Sequence[Changes]) -> Iterator[tuple[int, int]]:
    """Ranges of blocks, which together are all, that hold about as many entries as are merged at a time."""
    total = sum(len(each.entries) for each in spans)
    count = -(-total // _WINDOW) or 1
    samples = np.sort(
        np.concatenate([each.entries["block"][::256] for each in spans] or [NO_ENTRIES["block"]])
    )
    bounds = [int(samples[len(samples) * i // count]) for i in range(1, count)] if len(samples) else []
    yield from zip([0, *bounds], [*bounds, 1 << 63], strict=True)


def runs(values: Blocks) -> Iterable[tuple[int, int]]:
    """First and count of each run of consecutive numbers in what is ascending."""
    if not len(values):
        return []
    cuts = np.flatnonzero(np.diff(values) != 1) + 1
    starts = np.concatenate(([0], cuts))
    counts = np.diff(np.concatenate((starts, [len(values)])))
    return zip(values[starts].tolist(), counts.tolist(), strict=True)
