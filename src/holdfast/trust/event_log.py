"""The log of what was measured while booting, parsed within bounds, and replayed into PCR values.

TCG PC Client Platform Firmware Profile, section 10: a TCG_PCClientPCREvent with the Spec ID Event03,
then TCG_PCR_EVENT2 to the end, little-endian; as Linux shows it in binary_bios_measurements. It comes
from a guest: nothing in it is true before its replay equals a quote, and an event's text only where
the event's digest is that text's hash (`Event.proves`). Nothing is kept here.
"""

import hashlib
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

from holdfast.spec.errors import Failed
from holdfast.spec.trust import Bank

MAX_LOG = 1024 * 1024
"""Bytes; real ones have 10 to 100 KiB."""
MAX_EVENTS = 4096
_MAX_ALGORITHMS = 8
_PCRS = 24
_NO_PCR = 0xFFFF_FFFF
_SPEC_ID = b"Spec ID Event03\0"
_LOCALITY = b"StartupLocality\0"
_FIRST = struct.Struct("<II20sI")
_SPEC = struct.Struct("<16sIBBBBI")
_EVENT = struct.Struct("<III")
_LONG = struct.Struct("<I")
_PAIR = struct.Struct("<HH")
_SHORT = struct.Struct("<H")
BANKS = {0x0004: Bank.SHA1, 0x000B: Bank.SHA256, 0x000C: Bank.SHA384, 0x000D: Bank.SHA512}
"""By the hash's number in the TCG Algorithm Registry, table 3."""
_HASHES = {
    Bank.SHA1: hashlib.sha1,
    Bank.SHA256: hashlib.sha256,
    Bank.SHA384: hashlib.sha384,
    Bank.SHA512: hashlib.sha512,
}


class LogMalformed(Failed):
    id = "log-malformed"


class LogTruncated(Failed):
    id = "log-truncated"


class LogPadded(Failed):
    id = "log-padded"


class LogTooLarge(Failed):
    id = "log-too-large"


class Kind(IntEnum):
    """Event types (section 10.4.1) that are understood; others are only replayed."""

    NO_ACTION = 0x03
    SEPARATOR = 0x04
    ACTION = 0x05
    CRTM_VERSION = 0x08
    IPL = 0x0D
    VARIABLE_DRIVER_CONFIG = 0x8000_0001
    VARIABLE_BOOT = 0x8000_0002
    BOOT_APPLICATION = 0x8000_0003
    BOOT_DRIVER = 0x8000_0004
    RUNTIME_DRIVER = 0x8000_0005
    GPT = 0x8000_0006
    EFI_ACTION = 0x8000_0007
    FIRMWARE_BLOB = 0x8000_0008
    FIRMWARE_BLOB_2 = 0x8000_000A
    VARIABLE_BOOT_2 = 0x8000_000C
    GPT_2 = 0x8000_000D
    VARIABLE_AUTHORITY = 0x8000_00E0


@dataclass(frozen=True, slots=True)
class Event:
    number: int
    """Place in the log; the header is 0."""
    pcr: int
    kind: int
    """The log's word, like all else but the digests: types are not measured."""
    digests: Mapping[Bank, bytes]
    data: bytes
    """What the log says of it: a claim, until `proves` holds."""

    def proves(self, content: bytes) -> bool:
        """Whether `content` is what was measured, by every digest that there is."""
        return all(_HASHES[bank](content).digest() == digest for bank, digest in self.digests.items())

    def text_of(self, bank: Bank) -> str:
        """`sha256:` and the hexadecimal digest."""
        return f"{bank}:{self.digests[bank].hex()}"


@dataclass(frozen=True, slots=True)
class EventLog:
    events: tuple[Event, ...]
    """Those that extend a PCR: the header, and events of no action, are not among them."""
    banks: tuple[Bank, ...]
    """Banks of which every event has a digest."""
    locality: int
    """From which the TPM was started: the last byte with which PCR 0 begins."""

    def only(self, bank: Bank, pcrs: Collection[int]) -> "EventLog":
        """The same with the digests of one bank, and events of some PCRs: what a quote covers.

        What no quote covers must prove nothing.
        """
        events = (event for event in self.events if event.pcr in pcrs)
        if self.banks != (bank,):
            events = (replace(event, digests={bank: event.digests[bank]}) for event in events)
        return replace(self, events=tuple(events), banks=(bank,))


def parse_log(data: bytes) -> EventLog:
    """Parse a whole log; the time is linear in its size.

    Raises:
        LogTooLarge: it has more than `MAX_LOG` bytes or `MAX_EVENTS` events.
        LogTruncated: it ends within an event.
        LogPadded: zeros or ones follow the last event.
        LogMalformed: it is none, or says what cannot be.
    """
    if len(data) > MAX_LOG:
        raise LogTooLarge(
            f"the event log has more than {MAX_LOG} bytes", value=len(data), cure="Read the log again, whole."
        )
    try:
        algorithms, at = _header(data)
        return _events(data, at, algorithms)
    except struct.error as error:
        raise _truncated(data) from error


