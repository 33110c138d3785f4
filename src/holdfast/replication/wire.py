"""The words of the replication protocol, version 1: frames and what stands in them. Pure, no I/O.

Everything is big-endian. A frame is a header of 12 bytes and a body:

    offset  bytes  field
    0       1      kind, of `Kind`
    1       1      flags; bit 0: the body is one zstd frame (RFC 8878) with a window of 2 MiB at most
    2       2      reserved, 0
    4       4      bytes of the body as it is sent
    8       4      bytes of the body as it is meant; the same where it is not compressed

A body is at most `LARGEST_BODY` bytes, sent or meant; that of a message in JSON at most `LARGEST_TEXT`. Only
WRITE and ATTACH may be compressed. Bodies in JSON (RFC 8259, UTF-8) are the models of this module, with no
other fields; the others:

    WRITE   u16 number of the disk in BEGIN, u16 count, count x (u64 offset, u32 length), then the bytes of
            all extents in their order
    ZERO    u16 number of the disk, u16 count, count x (u64 offset, u32 length); they read as zeroes then
    ATTACH  u8 length of the name, u8 1 where it is the last part else 0, the name, then bytes of the part

Extents are ascending, do not overlap, and none is empty. Nothing carries a checksum: a link delivers frames
whole, unchanged and in order or fails (over TLS 1.3 every record is authenticated, RFC 8446, section 5.2).

    source                         receiver
    HELLO                     ◀▶   HELLO       both at once; the version is the highest that both know
    PAIR                      ▶
                              ◀    PAIRED      on a connection without a client certificate, nothing else
    OPEN                      ▶
                              ◀    STANDING    the last cycle that it holds whole
    ASK                       ▶                any number, where both sides are to be compared; answered in
                              ◀    DIGESTS     their order, each of the state that STANDING or COMMITTED told
    BEGIN                     ▶                repeated for each cycle
    WRITE, ZERO, ATTACH ...   ▶
    COMMIT                    ▶
                              ◀    COMMITTED   all of it is on stable storage
    ABANDON                   ▶                in place of COMMIT; what came since BEGIN is dropped
    PING                      ▶
                              ◀    PONG        between cycles

In place of OPEN, and as often as wanted, a source may ask whose turn it is to run a VM, or about a failover:

    QUERY                     ▶                whose turn it is
    PREPARE                   ▶                whether a planned failover could be
    TAKE_OVER                 ▶                the source runs it no more, whatever comes; the receiver shall
    RELEASE                   ▶                a TAKE_OVER of this term, or a lower one, is void
    YIELD                     ▶                the VM failed over to another host, which may send it now
                              ◀    TURN        answers each of them

Either side may send REFUSED at any time instead; it then reads on until the other has closed, for
`GOODBYE_SECONDS` at most, so that the refusal is not lost with the connection.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import ip_address
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from holdfast.spec.errors import Failed, HoldfastError, Unsupported
from holdfast.spec.model import Frozen
from holdfast.spec.names import Name
from holdfast.spec.replica import Consistency, ReplicaSettings
from holdfast.spec.turn import Turn
from holdfast.spec.units import MIB

LOWEST, HIGHEST = 1, 1
"""Versions of the protocol that are spoken."""
PROTOCOL = "holdfast-replica"
GOODBYE_SECONDS = 10.0

LARGEST_PAYLOAD = 1 * MIB
"""Bytes of all extents of one WRITE, or of one part of an attachment."""
MOST_EXTENTS = 512
"""Of one WRITE or ZERO."""
LARGEST_TEXT = 256 * 1024
MOST_DISKS = 256
MOST_HOSTS = 8
"""That a replica comes through, one after another."""
MOST_DIGESTS = 1024
"""In one answer."""

_HEADER = struct.Struct(">BBHII")
_DISK = struct.Struct(">HH")
_EXTENT = struct.Struct(">QI")
_PART = struct.Struct(">BB")
HEADER_BYTES = _HEADER.size
LARGEST_BODY = LARGEST_PAYLOAD + _DISK.size + MOST_EXTENTS * _EXTENT.size
WINDOW_LOG = 21
"""Binary logarithm of zstd's window, in bytes."""
_COMPRESSED = 1
_DISK_END = 1 << 63


