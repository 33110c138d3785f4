"""Tar archives with one lie in each, written byte by byte, and sources that exist in memory only."""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from holdfast.storage.appliances.archive import Place, index
from holdfast.storage.appliances.source import HeldFile, Source, read_source

BLOCK = 512
END = bytes(2 * BLOCK)


def header(
    name: str | bytes,
    size: int | bytes = 0,
    kind: bytes = b"0",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    link: bytes = b"",
) -> bytes:
    """One header (POSIX.1-1988, ustar). `size` as bytes stands as it is."""
    raw = bytearray(BLOCK)
    plain = name.encode() if isinstance(name, str) else name
    raw[: len(plain)] = plain
    raw[100:124] = b"0000644\x000000000\x000000000\x00"
    field = b"%011o\0" % size if isinstance(size, int) else size
    raw[124 : 124 + len(field)] = field
    raw[136:148] = b"00000000000\0"
    raw[156:157] = kind
    raw[157 : 157 + len(link)] = link
    raw[257 : 257 + len(magic)] = magic
    raw[345 : 345 + len(prefix)] = prefix
    return summed(raw)


def summed(raw: bytearray) -> bytes:
    """With the checksum that the other bytes have."""
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def member(name: str | bytes, data: bytes = b"", kind: bytes = b"0", **more: bytes) -> bytes:
    return header(name, len(data), kind, **more) + padded(data)


def padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0")


def pax(**records: str) -> bytes:
    """An extended header (POSIX.1-2001, pax) for the member after it. `__` in a key is a dot."""
    return member("PaxHeaders/x", b"".join(map(pax_record, records, records.values())), b"x")


def pax_record(key: str, value: str) -> bytes:
    rest = b" %s=%s\n" % (key.replace("__", ".").encode(), value.encode())
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


def base_256(size: int) -> bytes:
    """A size as GNU tar writes those of 8 GiB and more."""
    return b"\x80" + size.to_bytes(11, "big")


@contextmanager
def sparse(*parts: tuple[int, bytes], size: int) -> Iterator[int]:
    """A file of `size` bytes with `parts` at their offsets, of which the rest takes no room."""
    fd = os.memfd_create("sparse")
    try:
        os.ftruncate(fd, size)
        for at, data in parts:
            os.pwrite(fd, data, at)
        yield fd
    finally:
        os.close(fd)


def indexed(data: bytes) -> tuple[Place, ...]:
    with sparse((0, data), size=len(data)) as fd:
        return index(fd, len(data))


def archived(*members: tuple[str, bytes]) -> bytes:
    """An honest archive, by Python's own writer."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return made.getvalue()


@contextmanager
def held(files: Sequence[tuple[str, bytes]]) -> Iterator[list[HeldFile]]:
    fds: list[int] = []
    try:
        found = []
        for name, data in files:
            fds.append(os.memfd_create("held"))
            os.write(fds[-1], data)
            found.append(HeldFile(name, fds[-1], 0, len(data)))
        yield found
    finally:
        for fd in fds:
            os.close(fd)


def source_of(*files: tuple[str, bytes]) -> Source:
    """What is read of files, which are closed again. Raises as `read_source`."""
    with held(files) as found:
        return read_source(found)


def disks_of(*files: tuple[str, bytes]) -> dict[str, bytes]:
    """The beginning of each disk by its id."""
    with held(files) as found:
        return {disk: file.read(4096) for disk, file in read_source(found).disks.items()}


OVF = "http://schemas.dmtf.org/ovf/envelope/1"
RASD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
DISK = b"\1" * 4096


def ovf(
    hrefs: Sequence[str] = ("web.vmdk",),
    file: str = "",
    disk: str = 'ovf:capacity="1" ovf:capacityAllocationUnits="byte * 2^30"',
    items: str = "",
    sections: str = "",
    head: str = "",
) -> bytes:
    """A descriptor of a machine with a disk for each of `hrefs`. The others are put in as they are.

    Args:
        file, disk: attributes of every File and Disk.
        items: beside those of the hardware.
        sections: of the machine, beside the hardware.
        head: between the declaration and the envelope.
    """
    numbers = range(1, len(hrefs) + 1)
    drives = (
        f"<Item><rasd:AddressOnParent>{number}</rasd:AddressOnParent>"
        f"<rasd:HostResource>ovf:/disk/d{number}</rasd:HostResource>"
        f"<rasd:InstanceID>{number + 100}</rasd:InstanceID><rasd:ResourceType>17</rasd:ResourceType></Item>"
        for number in numbers
    )
    return (
        f'<?xml version="1.0"?>{head}<Envelope xmlns="{OVF}" xmlns:ovf="{OVF}" xmlns:rasd="{RASD}">'
        "<References>"
        + "".join(
            f'<File ovf:id="f{number}" ovf:href="{href}" {file}/>'
            for number, href in zip(numbers, hrefs, strict=True)
        )
        + "</References><DiskSection><Info/>"
        + "".join(f'<Disk ovf:diskId="d{number}" ovf:fileRef="f{number}" {disk}/>' for number in numbers)
        + '</DiskSection><VirtualSystem ovf:id="web"><Info/><Name>web</Name><VirtualHardwareSection><Info/>'
        + f"{''.join(drives)}{items}</VirtualHardwareSection>{sections}</VirtualSystem></Envelope>"
    ).encode()


def manifest(*files: tuple[str, bytes], algorithm: str = "SHA256") -> bytes:
    return "".join(
        f"{algorithm}({name})= {hashlib.new(algorithm.lower(), data).hexdigest()}\n" for name, data in files
    ).encode()
