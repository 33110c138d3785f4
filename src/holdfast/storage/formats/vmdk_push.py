"""Grains of a streamOptimized VMDK as its bytes arrive (VMware, Virtual Disk Format 5.0, "Compressed").

    header │ descriptor │ marker grain │ marker grain │ ... │ marker table │ ... │ footer │ end

For a stream that cannot be read twice or out of order, as an export over HTTP: tables are passed over,
since each grain's marker says where it belongs. Places ascend, so none is overlapped.
"""

import struct
import zlib

from holdfast.spec.units import MIB
from holdfast.storage.formats.reading import MAX_DISK, SECTOR, damaged
from holdfast.storage.formats.refusals import ImageFeatureUnknown

# magic, version, flags, capacity, grain size, descriptor at, its size, entries a table, tables at (two),
# overhead; all in sectors where they are amounts
_HEADER = struct.Struct("<4sIIQQQQIQQQ")
_COMPRESSION_AT, _DEFLATE = 77, 1
_STREAM = 1 << 16 | 1 << 17
"""Flags: compressed grains, and markers before them."""
_MARKER = struct.Struct("<QI")
_KIND_AT = 12
_END, _TABLE, _DIRECTORY, _FOOTER = 0, 1, 2, 3
_LARGEST_GRAIN = 2 * MIB
_LARGEST_OVERHEAD = 16 * MIB
_LARGEST_TABLE = 64 * MIB
_LARGEST_REST = 128 * MIB
"""Bytes of a stream beside twice its disk: header, markers and tables."""


class GrainPush:
    """Fed with the stream from its beginning; holds one grain at most."""

    def __init__(self, size: int) -> None:
        """`size`: bytes that the disk is known to have."""
        self._size = size
        self._rest = bytearray()
        self._skip = 0
        self._grain = 0
        self._next = 0
        self._fed = 0
        self.ended = False
        """The end marker was seen: the stream is whole."""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Place in bytes and content of each grain that is now complete; all of it ascends.

        Raises ImageDamaged, ImageFeatureUnknown.
        """
        self._rest += data
        self._fed += len(data)
        if self._fed > 2 * self._size + _LARGEST_REST:
            raise damaged("vmdk", "the stream does not end")
        found: list[tuple[int, bytes]] = []
        at = 0
        while not self.ended:
            passed = min(self._skip, len(self._rest) - at)
            self._skip -= passed
            at += passed
            if self._skip or len(self._rest) - at < SECTOR:
                break
            if not self._grain:
                self._begin(bytes(self._rest[at : at + SECTOR]))
                continue
            taken = self._marked(at, found)
            if not taken:
                break
            at += taken
        del self._rest[:at]
        return found

    def _begin(self, header: bytes) -> None:
        magic, version, flags, capacity, grain, *_, overhead = _HEADER.unpack_from(header)
        compression = int.from_bytes(header[_COMPRESSION_AT : _COMPRESSION_AT + 2], "little")
        if magic != b"KDMV":
            raise damaged("vmdk", "the stream does not begin as one")
        if version > 3 or compression != _DEFLATE or flags & _STREAM != _STREAM:
            raise ImageFeatureUnknown(
                "the export is no streamOptimized VMDK",
                value=version,
                cure="Export the VM as an OVA where it is, and import that.",
            )
        grain, overhead, capacity = grain * SECTOR, overhead * SECTOR, capacity * SECTOR
        if not SECTOR <= grain <= _LARGEST_GRAIN or grain & (grain - 1):
            raise damaged("vmdk", f"grains of {grain} bytes")
        if not SECTOR <= overhead <= _LARGEST_OVERHEAD or capacity > MAX_DISK:
            raise damaged("vmdk", "its header holds absurd amounts")
        if not self._size <= capacity < self._size + grain:
            raise damaged("vmdk", f"it holds {capacity} bytes, and the disk has {self._size}")
        self._grain, self._skip = grain, overhead

    def _marked(self, at: int, found: list[tuple[int, bytes]]) -> int:
        """Bytes of the marker at `at` with what belongs to it; 0: more must come first."""
        value, size = (int(each) for each in _MARKER.unpack_from(self._rest, at))
        if size == 0:
            kind = int.from_bytes(self._rest[at + _KIND_AT : at + _KIND_AT + 4], "little")
            if kind == _END:
                self.ended = True
            elif kind not in (_TABLE, _DIRECTORY, _FOOTER) or value * SECTOR > _LARGEST_TABLE:
                raise damaged("vmdk", f"a marker of kind {kind}")
            else:
                self._skip = value * SECTOR
            return SECTOR
        if size > 2 * self._grain:
            raise damaged("vmdk", f"a grain of {size} bytes")
        whole = -(-(_MARKER.size + size) // SECTOR) * SECTOR
        if len(self._rest) - at < whole:
            return 0
        start = at + _MARKER.size
        found.append(self._inflated(value * SECTOR, bytes(self._rest[start : start + size])))
        return whole

    def _inflated(self, place: int, packed: bytes) -> tuple[int, bytes]:
        if place % self._grain or place < self._next or place >= self._size:
            raise damaged("vmdk", f"a grain at {place}")
        self._next = place + self._grain
        packer = zlib.decompressobj()
        try:
            data = packer.decompress(packed, self._grain)
        except zlib.error as error:
            raise damaged("vmdk", f"the grain at {place} does not inflate") from error
        wanted = min(self._grain, self._size - place)
        if not packer.eof or len(data) < wanted:
            raise damaged("vmdk", f"the grain at {place} is not whole")
        return place, data[:wanted]
