"""A VM's UEFI variable store: made with Secure Boot keys enrolled, and read back.

A new store holds what `virt-fw-vars --enroll-microsoft --sb` enrolls, made by the same library:

    PK    Windows OEM Devices PK 2023: updates of KEK that Microsoft signs for the 2023 hand-over
          are accepted by the guest; Debian's build has a key of its own there, which signs none
    KEK   Microsoft KEK CA 2011 and 2023
    db    Windows PCA 2011 and 2023, UEFI CA 2011 and 2023, Option ROM UEFI CA 2023
    dbx   one entry that matches nothing; virt-firmware carries no revocation list, so the guest's
          own updater (or Shim's SBAT level) brings it

Making reads only the distribution's template. Reading a store that a guest has written uses a
parser of our own that is bounded in size and always moves forward.
"""

import contextlib
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from virt.firmware.efi import efivar
from virt.firmware.varstore.edk2 import Edk2VarStore

from holdfast.host.files import own, write_atomic
from holdfast.host.processes import Identity
from holdfast.spec.errors import Failed

_MAX_STORE = 4 * 1024 * 1024
_MAX_VARIABLES = 4096
_NVDATA = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
_AUTHENTICATED = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792")
_X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
_IN_USE = 0x3F
_DATABASES = ("PK", "KEK", "db", "dbx")
_ENROLLED = (
    ("PK", "Windows OEM Devices PK"),
    ("KEK", "Microsoft Corporation KEK CA 2011"),
    ("KEK", "Microsoft Corporation KEK 2K CA 2023"),
    ("db", "Microsoft Windows Production PCA 2011"),
    ("db", "Windows UEFI CA 2023"),
    ("db", "Microsoft Corporation UEFI CA 2011"),
    ("db", "Microsoft UEFI CA 2023"),
)


class VariablesDamaged(Failed):
    id = "variables-damaged"


class EnrollmentFailed(Failed):
    id = "enrollment-failed"


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


def make_variables(
    template: Path, target: Path, secure_boot: bool, identity: Identity | None = None
) -> VariablesSummary:
    """Write a new VM's variable store to `target` (0600, given to `identity`); atomic, durable.

    `template` is the EMPTY store of the distribution (`FirmwareBuild.template`). Blocks for some
    milliseconds of CPU and an fsync: call it in a thread.

    Raises:
        VariablesDamaged: the template is no variable store.
        EnrollmentFailed: what was written does not read back as meant.
    """
    data = template.read_bytes()
    try:
        _variables(data)
        if secure_boot:
            data = _enrolled(template)
    except (SystemExit, struct.error, ValueError) as error:
        raise _damaged(template) from error
    summary = _summary(data, template)
    missing = [pair for pair in _ENROLLED if secure_boot and not _holds(summary, *pair)]
    if missing or summary.secure_boot is not secure_boot:
        raise EnrollmentFailed(
            f"the keys for Secure Boot were not enrolled as meant into a copy of {template}",
            value=[list(pair) for pair in missing],
            cure="Check that `ovmf` and the Python package `virt-firmware` are whole.",
        )
    write_atomic(target, data, 0o600)
    if identity:
        own(target, identity.uid, identity.gid)
    return summary


def read_summary(path: Path) -> VariablesSummary:
    """Which certificates a store holds; the store may have been written by a hostile guest.

    Raises:
        VariablesDamaged: it is no variable store, or larger than 4 MiB.
    """
    with path.open("rb") as file:
        data = file.read(_MAX_STORE + 1)
    return _summary(data, path)


def _damaged(path: Path) -> VariablesDamaged:
    return VariablesDamaged(
        f"{path} is not a UEFI variable store",
        value=str(path),
        cure="Restore the VM from a backup or a checkpoint.",
    )


def _enrolled(template: Path) -> bytes:
    store = Edk2VarStore(str(template))
    variables: efivar.EfiVarList = store.get_varlist()
    variables.enroll_platform_microsoft(ms_kek="all")
    variables.add_microsoft_keys(ms_db="all")
    variables.enable_secureboot()
    # The library's own way to pad takes two seconds, one byte at a time.
    used = store.filedata[: store.start] + store.bytes_varlist(variables)
    return bytes(used.ljust(store.end, b"\xff") + store.filedata[store.end :])


def _holds(summary: VariablesSummary, variable: str, common_name: str) -> bool:
    return any(found.variable == variable and common_name in found.subject for found in summary.certificates)


def _summary(data: bytes, path: Path) -> VariablesSummary:
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
