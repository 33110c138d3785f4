"""Reads what a guest sees on a disk: a chain of qcow2 and raw files, in this process and read-only.

No program is started, nothing is locked or mounted, and no name in a header is followed: the chain is
given. The disk may belong to a running VM. Its QEMU keeps changed tables in memory for a while, so
what is read may be some moments old, and a table caught in the middle of a change is refused as
damaged. qcow2 versions 2 and 3 with extended L2 entries and deflate (QEMU, docs/interop/qcow2.rst).
"""

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import Protocol

from holdfast.spec.attachment import Layer
from holdfast.storage.formats.qcow2 import Header, read_header
from holdfast.storage.formats.reading import Reader, damaged
from holdfast.storage.formats.refusals import ImageFeatureUnknown

_OFFSET = 0x00FFFFFFFFFFFE00  # bits 9 to 55 of an L1 or L2 entry
_COMPRESSED = 1 << 62
_ZERO = 1
_KEPT_CLUSTERS = 16
_MOST_INFLATED = 1024**3
"""Bytes unpacked for one reader: far more than loaders have, and an end for what points in circles."""


class Bytes(Protocol):
    """Something that can be read at any place."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; beyond the end they are zeros."""
        ...


class _Kind(Enum):
    """Where a piece of a disk is."""

    HERE = auto()
    BELOW = auto()
    ZERO = auto()


def _subcluster(bitmap: int, index: int) -> _Kind:
    if bitmap >> 32 + index & 1:
        return _Kind.ZERO
    return _Kind.HERE if bitmap >> index & 1 else _Kind.BELOW


class _Raw:
    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.size = reader.size

    def read(self, offset: int, length: int) -> bytes:
        return self._reader.peek(offset, length).ljust(length, b"\0")


class _Nothing:
    """Below the last file: zeros."""

    size = 0

    def read(self, offset: int, length: int) -> bytes:
        return bytes(length)


class _Qcow2:
    def __init__(self, reader: Reader, below: Bytes) -> None:
        self._reader = reader
        self._header: Header = read_header(reader)
        if self._header.crypt or self._header.needs_more_than_tables:
            raise ImageFeatureUnknown(
                f"{reader.path.name} uses features of qcow2 that are not read here",
                value=self._header.incompatible,
                cure="Start the VM: QEMU reads it.",
            )
        self._below = below
        self.size = self._header.size
        self._tables: dict[int, bytes] = {}
        self._inflated: dict[int, bytes] = {}
        self._left = _MOST_INFLATED

    def read(self, offset: int, length: int) -> bytes:
        parts = []
        cluster = self._header.cluster
        while length > 0:
            if offset >= self.size:
                parts.append(bytes(length))
                break
            count = min(length, cluster - offset % cluster, self.size - offset)
            parts += self._in_cluster(offset, count)
            offset, length = offset + count, length - count
        return b"".join(parts)

    def _in_cluster(self, offset: int, count: int) -> list[bytes]:
        """Some bytes of one cluster, in pieces that lie together."""
        cluster = self._header.cluster
        entry, bitmap = self._entry(offset // cluster)
        within = offset % cluster
        if entry & _COMPRESSED:
            return [self._compressed(entry)[within : within + count]]
        host = entry & _OFFSET
        if not self._header.extended:
            kind = _Kind.ZERO if entry & _ZERO else _Kind.HERE if host else _Kind.BELOW
            return [self._piece(kind, host + within, offset, count)]
        parts, unit, end = [], self._header.unit, within + count
        while within < end:
            kind, stop = _subcluster(bitmap, within // unit), within // unit * unit + unit
            while stop < end and _subcluster(bitmap, stop // unit) is kind:
                stop += unit
            stop = min(stop, end)
            parts.append(self._piece(kind, host + within, offset, stop - within))
            offset, within = offset + stop - within, stop
        return parts

    def _piece(self, kind: _Kind, host: int, offset: int, count: int) -> bytes:
        if kind is _Kind.ZERO:
            return bytes(count)
        if kind is _Kind.BELOW:
            return self._below.read(offset, count)
        if host < self._header.cluster:
            raise damaged("qcow2", f"a data cluster at byte {host}")
        return self._reader.peek(host, count).ljust(count, b"\0")

    def _entry(self, cluster: int) -> tuple[int, int]:
        header = self._header
        per_table = header.cluster // header.l2_entry
        first, second = divmod(cluster, per_table)
        if first >= header.l1_entries:
            raise damaged("qcow2", f"no L1 entry for cluster {cluster}")
        table = self._number(header.l1_offset + 8 * first) & _OFFSET
        if table == 0:
            return 0, 0
        at = table + second * header.l2_entry
        return self._number(at), self._number(at + 8) if header.extended else 0

    def _number(self, offset: int) -> int:
        """Eight bytes of a table, which is read in pieces of 4 KiB and kept."""
        piece, within = divmod(offset, 4096)
        if piece not in self._tables:
            if len(self._tables) >= 1024:
                self._tables.clear()
            self._tables[piece] = self._reader.peek(piece * 4096, 4096).ljust(4096, b"\0")
        return int.from_bytes(self._tables[piece][within : within + 8], "big")

    def _compressed(self, entry: int) -> bytes:
        """A cluster by raw deflate: qcow2.rst, "Compressed Clusters Descriptor"."""
        header = self._header
        if entry in self._inflated:
            return self._inflated[entry]
        bits = 62 - (header.cluster_bits - 8)
        host = entry & ((1 << bits) - 1)
        sectors = (entry >> bits & ((1 << (62 - bits)) - 1)) + 1
        packed = self._reader.peek(host, sectors * 512 - host % 512)
        self._left -= header.cluster
        if self._left < 0:
            raise damaged("qcow2", "compressed clusters are used over and over")
        try:
            data = zlib.decompressobj(-12).decompress(packed, header.cluster)
        except zlib.error as error:
            raise damaged("qcow2", "a compressed cluster") from error
        if len(self._inflated) >= _KEPT_CLUSTERS:
            self._inflated.clear()
        self._inflated[entry] = data.ljust(header.cluster, b"\0")
        return self._inflated[entry]


@contextlib.contextmanager
def open_chain(layers: Sequence[Layer]) -> Iterator[Bytes]:
    """The disk that a chain (top first) shows, until the end of the block.

    Raises, also while it is read:
        FileNotFoundError: a file of it is missing.
        ImageNotRecognized, ImageTruncated, ImageDamaged, ImageFeatureUnknown: it cannot be read.
    """
    with contextlib.ExitStack() as stack:
        disk: Bytes = _Nothing()
        for layer in reversed(layers):
            reader = stack.enter_context(Reader(layer.path))
            disk = _Raw(reader) if layer.format == "raw" else _Qcow2(reader, disk)
        yield disk
