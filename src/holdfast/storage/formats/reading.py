"""Bounded reading of a file that nobody vouches for: every offset in it may be a lie."""

import os
import stat
import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from holdfast.spec.image import ImageKind
from holdfast.spec.units import TIB, format_size
from holdfast.storage.formats.refusals import (
    ImageDamaged,
    ImageNotRecognized,
    ImageSizeAbsurd,
    ImageTruncated,
)

MAX_DISK = 64 * TIB
SECTOR = 512
LONGEST_SHOWN = 200
"""Characters of a name in a file that people are shown."""
MOST_ENTRIES = 1 << 23
"""Table entries looked at in one file; more would take longer than a person waits."""

Format = Literal["raw", "qcow2", "vmdk", "vpc", "vhdx", "iso", "kernel", "initrd"]
"""QEMU's names where it has one; `vpc` is VHD."""


@dataclass(frozen=True)
class Inspection:
    format: Format
    kind: ImageKind
    virtual_size: int
    """Bytes that a guest sees."""


class Reader:
    """An open regular file, read in bounded pieces. Raises ImageTruncated beyond its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # A FIFO would block at opening, a device at reading.
        self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(self._fd)
            raise ImageNotRecognized(
                f"{path.name!r} is not a regular file", value=path.name, cure="Give an image file."
            )
        self.size = found.st_size
        self._start = 0
        self._entries = 0

    @classmethod
    def within(cls, fd: int, start: int, size: int, name: str) -> Self:
        """Reads `size` bytes of an open file from byte `start` on, as if they were a file of this name.

        `fd` stays open when the reader is closed.
        """
        reader = cls.__new__(cls)
        reader.path, reader._fd = Path(name), os.dup(fd)
        reader.size, reader._start, reader._entries = size, start, 0
        return reader

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        os.close(self._fd)

    def peek(self, offset: int, length: int) -> bytes:
        """What there is of these bytes; empty beyond the end."""
        if not 0 <= offset < self.size:
            return b""
        return os.pread(self._fd, min(length, self.size - offset), self._start + offset)

    def read(self, offset: int, length: int, what: str) -> bytes:
        self.require(offset, length, what)
        return os.pread(self._fd, length, self._start + offset)

    def require(self, offset: int, length: int, what: str) -> None:
        """Pass where the file reaches that far."""
        if offset + length > self.size:
            raise ImageTruncated(
                f"the file has {self.size} bytes, but {what} reaches to byte {offset + length}",
                value=self.size,
                cure="The file was cut off on its way: copy or download it again.",
                detail={"needed": offset + length},
            )

    def read_into(self, offset: int, buffer: memoryview, what: str) -> None:
        """Fill `buffer` with what begins at `offset`."""
        self.require(offset, len(buffer), what)
        filled = 0
        while filled < len(buffer):
            count = os.preadv(self._fd, [buffer[filled:]], self._start + offset + filled)
            if count == 0:  # the file was made shorter after it was opened
                self.size = offset + filled
                self.require(offset, len(buffer), what)
            filled += count

    @property
    def seen_enough(self) -> bool:
        return self._entries > MOST_ENTRIES

    def table(self, offset: int, count: int, code: Literal["I", "Q"], big: bool, what: str) -> "array[int]":
        """`count` unsigned integers of 4 (`I`) or 8 (`Q`) bytes; empty once enough were looked at."""
        self.require(offset, count * (4 if code == "I" else 8), what)
        entries = array(code)
        self._entries += count
        if not self.seen_enough:
            entries.frombytes(os.pread(self._fd, count * entries.itemsize, self._start + offset))
            if big is (sys.byteorder == "little"):
                entries.byteswap()
        return entries

    def require_starts(self, offsets: Iterable[int], what: str) -> None:
        """Pass where something begins within the file at every offset."""
        self.require(max(offsets, default=0), 1 if self.size else 0, what)


def disk(reader: Reader, format: Format, size: int) -> Inspection:
    """A disk image whose header says `size` bytes. Raises ImageSizeAbsurd."""
    if not SECTOR <= size <= MAX_DISK:
        raise ImageSizeAbsurd(
            f"the {format} image says that its disk has {size} bytes"
            f" ({format_size(size)}); from {SECTOR} bytes to {format_size(MAX_DISK)} are possible",
            value=size,
            cure="The file is damaged or not what it claims to be: get it again from its source.",
        )
    return Inspection(format, ImageKind.DISK, size)


def damaged(format: str, what: str) -> ImageDamaged:
    return ImageDamaged(
        f"the {format} header is not consistent: {what}",
        value=what,
        cure="The file is damaged or not what it claims to be: get it again from its source.",
    )
