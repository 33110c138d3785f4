"""What the events of a log mean: variables, texts and actions, each only as far as its digest proves it.

Nothing is taken from an event's data unless the event's digest is the hash of just that.
"""

import hashlib
import struct
import uuid
from dataclasses import dataclass

from holdfast.spec.trust import Bank
from holdfast.trust.event_log import Event, Kind

_HEADER = struct.Struct("<16sQQ")
# What GRUB writes before a text that it measures (grub-core/kern/verifiers.c, commands/tpm.c).
_GRUB_PREFIXES = (b"grub_cmd: ", b"kernel_cmdline: ", b"module_cmdline: ")

SHIM_LOCK = uuid.UUID("605dab50-e046-4300-abb6-3dd810dd8b23")

# Types of which the profile (section 10.4.1) says that the digest is the hash of the data.
_HASHED_WHOLE = frozenset(
    (
        Kind.SEPARATOR,
        Kind.ACTION,
        Kind.EFI_ACTION,
        Kind.CRTM_VERSION,
        Kind.VARIABLE_DRIVER_CONFIG,
        Kind.VARIABLE_AUTHORITY,
        Kind.VARIABLE_BOOT_2,
    )
)


_STRONG = (Bank.SHA256, Bank.SHA384, Bank.SHA512)


def _digests(*contents: bytes) -> frozenset[bytes]:
    return frozenset(hashlib.new(bank, content).digest() for bank in _STRONG for content in contents)


_SEPARATORS = _digests(bytes(4), b"\xff" * 4, b"\1\0\0\0", b"\0\0\0\1")
_BOOT_ACTIONS = _digests(
    b"Calling EFI Application from Boot Option", b"Returning from EFI Application from Boot Option"
)


@dataclass(frozen=True, slots=True)
class Variable:
    """UEFI_VARIABLE_DATA (section 10.2.6)."""

    vendor: uuid.UUID
    name: str
    data: bytes


def is_separator(event: Event) -> bool:
    """Section 10.4.1, EV_SEPARATOR; by its digest alone, whatever the log calls it."""
    return not _SEPARATORS.isdisjoint(event.digests.values())


def is_boot_action(event: Event) -> bool:
    """An attempt to boot (section 10.4.3), by its digest alone."""
    return not _BOOT_ACTIONS.isdisjoint(event.digests.values())


def has_false_data(event: Event) -> bool:
    """Whether the log shows other data than was measured, where the two must be one."""
    proven = event.kind not in _HASHED_WHOLE or event.proves(event.data)
    return event.pcr <= 7 and not proven and proven_variable(event) is None


def proven_variable(event: Event) -> Variable | None:
    """The variable that was measured, name and all, whatever the log calls the event; None if unproven."""
    data = event.data
    if len(data) < _HEADER.size:
        return None
    vendor, name_length, size = _HEADER.unpack_from(data, 0)
    body = _HEADER.size + 2 * name_length
    end = body + size
    # shim before 15.3 logged six bytes more than there are, and measured all but the last of them.
    old_shim = len(data) == end + 6 and event.proves(data[:-1])
    if not old_shim and (len(data) != end or not event.proves(data)):
        return None
    name = data[_HEADER.size : body].decode("utf-16-le", errors="replace").rstrip("\0")
    return Variable(uuid.UUID(bytes_le=vendor), name, data[body:end])


def grub_text(event: Event) -> tuple[str, str] | None:
    """Kind (`grub_cmd`, `kernel_cmdline`, `module_cmdline`) and text that GRUB measured; None if unproven."""
    prefix, said = _grub_said(event)
    if prefix and (event.proves(said) or event.proves(said.rstrip(b"\0"))):
        return prefix, said.rstrip(b"\0").decode("utf-8", errors="replace")
    return None


def claims_grub_text(event: Event) -> bool:
    """Whether the log shows a text of GRUB's here, proven or not."""
    return bool(_grub_said(event)[0])


def _grub_said(event: Event) -> tuple[str, bytes]:
    if event.kind == Kind.IPL and event.pcr == 8:
        for prefix in _GRUB_PREFIXES:
            if event.data.startswith(prefix):
                return prefix[:-2].decode("ascii"), event.data[len(prefix) :]
    return "", b""


def claimed_text(event: Event) -> str:
    """The name that an EV_IPL gives to what it measured. A claim: names of files are not measured."""
    return event.data.rstrip(b"\0").decode("utf-8", errors="replace") if event.kind == Kind.IPL else ""


def firmware_version(event: Event) -> str:
    """The text of an EV_S_CRTM_VERSION (UTF-16), empty where it says nothing or is not proven."""
    if event.kind != Kind.CRTM_VERSION or not event.proves(event.data):
        return ""
    return event.data.decode("utf-16-le", errors="replace").rstrip("\0")


def claimed_path(event: Event) -> str:
    """The file of a started program's device path, where it ends in one. A claim: it is not measured.

    UEFI_IMAGE_LOAD_EVENT (section 10.2.3); File Path Media Device Path (UEFI specification, 10.3.5.4).
    """
    at, parts = 32, []
    while at + 4 <= len(event.data):
        kind, sub, size = struct.unpack_from("<BBH", event.data, at)
        if size < 4 or kind == 0x7F:
            break
        if (kind, sub) == (4, 4):
            parts.append(event.data[at + 4 : at + size].decode("utf-16-le", errors="replace").rstrip("\0"))
        at += size
    return "\\".join(part.strip("\\") for part in parts if part)