class FrameRefused(Failed):
    """What came over a link is no frame of this protocol, or not one that may come now."""

    id = "replica-frame-refused"


class NoCommonVersion(Unsupported):
    id = "replica-no-common-version"


class PeerRefused(Failed):
    """The other side said no; the value is the id of its error, the detail holds its words."""

    id = "replica-peer-refused"


class Kind(IntEnum):
    HELLO = 1
    REFUSED = 2
    PAIR = 3
    PAIRED = 4
    PING = 5
    PONG = 6
    OPEN = 16
    STANDING = 17
    BEGIN = 18
    WRITE = 19
    ZERO = 20
    ATTACH = 21
    COMMIT = 22
    COMMITTED = 23
    ABANDON = 24
    ASK = 25
    DIGESTS = 26
    QUERY = 32
    TURN = 33
    PREPARE = 34
    TAKE_OVER = 35
    RELEASE = 36
    YIELD = 37


_COMPRESSIBLE = (Kind.WRITE, Kind.ATTACH)
_BINARY = (Kind.WRITE, Kind.ZERO, Kind.ATTACH)


@dataclass(frozen=True)
class Header:
    kind: Kind
    compressed: bool
    length: int
    """Bytes of the body as it is sent."""
    size: int
    """Bytes of the body as it is meant."""


Extent = tuple[int, int]
"""Offset and length in bytes."""

_Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
_DiskId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
_Words = Annotated[str, StringConstraints(max_length=2000)]
_Cycle = Annotated[int, Field(ge=0, lt=1 << 63)]
_Count = Annotated[int, Field(ge=0, lt=1 << 63)]
_Term = Annotated[int, Field(ge=1, lt=1 << 32)]
_FINGERPRINT = r"sha256:[0-9a-f]{64}"
_Fingerprint = Annotated[str, StringConstraints(pattern=rf"^{_FINGERPRINT}$")]


class Message(Frozen):
    """One body in JSON."""

    kind: ClassVar[Kind]


class Hello(Message):
    kind = Kind.HELLO

    protocol: Annotated[str, StringConstraints(max_length=64)] = PROTOCOL
    lowest: Annotated[int, Field(ge=1, le=65535)] = LOWEST
    highest: Annotated[int, Field(ge=1, le=65535)] = HIGHEST
    host: Annotated[str, StringConstraints(max_length=253)]
    """The sender's name for itself, to be shown."""


class Refused(Message):
    kind = Kind.REFUSED

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,64}$")]
    """Of the error; see docs/guide/errors.md."""
    message: _Words
    cure: _Words = ""

    @classmethod
    def of(cls, error: HoldfastError) -> "Refused":
        return cls(id=error.id, message=error.message[:2000], cure=error.cure[:2000])


class Pair(Message):
    kind = Kind.PAIR

    name: Name
    """What the sender calls itself; the receiver knows it by this name from then on."""
    secret: Annotated[str, StringConstraints(max_length=128)]
    """Of the token that `replica accept` made."""
    certificate: Annotated[str, StringConstraints(max_length=16384)]
    """The sender's, PEM."""


class Paired(Message):
    kind = Kind.PAIRED

    name: Name
    """What the receiver calls itself."""


class Ping(Message):
    kind = Kind.PING

    number: _Count


class Pong(Message):
    kind = Kind.PONG

    number: _Count
    """Of the PING that it answers."""


class DiskShape(Frozen):
    id: _DiskId
    size: Annotated[int, Field(gt=0, lt=_DISK_END)]
    """Bytes, as the guest sees it."""


_Disks = Annotated[tuple[DiskShape, ...], Field(max_length=MOST_DISKS)]


