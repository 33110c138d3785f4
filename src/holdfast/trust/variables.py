"""Reads a VM's UEFI variable store: which certificates it holds, and whether Secure Boot is on.

A store may have been written by a hostile guest: the parser is our own, bounded in size, and always
moves forward. The stores belong to `trust.enrollment` (new ones) and to the VMs; nothing is kept here.
"""

import contextlib
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from holdfast.spec.errors import Failed

_MAX_STORE = 4 * 1024 * 1024
_MAX_VARIABLES = 4096
_NVDATA = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
_AUTHENTICATED = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792")
_X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
_IN_USE = 0x3F
_DATABASES = ("PK", "KEK", "db", "dbx")


class VariablesDamaged(Failed):
    id = "variables-damaged"


@dataclass(frozen=True)
class Certificate:
    variable: str
    """PK, KEK, db or dbx."""
    subject: str
    """RFC 4514 text."""
    not_after: datetime
    """UTC."""


@dataclass(frozen=True)
class VariablesSummary:
    secure_boot: bool
    """SecureBootEnable is on and a platform key is there."""
    certificates: tuple[Certificate, ...]


def read_summary(path: Path) -> VariablesSummary:
    """Which certificates a store holds.

    Raises:
        VariablesDamaged: it is no variable store, or larger than 4 MiB.
    """
    return summarize(read_store(path), path)


def read_store(path: Path) -> bytes:
    """The bytes of a store, and one more than allowed where it is too large: `summarize` refuses it."""
    with path.open("rb") as file:
        return file.read(_MAX_STORE + 1)


def summarize(data: bytes, path: Path) -> VariablesSummary:
    """Which certificates the store `data` holds; `path` is told in the error.

    Raises:
        VariablesDamaged: it is no variable store, or larger than 4 MiB.
    """
    try:
        if len(data) > _MAX_STORE:
            raise ValueError("too large")
        variables = _variables(data)
    except (struct.error, ValueError) as error:
        raise _damaged(path) from error
    certificates = tuple(
        Certificate(name, cert.subject.rfc4514_string(), cert.not_valid_after_utc)
        for name in _DATABASES
        for cert in _certificates(variables.get(name, b""))
    )
    enabled = variables.get("SecureBootEnable", b"")[:1] == b"\x01"
    return VariablesSummary(enabled and bool(variables.get("PK")), certificates)


def _damaged(path: Path) -> VariablesDamaged:
    return VariablesDamaged(
        f"{path} is not a UEFI variable store",
        value=str(path),
        cure="Restore the VM from a backup or a checkpoint.",
    )


def _variables(data: bytes) -> dict[str, bytes]:
    """Names and values of the variables in use.

    EFI_FIRMWARE_VOLUME_HEADER (PI specification, volume 3, section 3.2.1), then edk2's
    VARIABLE_STORE_HEADER and AUTHENTICATED_VARIABLE_HEADER (MdeModulePkg VariableFormat.h).
    """
    if len(data) < 128 or uuid.UUID(bytes_le=data[16:32]) != _NVDATA or data[40:44] != b"_FVH":
        raise ValueError("no volume of variables")
    (start,) = struct.unpack_from("<H", data, 48)
    if uuid.UUID(bytes_le=data[start : start + 16]) != _AUTHENTICATED:
        raise ValueError("no authenticated variables")
    (size,) = struct.unpack_from("<L", data, start + 16)
    end = min(start + size, len(data))
    position = start + 28
    found: dict[str, bytes] = {}
    for _ in range(_MAX_VARIABLES):
        if position + 60 > end:
            break
        magic, state = struct.unpack_from("<HB", data, position)
        if magic != 0x55AA:
            break
        name_size, data_size = struct.unpack_from("<LL", data, position + 36)
        body = position + 60
        stop = body + name_size + data_size
        if stop > end:
            raise ValueError("a variable passes the end of the store")
        if state == _IN_USE:
            name = data[body : body + name_size].decode("utf-16-le", errors="replace").rstrip("\0")
            found[name] = data[body + name_size : stop]
        position = (stop + 3) & ~3
    return found


def _certificates(database: bytes) -> Iterator[x509.Certificate]:
    """X.509 entries of EFI_SIGNATURE_LISTs (UEFI specification, section 32.4.1); bad ones are skipped."""
    position = 0
    while position + 28 <= len(database):
        kind = uuid.UUID(bytes_le=database[position : position + 16])
        size, header, entry = struct.unpack_from("<LLL", database, position + 16)
        stop = position + size
        if size < 28 or stop > len(database):
            return
        first = position + 28 + header
        if kind == _X509 and entry > 16 and first + entry <= stop:
            with contextlib.suppress(ValueError):
                yield x509.load_der_x509_certificate(database[first + 16 : first + entry])
        position = stop
