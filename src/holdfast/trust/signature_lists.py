"""Key databases: EFI_SIGNATURE_LISTs read and written, and files that bring them.

UEFI specification, section 32.4.1 (lists and their kinds) and 8.2.2 (authenticated variables). A
database may come from a hostile guest or a file from anywhere: reading is bounded, and an entry that
is no certificate counts for nothing. Certificates that were read stay in a bounded cache,
because thousands of stores hold the same few. Pure.
"""

import contextlib
import hashlib
import struct
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache

from cryptography import x509

X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
SHA256 = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328")
_HASHES = {
    SHA256: ("sha256", 32),
    uuid.UUID("ff3e5307-9fd0-48c9-85f1-8ad56c701e01"): ("sha384", 48),
    uuid.UUID("093e0fae-a6c4-4f50-9f1b-d41e2b89c19a"): ("sha512", 64),
}
CERTIFICATE_SHA256 = uuid.UUID("3bd2a492-96c0-4079-b420-fcf98ef103ed")
_CERTIFICATE_HASHES = {
    CERTIFICATE_SHA256: ("sha256", 32),
    uuid.UUID("7076876e-80c2-4ee6-aad2-28b349a6865b"): ("sha384", 48),
    uuid.UUID("446dbf63-2502-4cda-bcfa-2465d2b0fe9d"): ("sha512", 64),
}
_PKCS7 = uuid.UUID("4aafd29d-68df-49ee-8aa9-347d375665a7").bytes_le
_LIST = struct.Struct("<16sLLL")
_MAX_SIGNATURES = 65536
_LONGEST_TEXT = 512
_LARGEST_CERTIFICATE = 16 * 1024
_LARGEST_KEPT = 64 * 1024


@dataclass(frozen=True)
class Signature:
    """One EFI_SIGNATURE_DATA with the kind of its list."""

    kind: uuid.UUID
    owner: uuid.UUID
    data: bytes

    @property
    def entry(self) -> bytes:
        """Owner and data, which is what is measured when it accepted something."""
        return self.owner.bytes_le + self.data


@dataclass(frozen=True)
class HeldCertificate:
    """A certificate and the facts about it that people ask for."""

    certificate: x509.Certificate = field(repr=False)
    der: bytes = field(repr=False)
    fingerprint: str
    """SHA-256 of the DER, 64 hexadecimal digits."""
    subject: str
    """RFC 4514 text."""
    issuer: str
    name: str
    """The subject's common name, or the whole subject where it has none."""
    expires: datetime
    """UTC."""


@dataclass(frozen=True)
class KeyDatabase:
    """The content of PK, KEK, db or dbx."""

    signatures: tuple[Signature, ...] = ()
    certificates: tuple[HeldCertificate, ...] = ()
    image_hashes: frozenset[tuple[str, bytes]] = frozenset()
    """Algorithm and Authenticode digest of an image."""
    certificate_hashes: frozenset[tuple[str, bytes]] = frozenset()
    """Algorithm and digest of a certificate's to-be-signed part."""

    @property
    def fingerprints(self) -> frozenset[str]:
        return frozenset(each.fingerprint for each in self.certificates)


@lru_cache(maxsize=1024)
def read_certificate(der: bytes) -> HeldCertificate | None:
    """The facts about a certificate in DER; None where it is none that can be read, or over 16 KiB."""
    if len(der) > _LARGEST_CERTIFICATE:
        return None
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        subject = certificate.subject.rfc4514_string()
        issuer = certificate.issuer.rfc4514_string()
        expires = certificate.not_valid_after_utc
        # Read where its form is checked, so that a later use of the key cannot fail by it.
        certificate.public_key()
    except Exception:  # cryptography raises many kinds for what a hostile certificate can hold
        return None
    return HeldCertificate(
        certificate,
        der,
        hashlib.sha256(der).hexdigest(),
        subject[:_LONGEST_TEXT],
        issuer[:_LONGEST_TEXT],
        (str(names[0].value) if names else subject)[:_LONGEST_TEXT],
        expires,
    )