class Open(Message):
    """From here on the link is about one VM."""

    kind = Kind.OPEN

    replication: _Id
    """Made anew each time that replication of a VM is enabled; cycles are numbered within it."""
    vm: _Id
    name: Name
    disks: _Disks
    points: Annotated[str, StringConstraints(max_length=500)] = ""
    """The plan by which points are kept, see `retention`; empty: the newest only."""
    term: _Term = 1
    """Of the VM's turns, as the source knows it; see `turns`."""
    receives: Annotated[int, Field(ge=0, le=65535)] = 0
    """TCP port at which the source itself receives replicas; 0: it does not."""
    receives_at: Annotated[str, StringConstraints(max_length=45)] = ""
    """IP address, IPv4 or IPv6, at which it does; empty: the one that this link comes from."""
    agreed: ReplicaSettings | None = None
    """What was agreed on the source, all of which holds for the way back after a failover."""

    via: Annotated[tuple[_Fingerprint, ...], Field(max_length=MOST_HOSTS)] = ()
    """Of a replica that the source itself is sent: fingerprints of the hosts that it came through to the
    source, the VM's own first. Whoever finds itself among them, or the source, refuses it."""

    @field_validator("receives_at")
    @classmethod
    def _is_address(cls, given: str) -> str:
        return str(ip_address(given)) if given else ""


class Standing(Message):
    kind = Kind.STANDING

    cycle: _Cycle
    """The last that is held whole; 0: none."""
    disks: _Disks = ()
    """As that cycle left them."""
    compare: bool = False
    """Nothing can be changed by what changed since: the next cycle is `compared`, or a full copy."""
    points: _Count = 0
    """That are held."""
    lost: _Count = 0
    """Of them, that are lost by damage."""
    tested_us: _Count = 0
    """When one was tested last: microseconds since 1970-01-01 UTC, by the receiver's clock; 0: never."""


class Begin(Message):
    kind = Kind.BEGIN

    cycle: Annotated[int, Field(ge=1, lt=1 << 63)]
    base: _Cycle
    """The cycle that it changes; 0: none, what is not sent reads as zeroes."""
    taken_us: _Count
    """The instant that it is of, by the source's clock: microseconds since 1970-01-01 UTC."""
    disks: _Disks
    """All of the VM's that are replicated, as they are at that instant; WRITE and ZERO count them from 0."""
    consistency: Consistency = Consistency.CRASH
    """`application`: the guest's file systems stood still at the instant, as its agent says."""
    compared: bool = False
    """All disks were compared with what is held, whichever cycle that is; what is not sent stays as it is."""


class Commit(Message):
    kind = Kind.COMMIT

    cycle: _Cycle
    written: _Count
    """Bytes of all WRITEs since BEGIN."""
    zeroed: _Count
    """Bytes of all ZEROs since BEGIN."""


class Committed(Message):
    kind = Kind.COMMITTED

    cycle: _Cycle
    points: _Count = 0
    """That are held now."""
    lost: _Count = 0
    """Of them, that are lost by damage."""
    tested_us: _Count = 0
    """When one was tested last: microseconds since 1970-01-01 UTC, by the receiver's clock; 0: never."""


class Ask(Message):
    """For digests (BLAKE3) of a part of a disk as it is held; what is not held reads as zeroes."""

    kind = Kind.ASK

    disk: _DiskId
    offset: Annotated[int, Field(ge=0, lt=_DISK_END, multiple_of=4096)]
    length: Annotated[int, Field(gt=0, le=64 * MIB)]
    block: Literal[0, 4096, 65536]
    """Of so many bytes each; 0: the one of the digests of each 64 KiB, one behind the other."""

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        if self.block and self.length > MOST_DIGESTS * self.block:
            raise ValueError("more digests than one answer holds")
        return self


class Digests(Message):
    kind = Kind.DIGESTS

    digests: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})*$", max_length=64 * MOST_DIGESTS)]
    """Hexadecimal, one behind the other; those of what is damaged are all 0."""


class Abandon(Message):
    kind = Kind.ABANDON

    cycle: _Cycle


class Query(Message):
    """Whose turn it is to run a VM."""

    kind = Kind.QUERY

    vm: _Id
    turn: Turn
    """The sender's own."""
    term: _Term


