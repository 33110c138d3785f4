"""swtpm's state file `tpm2-00.permall`, looked at without swtpm: is it whole, ours, and not too new?

    10 bytes      version u8, least version u8, length of this header u16, flags u16, whole length u32
    then blocks   tag u16, length u32, content        (all integers big-endian)

Source of the format: swtpm's swtpm_nvstore.h and tlv.h. With a 256-bit file key the blocks are the
state encrypted by AES-256-CBC, the initialization vector (32 bytes, of which the cipher takes 16),
and HMAC-SHA-256 over both. Inside stands libtpms's state (its NVMarshal.h): version u16, magic u32,
least version that can read it u16; at its end the magic once more. Nothing is kept here.
"""

import hmac
import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from holdfast.spec.errors import Failed, Unsupported

STATE_FILE = "tpm2-00.permall"
LONGEST_STATE = 2 * 1024 * 1024
"""Bytes. libtpms keeps at most 176 KiB in its non-volatile memory."""

_HEADER = struct.Struct(">BBHHL")
_BLOCK = struct.Struct(">HL")
_INNER = struct.Struct(">HLH")
_ENCRYPTED, _HMAC, _IV = 2, 3, 6
_FLAG_ENCRYPTED, _FLAG_256_BITS = 0x1, 0x8
_MAGIC = 0xAB364723
_CIPHER_BLOCK = 16
_PAD = 32
_HEADER_VERSION = 2
"""The file's layout that is described above; a least version above it means another layout."""


class VtpmStateDamaged(Failed):
    id = "vtpm-state-damaged"


class VtpmStateOtherKey(Failed):
    id = "vtpm-state-other-key"


class VtpmStateNewer(Unsupported):
    id = "vtpm-state-newer"


@dataclass(frozen=True)
class StateFormat:
    """Versions of libtpms's state: the one that wrote it, and the least one that can read it."""

    version: int
    least: int


OLDEST = StateFormat(version=3, least=3)
"""What libtpms 0.9 writes, the oldest in use with swtpm 0.7: every host reads it."""


def state_format(data: bytes, key: bytes, what: str) -> StateFormat:
    """Check a whole state file with its 256-bit key, and tell the versions in it.

    Args:
        what: names the state in errors.

    Raises:
        VtpmStateDamaged: cut short, padded, not encrypted or otherwise no state file.
        VtpmStateOtherKey: another key encrypted it, or it was changed.
        VtpmStateNewer: a swtpm of another layout wrote it.
    """
    blocks = _blocks(data, what)
    try:
        encrypted, vector, tag = blocks[_ENCRYPTED], blocks[_IV], blocks[_HMAC]
    except KeyError as error:
        raise _damaged(what, "a part of it is missing") from error
    if not hmac.compare_digest(hmac.digest(key, encrypted + vector, "sha256"), tag):
        raise VtpmStateOtherKey(
            f"the TPM state of {what} does not open with its key: it belongs to another VM, or was changed",
            value=what,
            cure="Import the state that was exported of this VM: `holdfast trust import-state`.",
        )
    if len(vector) < _CIPHER_BLOCK or len(encrypted) % _CIPHER_BLOCK:
        raise _damaged(what, "its cipher text has no whole blocks")
    cipher = Cipher(algorithms.AES256(key), modes.CBC(vector[:_CIPHER_BLOCK])).decryptor()
    return _inner(cipher.update(encrypted) + cipher.finalize(), what)


def require_readable(found: StateFormat, readable: StateFormat, what: str) -> None:
    """Refuse, before anything is changed, what this host's libtpms cannot read. Raises VtpmStateNewer."""
    if found.least > readable.version:
        raise VtpmStateNewer(
            f"the TPM state of {what} has format {found.version} of a newer libtpms;"
            f" this host reads up to format {readable.version}",
            value=found.version,
            cure="Install the libtpms and swtpm of the host that it comes from, or leave the VM there.",
            detail={"least": found.least, "readable": readable.version},
        )


def _blocks(data: bytes, what: str) -> dict[int, bytes]:
    if not _HEADER.size <= len(data) <= LONGEST_STATE:
        raise _damaged(what, f"it has {len(data)} bytes")
    version, least, header, flags, whole = _HEADER.unpack_from(data)
    if least > _HEADER_VERSION:
        raise VtpmStateNewer(
            f"the TPM state of {what} has layout {version} of a newer swtpm;"
            f" this host reads up to layout {_HEADER_VERSION}",
            value=version,
            cure="Install the swtpm of the host that it comes from, or leave the VM there.",
        )
    if whole != len(data) or header < _HEADER.size or version < _HEADER_VERSION:
        raise _damaged(what, f"its header promises {whole} bytes, and there are {len(data)}")
    wanted = _FLAG_ENCRYPTED | _FLAG_256_BITS
    if flags & wanted != wanted:
        raise _damaged(what, "it is not encrypted with a 256-bit key")
    found: dict[int, bytes] = {}
    at = header
    while at < len(data):
        if at + _BLOCK.size > len(data):
            raise _damaged(what, "its last block is cut off")
        tag, length = _BLOCK.unpack_from(data, at)
        at += _BLOCK.size
        if length > len(data) - at or tag in found:
            raise _damaged(what, "a block passes its end or stands twice")
        found[tag] = data[at : at + length]
        at += length
    return found


def _inner(padded: bytes, what: str) -> StateFormat:
    pad = padded[-1] if padded else 0
    state = padded[: len(padded) - pad]
    if not 1 <= pad <= _PAD or len(state) < _INNER.size + 4:
        raise _damaged(what, "what it decrypts to is no state")
    version, magic, least = _INNER.unpack_from(state)
    if magic != _MAGIC or int.from_bytes(state[-4:], "big") != _MAGIC:
        raise _damaged(what, "what it decrypts to is no state of a TPM 2.0")
    return StateFormat(version, least)


def _damaged(what: str, why: str) -> VtpmStateDamaged:
    return VtpmStateDamaged(
        f"the TPM state of {what} is damaged: {why}",
        value=what,
        cure="Import the state that was exported of this VM (`holdfast trust import-state`), or restore"
        " its folder from a backup.",
    )
