"""A container for secrets at rest and on their way: a readable header, and content that only its key opens.

    8 bytes     89 48 46 53 0D 0A 1A 0A: a file that was sent as text is told at once
    u32, JSON   header: what this is; authenticated, not secret
    u32, JSON   key slot: the content key, wrapped for whoever may open it (`trust.protection`)
    chunks      65,536 bytes each, the last one shorter: AES-256-GCM cipher text and 16 bytes of tag

Integers are big-endian. A chunk's nonce is 7 zero bytes, its number (u32) and 1 where it is the last one,
else 0 (the STREAM construction: Hoang, Reyhanitabar, Rogaway, Vizár, 2015); its associated data is SHA-256
of the header. So nothing can be cut off, added, swapped or put under another header, while the key slot can
be exchanged. Each container has a content key of its own.
"""

import hashlib
import json
import secrets
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from holdfast.spec.errors import InvalidInput

MAGIC = b"\x89HFS\r\n\x1a\n"
LONGEST = 16 * 1024 * 1024
"""Bytes of a whole container."""
KEY_BYTES = 32

_LENGTH = struct.Struct(">L")
_LONGEST_PART = 64 * 1024
_CHUNK = 64 * 1024
_TAG = 16

Slot = Mapping[str, Any]
"""JSON of a key slot; `kind` says what opens it."""


class FirmwareStateDamaged(InvalidInput):
    id = "firmware-state-damaged"


class Lock(Protocol):
    """Wraps content keys for somebody. `bound` ties the slot to its container."""

    def wrap(self, key: bytes, bound: bytes) -> dict[str, Any]: ...


class Opener(Protocol):
    """Opens the slots of its kind; refuses others by an error that says what is needed."""

    def unwrap(self, slot: Slot, bound: bytes) -> bytes: ...


@dataclass(frozen=True)
class Envelope:
    """A container taken apart, and nothing of it believed yet but its outer shape."""

    header: bytes
    slot: dict[str, Any]
    body: bytes

    @property
    def bound(self) -> bytes:
        return hashlib.sha256(self.header).digest()

    def facts(self) -> dict[str, Any]:
        return _object(self.header)

    def open(self, opener: Opener) -> bytes:
        """The content. Raises FirmwareStateDamaged where any bit of it was changed."""
        key = opener.unwrap(self.slot, self.bound)
        if len(key) != KEY_BYTES:
            raise _damaged("its key slot holds no key")
        cipher, step = AESGCM(key), _CHUNK + _TAG
        pieces = [self.body[at : at + step] for at in range(0, len(self.body), step)]
        try:
            return b"".join(
                cipher.decrypt(_nonce(number, number == len(pieces) - 1), piece, self.bound)
                for number, piece in enumerate(pieces)
            )
        except InvalidTag as error:
            raise _damaged("its content was changed") from error

    def locked_for(self, opener: Opener, lock: Lock) -> bytes:
        """The same container with a key slot for somebody else."""
        slot = lock.wrap(opener.unwrap(self.slot, self.bound), self.bound)
        return _assemble(self.header, slot, self.body)


def seal(facts: Mapping[str, Any], content: bytes, lock: Lock) -> bytes:
    """A container that `lock` lets somebody open."""
    header, key = json.dumps(facts, sort_keys=True).encode(), secrets.token_bytes(KEY_BYTES)
    bound, cipher = hashlib.sha256(header).digest(), AESGCM(key)
    starts = range(0, max(len(content), 1), _CHUNK)
    body = b"".join(
        cipher.encrypt(_nonce(number, number == len(starts) - 1), content[at : at + _CHUNK], bound)
        for number, at in enumerate(starts)
    )
    return _assemble(header, lock.wrap(key, bound), body)


def parse(data: bytes) -> Envelope:
    """Take a container apart. Raises FirmwareStateDamaged where it is none or is cut short."""
    if len(data) > LONGEST:
        raise _damaged(f"it has more than {LONGEST} bytes")
    if not data.startswith(MAGIC):
        raise _damaged("it does not begin like one")
    header, at = _part(data, len(MAGIC))
    slot, at = _part(data, at)
    body = data[at:]
    if len(body) < _TAG or len(body) % (_CHUNK + _TAG) in range(1, _TAG):
        raise _damaged("it is cut short")
    return Envelope(header, _object(slot), body)


def _assemble(header: bytes, slot: Slot, body: bytes) -> bytes:
    written = json.dumps(slot, sort_keys=True).encode()
    return b"".join((MAGIC, _LENGTH.pack(len(header)), header, _LENGTH.pack(len(written)), written, body))


def _part(data: bytes, at: int) -> tuple[bytes, int]:
    if len(data) < at + _LENGTH.size:
        raise _damaged("it is cut short")
    (length,) = _LENGTH.unpack_from(data, at)
    at += _LENGTH.size
    if length > _LONGEST_PART or at + length > len(data):
        raise _damaged("it is cut short, or its header is too long")
    return data[at : at + length], at + length


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged("its header cannot be read") from error
    if not isinstance(found, dict):
        raise _damaged("its header cannot be read")
    return found


def _nonce(number: int, last: bool) -> bytes:
    return bytes(7) + _LENGTH.pack(number) + bytes([last])


def _damaged(why: str) -> FirmwareStateDamaged:
    return FirmwareStateDamaged(
        f"the firmware state is none of Holdfast's, or damaged: {why}",
        cure="Copy the file again from where it was exported, as a binary file.",
    )