class TurnIs(Message):
    kind = Kind.TURN

    turn: Turn
    """The answering side's own."""
    term: _Term
    error: _Words = ""
    """Why the last failover to it failed; empty: it did not."""
    sender: Annotated[str, StringConstraints(pattern=rf"^({_FINGERPRINT})?$")] = ""
    """Of a replica that the asking host sends no more: fingerprint of the one that does, or may."""


class Prepare(Message):
    """Whether the VM could fail over; refused where it could not."""

    kind = Kind.PREPARE

    vm: _Id
    term: _Term
    """That the failover would have."""
    memory: _Count
    """Bytes that the VM needs to run."""


class TakeOver(Message):
    """The VM is off over here and stays so: run it from this cycle, which must be the newest held."""

    kind = Kind.TAKE_OVER

    vm: _Id
    term: _Term
    cycle: Annotated[int, Field(ge=1, lt=1 << 63)]
    start: bool = True
    """Whether it ran, and so is to be started."""


class Release(Message):
    """The VM stays where it is. Whoever was told to take it over by this term answers that it has."""

    kind = Kind.RELEASE

    vm: _Id
    term: _Term


class Yield(Message):
    """The VM failed over, for good, to another host that the receiver may be sent it by from now on.

    Counts where the source is the one that the replica is sent by. That other host, which is known by its
    certificate, goes on by OPEN with this term or a higher one; both sides are compared.
    """

    kind = Kind.YIELD

    vm: _Id
    term: _Term
    """Of the failover."""
    to: Annotated[str, StringConstraints(pattern=rf"^{_FINGERPRINT}$")]
    """Fingerprint of that host: `sha256:` and the SHA-256 of its certificate (DER), in hexadecimal."""


_MODELS: dict[Kind, type[Message]] = {
    model.kind: model
    for model in (
        *(Hello, Refused, Pair, Paired, Ping, Pong, Open, Standing),
        *(Begin, Commit, Committed, Abandon, Ask, Digests),
        *(Query, TurnIs, Prepare, TakeOver, Release, Yield),
    )
}


@dataclass(frozen=True)
class Write:
    disk: int
    extents: tuple[Extent, ...]
    payload: memoryview
    """Of all extents, in their order; of the buffer that was parsed."""


@dataclass(frozen=True)
class Zero:
    disk: int
    extents: tuple[Extent, ...]


@dataclass(frozen=True)
class Attach:
    name: str
    last: bool
    part: memoryview


Spoken = Message | Write | Zero | Attach


def header(kind: Kind, length: int, size: int | None = None) -> bytes:
    """The header of a body of `length` bytes; `size`: what it is uncompressed, None where it is not."""
    if size is None:
        return _HEADER.pack(kind, 0, 0, length, length)
    return _HEADER.pack(kind, _COMPRESSED, 0, length, size)


def parse_header(data: bytes | bytearray | memoryview) -> Header:
    """A header of 12 bytes. Raises FrameRefused."""
    number, flags, reserved, length, size = _HEADER.unpack(data)
    try:
        kind = Kind(number)
    except ValueError:
        raise _refused(f"a frame of the unknown kind {number}", number) from None
    compressed = bool(flags & _COMPRESSED)
    if flags & ~_COMPRESSED or reserved or (compressed and kind not in _COMPRESSIBLE):
        raise _refused(f"a frame {kind.name} with unknown flags {flags:#x}", flags)
    most = LARGEST_BODY if kind in _BINARY else LARGEST_TEXT
    if max(length, size) > most:
        raise _refused(f"a frame {kind.name} of {max(length, size)} bytes; at most {most} may come", size)
    if not compressed and length != size:
        raise _refused(f"a frame {kind.name} with two lengths, {length} and {size}", size)
    return Header(kind, compressed, length, size)


def body(message: Message) -> bytes:
    """A message's body."""
    return message.model_dump_json().encode()


def table(disk: int, extents: Sequence[Extent]) -> bytes:
    """What a WRITE begins with, and all of a ZERO."""
    return _DISK.pack(disk, len(extents)) + b"".join(_EXTENT.pack(*extent) for extent in extents)


