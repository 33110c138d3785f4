"""Certificates and hashes of the Secure Boot databases: EFI_SIGNATURE_LISTs, parsed within bounds.

UEFI specification, section 32.4.1. The bytes may be a guest's; nothing is kept here but a cache of
certificates already read, by their bytes.
"""

import hashlib
import struct
import uuid
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509

_LIST = struct.Struct("<16sIII")
_OWNER = 16
_MAX_CERTIFICATE = 16 * 1024
_SHOWN = 200
_TYPES = {
    uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072").bytes_le: "x509",
    uuid.UUID("c1c41626-504c-4092-aca9-41f936934328").bytes_le: "sha256",
    uuid.UUID("3bd2a492-96c0-4079-b420-fcf98ef103ed").bytes_le: "x509-sha256",
}


@dataclass(frozen=True, slots=True)
class Signature:
    """One EFI_SIGNATURE_DATA."""

    kind: str
    """`x509`, `sha256` (of an image), `x509-sha256` (of a certificate's TBS part) or `other`."""
    entry: bytes
    """Owner and content, as they are measured when the entry accepted something."""

    @property
    def content(self) -> bytes:
        return self.entry[_OWNER:]


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    subject: str
    """RFC 4514 text, cut and made printable."""
    fingerprint: str
    """SHA-256 of the DER bytes, hexadecimal."""
    tbs_sha256: bytes
    """SHA-256 of the part that is signed."""


def read_signature_lists(data: bytes) -> tuple[Signature, ...]:
    """Every entry, in order.

    Raises:
        ValueError: the lists do not fill `data` exactly.
    """
    found: list[Signature] = []
    at = 0
    while at < len(data):
        if at + _LIST.size > len(data):
            raise ValueError("a signature list is cut short")
        kind, size, header, each = _LIST.unpack_from(data, at)
        first, end = at + _LIST.size + header, at + size
        if size < _LIST.size or end > len(data) or first > end or each <= _OWNER or (end - first) % each:
            raise ValueError("a signature list has an impossible size")
        name = _TYPES.get(kind, "other")
        found += [Signature(name, data[here : here + each]) for here in range(first, end, each)]
        at = end
    return tuple(found)


@lru_cache(maxsize=512)
def certificate_facts(der: bytes) -> CertificateFacts | None:
    """What a DER certificate says of itself; None where it is none."""
    if len(der) > _MAX_CERTIFICATE:
        return None
    try:
        certificate = x509.load_der_x509_certificate(der)
        subject = printable(certificate.subject.rfc4514_string(), _SHOWN)
        signed = certificate.tbs_certificate_bytes
    except (ValueError, TypeError, x509.InvalidVersion):
        return None
    return CertificateFacts(subject, hashlib.sha256(der).hexdigest(), hashlib.sha256(signed).digest())


def printable(text: str, most: int) -> str:
    """Text of a guest as it may stand on a terminal: no control characters, at most `most` long."""
    cut = text if len(text) <= most else text[: most - 3] + "..."
    if cut.isprintable():
        return cut
    return "".join(each if each.isprintable() else "�" for each in cut)