def read_database(data: bytes) -> KeyDatabase:
    """What a key database holds, up to where its form breaks."""
    return _read_kept(data) if len(data) <= _LARGEST_KEPT else _read(data)


@lru_cache(maxsize=256)
def _read_kept(data: bytes) -> KeyDatabase:
    return _read(data)


def _read(data: bytes) -> KeyDatabase:
    signatures: list[Signature] = []
    with contextlib.suppress(ValueError):
        for each in _signatures(data):
            signatures.append(each)
    return database_of(signatures)


def database_of(signatures: Iterable[Signature]) -> KeyDatabase:
    """Entries of other kinds, and certificates that cannot be read, are kept and count for nothing."""
    signatures = tuple(signatures)
    certificates: dict[str, HeldCertificate] = {}
    images: set[tuple[str, bytes]] = set()
    hashes: set[tuple[str, bytes]] = set()
    for each in signatures:
        if each.kind in _HASHES:
            algorithm, size = _HASHES[each.kind]
            images.add((algorithm, each.data[:size]))
        elif each.kind in _CERTIFICATE_HASHES:
            # The time of revocation behind the hash only matters to signatures with a trusted
            # time stamp, which edk2 is not given here: the certificate counts as revoked.
            algorithm, size = _CERTIFICATE_HASHES[each.kind]
            hashes.add((algorithm, each.data[:size]))
        elif each.kind == X509 and (held := read_certificate(each.data)) is not None:
            certificates.setdefault(held.fingerprint, held)
    return KeyDatabase(signatures, tuple(certificates.values()), frozenset(images), frozenset(hashes))


def parse_lists(data: bytes) -> tuple[Signature, ...]:
    """Every entry of a run of lists.

    Raises:
        ValueError: it is no whole run of lists, or has more than 65536 entries.
    """
    return tuple(_signatures(data))


def _signatures(data: bytes) -> Iterator[Signature]:
    position, count = 0, 0
    while position < len(data):
        if position + _LIST.size > len(data):
            raise ValueError("a list is cut off")
        kind, size, header, entry = _LIST.unpack_from(data, position)
        first, stop = position + _LIST.size + header, position + size
        if entry <= 16 or first > stop or stop > len(data) or (stop - first) % entry:
            raise ValueError("a list contradicts itself")
        for start in range(first, stop, entry):
            count += 1
            if count > _MAX_SIGNATURES:
                raise ValueError("too many entries")
            owner = uuid.UUID(bytes_le=data[start : start + 16])
            yield Signature(uuid.UUID(bytes_le=kind), owner, data[start + 16 : start + entry])
        position = stop


def encode_lists(signatures: Iterable[Signature]) -> bytes:
    """Lists of these entries; neighbours of one kind and size share a list, certificates never do."""
    lists: list[list[Signature]] = []
    for each in signatures:
        last = lists[-1][-1] if lists else None
        if last and each.kind == last.kind != X509 and len(each.data) == len(last.data):
            lists[-1].append(each)
        else:
            lists.append([each])
    parts = []
    for group in lists:
        entry = 16 + len(group[0].data)
        parts.append(_LIST.pack(group[0].kind.bytes_le, _LIST.size + entry * len(group), 0, entry))
        parts += [each.entry for each in group]
    return b"".join(parts)


def update_payload(data: bytes) -> bytes:
    """The lists in an update file: as they are, or behind an EFI_VARIABLE_AUTHENTICATION_2 descriptor.

    The descriptor's own signature is for firmware to judge; here the file is the user's word.
    """
    if len(data) >= 40 and data[24:40] == _PKCS7:
        length, revision, kind = struct.unpack_from("<LHH", data, 16)
        if revision == 0x0200 and kind == 0x0EF1 and 24 <= length <= len(data) - 16:
            return data[16 + length :]
    return data