def table_bytes(count: int) -> int:
    """Length of the `table` of `count` extents."""
    return _DISK.size + count * _EXTENT.size


def part(name: str, *, last: bool) -> bytes:
    """What an ATTACH begins with."""
    encoded = name.encode("ascii")
    return _PART.pack(len(encoded), last) + encoded


def parse(kind: Kind, data: memoryview) -> Spoken:
    """What a body says, which is checked in all that can be without knowing the VM. Raises FrameRefused."""
    if kind is Kind.WRITE:
        disk, extents, rest = _parse_table(data)
        if sum(length for _, length in extents) != len(rest):
            raise _refused("a WRITE that holds more or less than its extents", len(rest))
        return Write(disk, extents, rest)
    if kind is Kind.ZERO:
        disk, extents, rest = _parse_table(data)
        if rest:
            raise _refused("a ZERO with bytes behind its extents", len(rest))
        return Zero(disk, extents)
    if kind is Kind.ATTACH:
        return _parse_part(data)
    try:
        return _MODELS[kind].model_validate_json(bytes(data), strict=False)
    except (ValidationError, RecursionError) as error:
        raise _refused(f"a {kind.name} that cannot be read", kind.name) from error


def agreed(ours: Hello, theirs: Hello) -> int:
    """The version to be spoken. Raises NoCommonVersion."""
    version = min(ours.highest, theirs.highest)
    if theirs.protocol != PROTOCOL or version < max(ours.lowest, theirs.lowest):
        raise NoCommonVersion(
            f"the other host speaks versions {theirs.lowest} to {theirs.highest} of the replication "
            f"protocol, this one {ours.lowest} to {ours.highest}",
            value=theirs.highest,
            cure="Update the older one of the two hosts.",
        )
    return version


def _parse_table(data: memoryview) -> tuple[int, tuple[Extent, ...], memoryview]:
    if len(data) < _DISK.size:
        raise _refused("a frame that ends in its table", len(data))
    disk, count = _DISK.unpack_from(data)
    end = table_bytes(count)
    if not 1 <= count <= MOST_EXTENTS or len(data) < end:
        raise _refused(f"a frame of {count} extents in {len(data)} bytes", count)
    extents: tuple[Extent, ...] = tuple(_EXTENT.iter_unpack(data[_DISK.size : end]))
    at = 0
    for offset, length in extents:
        if offset < at or not length or offset + length > _DISK_END:
            raise _refused(f"an extent of {length} bytes at byte {offset} behind byte {at}", offset)
        at = offset + length
    return disk, extents, data[end:]


def _parse_part(data: memoryview) -> Attach:
    if len(data) < _PART.size:
        raise _refused("an ATTACH that ends in its name", len(data))
    length, last = _PART.unpack_from(data)
    name = bytes(data[_PART.size : _PART.size + length])
    plain = all(each in b"abcdefghijklmnopqrstuvwxyz0123456789-" for each in name)
    if len(name) != length or not 1 <= length <= 32 or not plain or last > 1:
        raise _refused("an ATTACH whose name cannot be read", length)
    return Attach(name.decode("ascii"), bool(last), data[_PART.size + length :])


def _refused(what: str, value: Any) -> FrameRefused:
    return FrameRefused(
        f"the other host sent {what}",
        value=value,
        cure="See that both hosts run the same version, and what the other one logs.",
    )


def batches(extents: Iterable[Extent]) -> Iterable[list[Extent]]:
    """Extents cut and gathered so that each list fits into one WRITE."""
    gathered: list[Extent] = []
    room = LARGEST_PAYLOAD
    for offset, length in extents:
        while length:
            taken = min(length, room)
            gathered.append((offset, taken))
            offset, length, room = offset + taken, length - taken, room - taken
            if not room or len(gathered) == MOST_EXTENTS:
                yield gathered
                gathered, room = [], LARGEST_PAYLOAD
    if gathered:
        yield gathered
