"""Reads a VM's UEFI variable store: every variable in use, and in short what Secure Boot goes by.

A store may have been written by a hostile guest: the parser is our own, bounded in size, and always
moves forward. The stores belong to `trust.enrollment` (new ones) and to the VMs; nothing is kept here.
"""

import struct
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from holdfast.spec.errors import Failed
from holdfast.trust.signature_lists import KeyDatabase, read_database

GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
SECURE_BOOT_ENABLE = uuid.UUID("f0a30bc7-af08-4556-99c4-001009c93a44")
VENDORS = {"PK": GLOBAL, "KEK": GLOBAL, "db": IMAGE_SECURITY, "dbx": IMAGE_SECURITY}
"""The key databases and the namespace of each: UEFI specification, sections 3.3 and 32.6.1."""

_MAX_STORE = 4 * 1024 * 1024
_MAX_VARIABLES = 4096
_NVDATA = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50").bytes_le
_AUTHENTICATED = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le
_HEADER = struct.Struct("<HBxLQ16sLLL16s")
_IN_USE, _BEING_REPLACED = 0x3F, 0x3E


class VariablesDamaged(Failed):
    id = "variables-damaged"


@dataclass(frozen=True)
class Variable:
    name: str
    vendor: uuid.UUID
    attributes: int
    """EFI_VARIABLE_* bits: UEFI specification, section 8.2."""
    time: bytes
    """EFI_TIME of the last authenticated write; zeros where there was none."""
    value: bytes


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


@dataclass(frozen=True)
class KeyInventory:
    """What Secure Boot goes by in one store."""

    secure_boot: bool
    """SecureBootEnable is on and a platform key is there."""
    databases: dict[str, KeyDatabase]
    """By name: PK, KEK, db and dbx, each always there."""


def read_summary(path: Path) -> VariablesSummary:
    """Which certificates a store holds.

    Raises:
        VariablesDamaged: it is no variable store, or larger than 4 MiB.
    """
    return summarize(read_store(path), path)


def read_store(path: Path) -> bytes:
    """The bytes of a store, and one more than allowed where it is too large: `parse` refuses it."""
    with path.open("rb") as file:
        return file.read(_MAX_STORE + 1)


def summarize(data: bytes, path: Path) -> VariablesSummary:
    """Which certificates the store `data` holds; `path` is told in the error.

    Raises:
        VariablesDamaged: it is no variable store, or larger than 4 MiB.
    """
    found = inventory(parse(data, path))
    certificates = tuple(
        Certificate(name, held.subject, held.expires)
        for name, database in found.databases.items()
        for held in database.certificates
    )
    return VariablesSummary(found.secure_boot, certificates)


def read_inventory(path: Path) -> KeyInventory:
    """All keys and hashes of a store. Made for thousands in a row: a certificate is parsed once.

    Raises:
        VariablesDamaged: it is no variable store, or larger than 4 MiB.
    """
    return inventory(parse(read_store(path), path))


def inventory(variables: Iterable[Variable]) -> KeyInventory:
    values = {(each.name, each.vendor): each.value for each in variables}
    databases = {name: read_database(values.get((name, vendor), b"")) for name, vendor in VENDORS.items()}
    enabled = values.get(("SecureBootEnable", SECURE_BOOT_ENABLE), b"\x01")[:1] == b"\x01"
    return KeyInventory(enabled and bool(values.get(("PK", GLOBAL))), databases)


def parse(data: bytes, path: Path) -> tuple[Variable, ...]:
    """The variables in use, each name of a namespace once; `path` is told in the error.

    EFI_FIRMWARE_VOLUME_HEADER (PI specification, volume 3, section 3.2.1), then edk2's
    VARIABLE_STORE_HEADER and AUTHENTICATED_VARIABLE_HEADER (MdeModulePkg VariableFormat.h). A
    variable that was being replaced when the machine ended counts where its successor is not there.

    Raises:
        VariablesDamaged: it is no variable store, or larger than 4 MiB.
    """
    try:
        if len(data) > _MAX_STORE:
            raise ValueError("too large")
        return _parse(data)
    except (struct.error, ValueError) as error:
        raise VariablesDamaged(
            f"{path} is not a UEFI variable store",
            value=str(path),
            cure="Restore the VM from a backup or a checkpoint.",
        ) from error


def _parse(data: bytes) -> tuple[Variable, ...]:
    if len(data) < 128 or data[16:32] != _NVDATA or data[40:44] != b"_FVH":
        raise ValueError("no volume of variables")
    (start,) = struct.unpack_from("<H", data, 48)
    if data[start : start + 16] != _AUTHENTICATED:
        raise ValueError("no authenticated variables")
    (size,) = struct.unpack_from("<L", data, start + 16)
    end = min(start + size, len(data))
    position = start + 28
    found: dict[tuple[str, bytes], Variable] = {}
    replaced: dict[tuple[str, bytes], Variable] = {}
    for _ in range(_MAX_VARIABLES):
        if position + _HEADER.size > end:
            break
        magic, state, attributes, _, time, _, name_size, size, vendor = _HEADER.unpack_from(data, position)
        if magic != 0x55AA:
            break
        body = position + _HEADER.size
        stop = body + name_size + size
        if stop > end:
            raise ValueError("a variable passes the end of the store")
        if state in (_IN_USE, _BEING_REPLACED):
            name = data[body : body + name_size].decode("utf-16-le", errors="replace").split("\0", 1)[0]
            variable = Variable(
                name, uuid.UUID(bytes_le=vendor), attributes, time, data[body + name_size : stop]
            )
            (found if state == _IN_USE else replaced)[name, vendor] = variable
        position = (stop + 3) & ~3
    return tuple({**replaced, **found}.values())
