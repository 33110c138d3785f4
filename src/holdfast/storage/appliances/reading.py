"""Words that every source shares: amounts, addresses, names, and how findings are made."""

import re

from holdfast.spec.appliance import Finding, Severity
from holdfast.spec.units import GIB, KIB, MIB, TIB, format_size
from holdfast.spec.vm import GuestOs
from holdfast.storage.appliances.refusals import AmountAbsurd
from holdfast.storage.formats.reading import MAX_DISK

_POWER = re.compile(
    r"byte\s*(?:\*\s*(2|10)\s*\^\s*(\d{1,3})\s*)?(?:\*\s*(\d{1,6})\s*)?", re.IGNORECASE | re.ASCII
)
_OLD_UNITS = {
    "": 1, "byte": 1, "bytes": 1, "b": 1,
    "kilobytes": KIB, "kb": KIB, "kib": KIB, "k": KIB,
    "megabytes": MIB, "mb": MIB, "mib": MIB, "m": MIB,
    "gigabytes": GIB, "gb": GIB, "gib": GIB, "g": GIB,
    "terabytes": TIB, "tb": TIB, "tib": TIB, "t": TIB,
}  # fmt: skip
_UUID = re.compile(r"\{?([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\}?", re.ASCII)
_MAC = re.compile(r"[0-9a-f]{12}", re.ASCII)
MAX_MEMORY = 240 * TIB
MAX_CPUS = 2048
_LONGEST_TEXT = 512


def info(id_: str, text: str) -> Finding:
    return Finding(id=id_, severity=Severity.INFO, text=short(text, 2 * _LONGEST_TEXT))


def warning(id_: str, text: str) -> Finding:
    return Finding(id=id_, severity=Severity.WARNING, text=short(text, 2 * _LONGEST_TEXT))


def error(id_: str, text: str) -> Finding:
    return Finding(id=id_, severity=Severity.ERROR, text=short(text, 2 * _LONGEST_TEXT))


def short(text: str, limit: int = _LONGEST_TEXT) -> str:
    """Text from outside, cut to `limit` characters, control characters as spaces."""
    plain = "".join(each if each.isprintable() else " " for each in text[: limit + 1])
    return plain if len(plain) <= limit else plain[: limit - 3] + "..."


def unit_factor(units: str) -> int | None:
    """Bytes of a programmatic unit (DMTF DSP0004, annex C: `byte * 2^20`) or an old word for one.

    None: it is neither, or larger than any amount that is taken.
    """
    word = units.strip()
    if word.lower() in _OLD_UNITS:
        return _OLD_UNITS[word.lower()]
    found = _POWER.fullmatch(word)
    if not found:
        return None
    root, exponent, factor = found.groups()
    if exponent is not None and int(exponent) > 64:
        return None
    return (int(root) ** int(exponent) if root else 1) * int(factor or 1)


def amount(number: str, units: str, largest: int, what: str) -> int:
    """Bytes of a number with units. `what` names it for people, as in "the capacity of disk 'x'".

    Raises:
        AmountAbsurd: it is no number, has units that are not known, or is beyond `largest`.
    """
    digits, factor = number.strip(), unit_factor(units)
    # So many digits cannot be an amount of bytes; Python would take quadratic time for millions.
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 24) or factor is None:
        raise _absurd(f"{what} is given as {short(number, 40)!r} {short(units, 40)!r}", number)
    size = int(digits) * factor
    if size > largest:
        raise _absurd(f"{what} is {size} bytes, and at most {format_size(largest)} are possible", number)
    return size


def disk_size(number: str, units: str, disk: str) -> int:
    """Bytes of a disk's capacity. Raises AmountAbsurd."""
    return amount(number, units, MAX_DISK, f"the capacity of disk {short(disk, 60)!r}")


def count(number: str, largest: int, what: str) -> int:
    """A whole number from 1. Raises AmountAbsurd."""
    digits = number.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 9) or not 1 <= int(digits) <= largest:
        raise _absurd(f"{what} is {short(number, 40)!r}; from 1 to {largest} are possible", number)
    return int(digits)


def _absurd(message: str, value: str) -> AmountAbsurd:
    return AmountAbsurd(
        message,
        value=short(value, 60),
        cure="The description is damaged or was changed: export the VM again.",
    )


def mac_address(written: str) -> str | None:
    """With colons and in lower case; None where it is not the address of one station (IEEE 802)."""
    digits = re.sub(r"[:.\-\s]", "", written.strip().lower())
    if not _MAC.fullmatch(digits) or int(digits[:2], 16) & 1 or not int(digits, 16):
        return None
    return ":".join(digits[at : at + 2] for at in range(0, 12, 2))


def machine_uuid(written: str) -> str | None:
    """In lower case; None where it is no UUID (RFC 4122), or that of no machine at all."""
    found = _UUID.fullmatch(written.strip().lower())
    return found[1] if found and found[1].strip("0-") else None


def base_name(path: str) -> str:
    """The last part of a path of Linux or Windows."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def guest_os(words: str) -> GuestOs | None:
    """What a platform's name for a guest system means here; None: neither of the two."""
    lower = words.lower()
    if re.search(r"windows|win\d|winnet|winxp|winvista|longhorn|^w2k|^wxp|^wvista", lower):
        return GuestOs.WINDOWS
    families = (
        "linux|debian|ubuntu|centos|rhel|redhat|red hat|fedora|suse|sles|rocky|alma|photon|coreos|l26|oracle"
    )
    return GuestOs.LINUX if re.search(families, lower) else None