def replay(log: EventLog, bank: Bank) -> dict[int, bytes]:
    """Values of the PCRs that the log extends, as a TPM would have them (TPM 2.0 part 1, section 11.4).

    PCRs of a dynamic launch (17 to 22) are taken to begin with zeros.

    Raises:
        LogMalformed: the log has no such bank.
    """
    if bank not in log.banks:
        raise _malformed(f"it has no digests of {bank}", bank)
    values: dict[int, bytes] = {}
    zero = bytes(bank.size)
    if log.locality:
        values[0] = zero[:-1] + bytes([log.locality])
    hashed = _HASHES[bank]
    for event in log.events:
        values[event.pcr] = hashed(values.get(event.pcr, zero) + event.digests[bank]).digest()
    return values


def _header(data: bytes) -> tuple[dict[int, int], int]:
    """Sizes of the digests by algorithm (TCG_EfiSpecIdEvent), and where the first event begins."""
    pcr, kind, _, size = _FIRST.unpack_from(data, 0)
    start = _FIRST.size
    if pcr != 0 or kind != Kind.NO_ACTION:
        raise _malformed("it does not begin with the event that names its format", kind)
    if start + size > len(data):
        raise _truncated(data)
    body = data[start : start + size]
    if body[:16] != _SPEC_ID:
        raise _malformed("it is not in the crypto-agile format", body[:16].hex())
    if len(body) < _SPEC.size:
        raise _malformed("its header is cut short", size)
    count = _SPEC.unpack_from(body, 0)[-1]
    vendor_at = _SPEC.size + 4 * count
    if not 1 <= count <= _MAX_ALGORITHMS or vendor_at + 1 > size:
        raise _malformed(f"its header promises {count} algorithms", count)
    if vendor_at + 1 + body[vendor_at] != size:
        raise _malformed("its header has not the size that it tells", size)
    sizes = dict(_PAIR.unpack_from(body, _SPEC.size + 4 * each) for each in range(count))
    for algorithm, length in sizes.items():
        known = BANKS.get(algorithm)
        if length != (known.size if known else length) or not 1 <= length <= 64:
            raise _malformed(f"algorithm {algorithm:#06x} cannot have digests of {length} bytes", length)
    if len(sizes) != count:
        raise _malformed("its header names an algorithm twice", count)
    return sizes, start + size


def _events(data: bytes, at: int, sizes: dict[int, int]) -> EventLog:
    found: list[Event] = []
    locality = number = 0
    extended = False
    while at < len(data):
        number += 1
        if number > MAX_EVENTS:
            raise LogTooLarge(f"the event log has more than {MAX_EVENTS} events", value=MAX_EVENTS)
        event, at = _event(data, at, sizes, number)
        if event.kind != Kind.NO_ACTION:
            found.append(event)
            extended = extended or event.pcr == 0
        elif event.data[:16] == _LOCALITY:
            if event.pcr != 0 or len(event.data) != 17 or event.data[16] not in (0, 3, 4) or extended:
                raise _malformed("it tells an impossible startup locality", number)
            locality = event.data[16]
    banks = tuple(bank for bank in Bank if any(BANKS.get(each) is bank for each in sizes))
    return EventLog(tuple(found), banks, locality)


def _event(data: bytes, at: int, sizes: dict[int, int], number: int) -> tuple[Event, int]:
    pcr, kind, count = _EVENT.unpack_from(data, at)
    if count != len(sizes):
        rest = data[at:]
        if not rest.strip(b"\0") or not rest.strip(b"\xff"):
            raise LogPadded(
                f"{len(rest)} bytes of padding follow event {number - 1} of the log",
                value=len(rest),
                cure="Hand over the log as the kernel shows it.",
            )
        raise _malformed(f"event {number} has {count} digests, and not {len(sizes)}", count)
    if pcr >= _PCRS and not (pcr == _NO_PCR and kind == Kind.NO_ACTION):
        raise _malformed(f"event {number} is of PCR {pcr}", pcr)
    at += _EVENT.size
    digests: dict[Bank, bytes] = {}
    seen = set()
    for _ in range(count):
        (algorithm,) = _SHORT.unpack_from(data, at)
        if algorithm not in sizes or algorithm in seen:
            raise _malformed(f"event {number} has a digest of algorithm {algorithm:#06x}", algorithm)
        seen.add(algorithm)
        end = at + 2 + sizes[algorithm]
        if algorithm in BANKS:
            digests[BANKS[algorithm]] = data[at + 2 : end]
        at = end
    (size,) = _LONG.unpack_from(data, at)
    at += _LONG.size
    if at + size > len(data):
        raise _truncated(data)
    return Event(number, pcr, kind, digests, data[at : at + size]), at + size


def _malformed(why: str, value: object) -> LogMalformed:
    return LogMalformed(
        f"the event log is malformed: {why}", value=value, cure="Hand over the log as the kernel shows it."
    )


def _truncated(data: bytes) -> LogTruncated:
    return LogTruncated(
        f"the event log ends within an event, after {len(data)} bytes",
        value=len(data),
        cure="Read the log again, whole.",
    )
