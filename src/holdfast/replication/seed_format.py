"""A seed: a VM's disks on a removable medium, signed by the source and sealed for one receiver.

    seed.json     `Manifest`: who it is of, its disks, and the key, sealed for the receiver's certificate
    seed.sig      ECDSA over P-256 with SHA-256 (FIPS 186-5) of seed.json, DER, by the source's replica key
    <n>.blocks    of disk n: records of u64 offset, u32 length (big-endian) and the content as AES-256-GCM
                  (NIST SP 800-38D) with its tag of 16 bytes; ascending, what is missing reads as zeroes; the
                  last one is of no bytes, at the disk's end, so that nothing can be cut off

The nonce of a record is u32 the disk's number, u64 the record's; the header is authenticated with it. Only
a base to compare with is in it, so it may be of a VM that runs: what changed meanwhile is sent afterwards.
Readers trust no file of it: no link is followed, each read is bounded, and no record reaches behind its disk.
"""

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import Field, StringConstraints, ValidationError

from holdfast.host.files import sync_file, sync_folder
from holdfast.spec.errors import InvalidInput
from holdfast.spec.model import Frozen
from holdfast.spec.names import Name
from holdfast.spec.units import MIB

PIECE = 1 * MIB
MANIFEST, SIGNATURE = "seed.json", "seed.sig"
_RECORD = struct.Struct(">QI")
_NONCE = struct.Struct(">IQ")
_TAG = 16
_LONGEST = 1 * MIB
_LONGEST_SIGNATURE = 256
_Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
_Fingerprint = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class BadSeed(InvalidInput):
    """It is none, is damaged or cut off, or was not made by that host for this one."""

    id = "replica-bad-seed"


class SeedDisk(Frozen):
    id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    size: Annotated[int, Field(gt=0, lt=1 << 63, multiple_of=512)]
    """Bytes."""


class Manifest(Frozen):
    version: Annotated[int, Field(ge=1, le=1)] = 1
    seed: _Id
    """Made anew for each; the key is bound to it."""
    vm: _Id
    name: Name
    source: _Fingerprint
    receiver: _Fingerprint
    disks: Annotated[tuple[SeedDisk, ...], Field(min_length=1, max_length=256)]
    key: dict[str, Any]
    """As `trust.protection.RecipientLock` wraps it."""


def write_manifest(folder: Path, manifest: Manifest, private: bytes) -> None:
    """Last of all, so that a folder with a manifest is whole. `private`: the source's key, PEM."""
    key = load_pem_private_key(private, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("the key of replication is one of an elliptic curve")
    said = manifest.model_dump_json().encode()
    for name, data in ((SIGNATURE, key.sign(said, ec.ECDSA(hashes.SHA256()))), (MANIFEST, said)):
        path = folder / name
        path.write_bytes(data)
        sync_file(path)
    sync_folder(folder)


def read_manifest(folder: Path) -> tuple[Manifest, bytes, bytes]:
    """The manifest, the bytes that were signed, and the signature, which nobody has checked.

    Raises BadSeed.
    """
    said, signature = _read(folder / MANIFEST, _LONGEST), _read(folder / SIGNATURE, _LONGEST_SIGNATURE)
    try:
        manifest = Manifest.model_validate_json(said)
    except (ValidationError, RecursionError) as error:
        raise _bad("its description cannot be read") from error
    if len({disk.id for disk in manifest.disks}) != len(manifest.disks):
        raise _bad("it names a disk twice")
    return manifest, said, signature


def require_signed(said: bytes, signature: bytes, certificate: str) -> None:
    """`certificate`: of the host that should have signed, PEM. Raises BadSeed."""
    public = x509.load_pem_x509_certificate(certificate.encode()).public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise _bad("the certificate of its source is of another kind")
    try:
        public.verify(signature, said, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise _bad("its source did not sign it") from error


def pack_disk(source: BinaryIO, size: int, number: int, key: bytes, target: BinaryIO) -> Iterator[int]:
    """Write the records of a disk's raw content, without zeroes; yields how far it is, in bytes."""
    sealer, record = AESGCM(key), 0
    for offset in _data(source, size):
        content = os.pread(source.fileno(), min(PIECE, size - offset), offset)
        if content.strip(b"\0"):
            head = _RECORD.pack(offset, len(content))
            target.write(head + sealer.encrypt(_NONCE.pack(number, record), content, head))
            record += 1
        yield offset
    head = _RECORD.pack(size, 0)
    target.write(head + sealer.encrypt(_NONCE.pack(number, record), b"", head))


def unpack_disk(source: BinaryIO, size: int, number: int, key: bytes, target: int) -> Iterator[int]:
    """Write a disk's content into the empty file `target`; yields how far it is. Raises BadSeed, OSError."""
    opener, record, behind = AESGCM(key), 0, 0
    while True:
        head = source.read(_RECORD.size)
        if len(head) < _RECORD.size:
            raise _bad("it is cut off")
        offset, length = _RECORD.unpack(head)
        if offset < behind or length > PIECE or offset + length > size or (not length and offset != size):
            raise _bad("a record of it lies where none can be")
        try:
            content = opener.decrypt(_NONCE.pack(number, record), source.read(length + _TAG), head)
        except (InvalidTag, ValueError) as error:
            raise _bad("it was changed or damaged") from error
        if not length:
            break
        done = 0
        while done < length:
            done += os.pwrite(target, memoryview(content)[done:], offset + done)
        record, behind = record + 1, offset + length
        yield behind
    os.ftruncate(target, size)
    os.fsync(target)


def open_part(folder: Path, number: int) -> BinaryIO:
    """The records of a disk; no link is followed. Raises BadSeed."""
    return os.fdopen(_open(folder / f"{number}.blocks"), "rb")


def _data(source: BinaryIO, size: int) -> Iterator[int]:
    """Offsets of the pieces that may hold data."""
    at = 0
    while at < size:
        try:
            found = os.lseek(source.fileno(), at, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole up to the end
            return
        at = max(at, found // PIECE * PIECE)
        if at < size:
            yield at
        at += PIECE


def _open(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _bad(f"{path.name} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _bad(f"{path.name} is no file")
    return fd


def _read(path: Path, longest: int) -> bytes:
    with os.fdopen(_open(path), "rb") as file:
        data = file.read(longest + 1)
    if len(data) > longest:
        raise _bad(f"{path.name} is too long")
    return data


def _bad(why: str) -> BadSeed:
    return BadSeed(
        f"that is no seed that can be used: {why}",
        value=why,
        cure="Make it anew with `holdfast replica export-seed` on the source.",
    )
