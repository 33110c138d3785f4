"""The index of an OVA: a tar archive of which nothing is unpacked.

ustar (POSIX.1-1988), pax (POSIX.1-2001: extended headers `x` and `g`) and GNU tar (long names `L`,
sizes of 8 GiB and more in base 256). What is found are places in the file: name, offset, size. Whatever
could reach beyond the archive, or does so for some program that unpacks it, is refused.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from holdfast.storage.appliances.reading import short
from holdfast.storage.appliances.refusals import (
    ArchiveDamaged,
    ArchiveDuplicateName,
    ArchiveHasLink,
    ArchiveMemberUnknown,
    ArchivePathUnsafe,
    ArchiveTooLarge,
    ArchiveTruncated,
)

BLOCK = 512
MAX_MEMBERS = 1024
_LONGEST_HEADER = 64 * 1024
"""Bytes of one extended header."""
_LONGEST_NAME = 512
_FOLDER = b"5"
_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK = b"x", b"g", b"L", b"K"
_LARGEST = 1 << 62


@dataclass(frozen=True)
class Place:
    """A file in an archive, or the whole of one: where its bytes are."""

    name: str
    """Parts by `/`, within the archive."""
    offset: int
    """Bytes from the beginning of the file that holds it."""
    size: int
    """Bytes."""


@dataclass
class _Pending:
    """What extended headers say of the member that follows."""

    name: str | None = None
    size: int | None = None


def is_archive(fd: int) -> bool:
    """It begins with a tar header."""
    head = os.pread(fd, BLOCK, 0)
    return len(head) == BLOCK and any(head) and _checksum_holds(head)


def index(fd: int, size: int) -> tuple[Place, ...]:
    """Every regular file of the archive in `fd`, which has `size` bytes, in its order. Blocks for some ms.

    Raises:
        ArchiveDamaged, ArchiveTruncated, ArchiveTooLarge, ArchiveMemberUnknown: it cannot be read.
        ArchivePathUnsafe, ArchiveHasLink, ArchiveDuplicateName: it must not be.
    """
    found: list[Place] = []
    seen: set[str] = set()
    pending = _Pending()
    for count, (head, at) in enumerate(_headers(fd, size, pending)):
        if count >= MAX_MEMBERS:
            raise ArchiveTooLarge(
                f"the archive has more than {MAX_MEMBERS} members",
                value=MAX_MEMBERS,
                cure="It is no OVA: export the VM again.",
            )
        kind = head[156:157]
        name = check_path(pending.name if pending.name is not None else _name(head))
        length = pending.size if pending.size is not None else _number(head[124:136], "a size")
        pending.name = pending.size = None
        if kind == _FOLDER:
            continue
        if kind in (b"1", b"2"):
            raise ArchiveHasLink(
                f"the archive's member {name!r} is a link, which is never followed",
                value=name,
                cure="Do not import it, unless you know who made it; export the VM again.",
            )
        if kind not in (b"0", b"\0", b"7"):
            raise _unknown(name, kind)
        if name.lower() in seen:
            raise ArchiveDuplicateName(
                f"the archive has two members {name!r}",
                value=name,
                cure="Do not import it: which of them counts is a matter of taste. Export the VM again.",
            )
        if at + length > size:
            raise _cut_off(
                f"after {size} bytes, and its member {short(name, 120)!r} reaches to byte {at + length}", name
            )
        seen.add(name.lower())
        found.append(Place(name, at, length))
    return tuple(found)


def _headers(fd: int, size: int, pending: _Pending) -> Iterator[tuple[bytes, int]]:
    """Headers of members with where their data begins; extended headers go into `pending`."""
    at = extended = 0
    while at < size:
        head = os.pread(fd, BLOCK, at)
        if len(head) < BLOCK:
            raise _cut_off(f"in the middle of a header, after {size} bytes", size)
        if not any(head):
            return
        if not _checksum_holds(head):
            raise _damaged(f"no tar header at byte {at}")
        kind = head[156:157]
        if kind in (_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK):
            length, extended = _number(head[124:136], "a size"), extended + 1
            if length > _LONGEST_HEADER or extended > 2 * MAX_MEMBERS:
                raise _damaged(f"an extended header of {length} bytes, or too many of them")
            data = os.pread(fd, length, at + BLOCK)
            if len(data) < length:
                raise _cut_off(f"in an extended header, after {size} bytes", size)
            if kind == _PAX:
                _read_pax(data, pending)
            elif kind == _GNU_NAME:
                pending.name = _text(data.split(b"\0", 1)[0])
        else:
            # The consumer takes `pending` before it asks for the next one.
            length = pending.size if pending.size is not None else _number(head[124:136], "a size")
            if kind in (b"1", b"2", _FOLDER):
                length = 0
            yield head, at + BLOCK
        at += BLOCK + -(-length // BLOCK) * BLOCK


def check_path(name: str) -> str:
    """A path within a source, with its parts by `/` and no `./` before it.

    Raises:
        ArchivePathUnsafe: it is absolute, leads upwards, or has characters that no file here needs.
    """
    while name.startswith("./"):
        name = name[2:]
    name = name.rstrip("/") or "."
    parts = name.split("/")
    unsafe = (
        len(name) > _LONGEST_NAME
        or name.startswith("/")
        or "\\" in name
        or ".." in parts
        or "" in parts
        or not name.isprintable()
        or (len(name) > 1 and name[1] == ":")
    )
    if unsafe:
        raise ArchivePathUnsafe(
            f"the path {short(name, 120)!r} leads out of its folder, or is none",
            value=short(name, 120),
            cure="Do not import it, unless you know who made it; export the VM again.",
        )
    return name


def _name(head: bytes) -> str:
    name = _text(head[:100].split(b"\0", 1)[0])
    prefix = _text(head[345:500].split(b"\0", 1)[0]) if head[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _number(raw: bytes, what: str) -> int:
    """Octal digits (POSIX), or base 256 where the first bit is set (GNU tar manual, "Extensions")."""
    if raw[0] & 0x80:
        value = int.from_bytes(bytes([raw[0] & 0x7F]) + raw[1:], "big")
        if raw[0] & 0x40 or value > _LARGEST:
            raise _damaged(f"{what} that is negative or beyond any file")
        return value
    digits = raw.strip(b" \0")
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise _damaged(f"{what} that is no number")
    return int(digits, 8)


def _read_pax(data: bytes, pending: _Pending) -> None:
    """Records `LENGTH KEYWORD=VALUE\\n` (POSIX.1-2001, pax, "pax Extended Header")."""
    while data:
        digits, space, _ = data[:12].partition(b" ")
        if not space or not digits.isdigit():
            raise _damaged("an extended header without lengths")
        length = int(digits)
        record = data[len(digits) + 1 : length]
        if length > len(data) or length <= len(digits) + 1 or not record.endswith(b"\n"):
            raise _damaged("an extended header whose lengths do not fit")
        key, _, value = record[:-1].partition(b"=")
        if key == b"path":
            pending.name = _text(value)
        elif key == b"size":
            if not value.isdigit() or len(value) > 19 or int(value) > _LARGEST:
                raise _damaged("a size that is no number")
            pending.size = int(value)
        elif key.startswith(b"GNU.sparse"):
            raise _unknown(pending.name or "?", b"S")
        data = data[length:]


def _checksum_holds(head: bytes) -> bool:
    """The sum of all bytes, its own field as spaces; some old writers summed signed bytes."""
    digits = head[148:156].strip(b" \0")
    if not digits or digits.strip(b"01234567"):
        return False
    rest = head[:148] + b" " * 8 + head[156:]
    unsigned = sum(rest)
    signed = unsigned - 256 * sum(1 for byte in rest if byte > 127)
    return int(digits, 8) in (unsigned, signed)


def _cut_off(where: str, value: str | int) -> ArchiveTruncated:
    return ArchiveTruncated(
        f"the archive ends {where}",
        value=value,
        cure="It was cut off on its way: copy or download it again.",
    )


def _damaged(what: str) -> ArchiveDamaged:
    return ArchiveDamaged(
        f"the archive has {what}", value=what, cure="Copy or download it again, or export the VM again."
    )


def _unknown(name: str, kind: bytes) -> ArchiveMemberUnknown:
    shown = kind.decode("latin-1")
    return ArchiveMemberUnknown(
        f"the archive's member {short(name, 60)!r} is no ordinary file (tar type {shown!r})",
        value=shown,
        cure="Make the archive anew with `tar --format=ustar` from the unpacked files.",
    )
