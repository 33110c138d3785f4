"""What import parsers are fuzzed with: small honest sources of every kind, and hostile variants of them.

Variants come from a seeded generator: the same seed gives the same ones.
"""

import gzip
import os
import random
import re
import struct
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path

from archives_made import END, archived, base_256, header, member, ovf, pax
from vmdk_made import EXTENT_DATA, EXTENT_GRAIN, GRAIN, sparse_extent, stream

CORPUS = Path(__file__).parents[1] / "vm/appliances"
Altering = Callable[[bytes, random.Random], bytes]
Pieces = dict[int, bytes]
"""A file by the places where it has something."""

_NUMBERS = (0, 1, 2, 7, 8, 511, 512, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_LARGE = (1 << 40, (1 << 62) - 1, 1 << 63, (1 << 64) - 1)
_WORDS = (
    b"", b"0", b"1", b"-1", b"99999999999999999999999999", b"1e9", b"byte * 2^64", b"byte * 2^40", b"../../x",
    b"/etc/shadow", b"file:///etc/shadow", b"%2e%2e%2f", b"\0", b"\xff\xfe", b"\xe2\x80\xae", b"&#0;", b"&x;",
    b"<!DOCTYPE x>", b"<!--", b"]]>", b"<a>", b"</a>", b"xmlns=''", b"ovf:/disk/", b"17", b"true",
    b"\n", b"\r", b"=", b"(", b")", b"SHA256(x)= 00", b"[x]", b"scsi0: a,size=1T", b"A" * 300,
)  # fmt: skip


def altered(data: bytes, source: random.Random) -> bytes:
    """One to four small changes of any bytes."""
    for _ in range(source.choice((1, 1, 2, 4))):
        data = source.choice(_CHANGES)(data, source)
    return data


def altered_text(data: bytes, source: random.Random) -> bytes:
    """Changes that keep a text well-formed more often: its words and elements moved, doubled, replaced."""
    for _ in range(source.choice((1, 1, 2, 3))):
        data = source.choice(_TEXT_CHANGES)(data, source)
    return data


def altered_pieces(pieces: Pieces, source: random.Random) -> Pieces:
    made = dict(pieces)
    for _ in range(source.choice((1, 1, 2, 3))):
        at = source.choice(list(made))
        made[at] = source.choice((_number, _number, _flip, _noise))(made[at], source)[: len(made[at])]
    return made


def _flip(data: bytes, source: random.Random) -> bytes:
    at = source.randrange(max(1, len(data)))
    return data[:at] + bytes([data[at] ^ 1 << source.randrange(8)]) + data[at + 1 :] if data else b"\0"


def _number(data: bytes, source: random.Random) -> bytes:
    at, size = source.randrange(max(1, len(data))), source.choice((1, 2, 4, 8))
    at -= at % size if source.random() < 0.7 else 0
    number = source.choice((*_NUMBERS, *_LARGE)) & (1 << 8 * size) - 1
    return data[:at] + number.to_bytes(size, source.choice(("little", "big"))) + data[at + size :]


def _cut(data: bytes, source: random.Random) -> bytes:
    return data[: source.randrange(len(data) + 1)]


def _remove(data: bytes, source: random.Random) -> bytes:
    at = source.randrange(max(1, len(data)))
    return data[:at] + data[at + source.choice((1, 8, 64, 512)) :]


def _repeat(data: bytes, source: random.Random) -> bytes:
    at, size = source.randrange(max(1, len(data))), source.choice((1, 8, 64, 512))
    return data[:at] + data[at : at + size] + data[at:]


def _noise(data: bytes, source: random.Random) -> bytes:
    at = source.randrange(max(1, len(data)))
    noise = source.randbytes(source.randrange(1, 32))
    return data[:at] + noise + data[at + len(noise) :]


def _word(data: bytes, source: random.Random) -> bytes:
    at = source.randrange(len(data) + 1)
    return data[:at] + source.choice(_WORDS) + data[at + source.choice((0, 0, 1, 8)) :]


def _value(data: bytes, source: random.Random) -> bytes:
    """What stands between quotes, tags or after a colon, replaced."""
    found = list(re.finditer(rb"(?<=[\">:=(])[^\"<>\n,]{1,80}", data))
    if not found:
        return _word(data, source)
    place = source.choice(found)
    return data[: place.start()] + source.choice(_WORDS) + data[place.end() :]


def _line(data: bytes, source: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    if len(lines) < 2:
        return _repeat(data, source)
    one, other = source.randrange(len(lines)), source.randrange(len(lines))
    match source.randrange(3):
        case 0:
            lines[one], lines[other] = lines[other], lines[one]
        case 1:
            lines.insert(one, lines[other])
        case _:
            del lines[one]
    return b"".join(lines)


_CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip, _flip, _number, _number, _number, _cut, _remove, _repeat, _noise, _word,
)  # fmt: skip
_TEXT_CHANGES = (_value, _value, _value, _line, _line, _word, _flip, _cut, _repeat)


def texts(word: str) -> list[bytes]:
    """Descriptions of the corpus that have a word in their names."""
    return [path.read_bytes() for path in sorted(CORPUS.iterdir()) if word in path.name]


def small_ovfs() -> list[bytes]:
    """Short ones: more of them fit into a second."""
    item = (
        "<Item><rasd:Connection>n</rasd:Connection><rasd:ResourceType>10</rasd:ResourceType></Item>\n"
        "<Item>\n<rasd:VirtualQuantity>4</rasd:VirtualQuantity>\n<rasd:ResourceType>4</rasd:ResourceType>\n"
        "<rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits></Item>"
    )
    plain = ovf(["a.vmdk", "b.vmdk"], file='ovf:size="4096"', items=item).replace(b"><", b">\n<")
    return [plain, plain.replace(b'envelope/1"', b'envelope/2"')]


def tars() -> list[bytes]:
    small = archived(("web.ovf", b"<x/>"), ("web.vmdk", b"disk"))
    return [
        small,
        pax(path="long/" * 30 + "x.vmdk", size="4") + member("x", b"disk") + small,
        member("L", b"folder/" * 20 + b"x.vmdk\0", b"L") + member("x", b"disk") + END,
        header("large.vmdk", base_256(9 << 30), magic=b"ustar  \0"),
        member("folder/", kind=b"5") + member("folder/x.ovf", b"x", prefix=b"deep") + END,
    ]


def vhd() -> Pieces:
    """A dynamic disk of 8 MiB (Microsoft, Virtual Hard Disk Image Format Specification 1.0)."""
    size = 8 << 20
    footer = struct.pack(
        ">8sIIQI4sI4sQQHBBI",
        *(b"conectix", 2, 0x10000, 512, 0, b"qem2", 0x50003, b"Wi2k", size, size, 10, 16, 63, 3),
    ).ljust(512, b"\0")
    head = struct.pack(">8sQQIII", b"cxsparse", (1 << 64) - 1, 1536, 0x10000, 4, 2 << 20).ljust(1024, b"\0")
    table = struct.pack(">4I", 4, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    return {0: footer, 512: head, 1536: table, (4 << 9) + 512 + (2 << 20): footer}


def vhdx() -> Pieces:
    """A disk of 8 MiB with one block ([MS-VHDX] 2.2, 2.5, 2.6)."""
    mib = 1 << 20
    bat, metadata = (
        uuid.UUID(text).bytes_le
        for text in ("2dc27766-f623-4200-9d64-115e9bfd4a08", "8b7ca206-4790-4b9a-b8fe-575f050f886e")
    )
    parameters, size = (
        uuid.UUID(text).bytes_le
        for text in ("caa16737-fa36-4d43-b3b6-33f0aa44e76b", "2fa54224-cd1b-4876-b211-5dbed83bf4b8")
    )
    regions = struct.pack("<4sIII", b"regi", 0, 2, 0)
    regions += struct.pack("<16sQII16sQII", bat, 2 * mib, 4096, 1, metadata, 3 * mib, mib, 1)
    items = struct.pack("<8sHH20x", b"metadata", 0, 2)
    items += struct.pack("<16sIIII16sIIII", parameters, 65536, 8, 4, 0, size, 65544, 8, 6, 0)
    return {
        0: b"vhdxfile",
        192 << 10: regions,
        256 << 10: regions,
        2 * mib: struct.pack("<Q", 4 * mib | 6),
        3 * mib: items,
        3 * mib + 65536: struct.pack("<IIQ", 8 * mib, 0, 8 * mib),
        12 * mib - 1: b"\0",
    }


def qcow2() -> Pieces:
    """Clusters of 512 bytes, a table of each kind (QEMU, docs/interop/qcow2.rst)."""
    head = struct.pack(
        ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 9, 65536, 0, 2, 1536, 512, 1, 0, 0, 0, 0, 0, 4, 104
    )
    return {
        0: head.ljust(512, b"\0"),
        512: struct.pack(">Q", 1024),
        1024: struct.pack(">8H", *[1] * 8),
        1536: struct.pack(">QQ", 1 << 63 | 2048, 0),
        2048: struct.pack(">QQ", 1 << 63 | 2560, 1 << 62 | 3072),
        4095: b"\0",
    }


def gzips() -> list[bytes]:
    return [gzip.compress(small_stream()), gzip.compress(b"plain")]


def small_stream() -> bytes:
    return bytes(stream((0, 1, 3), 4 * GRAIN))


def small_extent() -> bytes:
    return sparse_extent({0: EXTENT_DATA, 3: EXTENT_DATA + EXTENT_GRAIN})


def gpt_with_fat() -> Pieces:
    """A GPT with an EFI system partition, FAT12, that has `EFI/BOOT/BOOTX64.EFI` (UEFI, 5.3; FAT 1.03)."""
    entry = struct.pack(
        "<16s16sQQ", uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").bytes_le, bytes(range(16)), 34, 97
    )
    entries = entry.ljust(128 * 128, b"\0")
    head = struct.pack(
        "<8sLLLLQQQQ16sQLLL", b"EFI PART", 0x10000, 92, 0, 0, 1, 127, 34, 100, b"g" * 16, 2, 128, 128,
        zlib.crc32(entries),
    )  # fmt: skip
    head = head[:16] + struct.pack("<L", zlib.crc32(head)) + head[20:]
    boot = bytearray(512)
    struct.pack_into("<HBHBHHBH", boot, 11, 512, 1, 1, 1, 16, 64, 0xF8, 1)
    boot[510:] = b"\x55\xaa"
    fat = struct.pack("<12B", 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0)
    at = 34 * 512

    def item(name: bytes, kind: int, cluster: int, size: int) -> bytes:
        return struct.pack("<11sB8xH4xHL", name, kind, 0, cluster, size)

    return {
        512: head.ljust(512, b"\0"),
        1024: entries[:256],
        at: bytes(boot),
        at + 512: fat,
        at + 1024: item(b"EFI        ", 0x10, 2, 0),
        at + 1536: item(b"BOOT       ", 0x10, 3, 0),
        at + 2048: item(b"BOOTX64 EFI", 0x20, 4, 200),
        at + 2560: b"MZ" * 100,
        65535: b"\0",
    }


def ext4() -> Pieces:
    """Blocks of 1 KiB: `boot` with a configuration by map, and an initial RAM disk by extents."""

    def inode(mode: int, size: int, flags: int, blocks: bytes) -> bytes:
        made = struct.pack("<HHL20xLL4x", mode, 0, size, 0, flags)
        return (made + blocks.ljust(60, b"\0")).ljust(128, b"\0")

    def folder(*entries: tuple[bytes, int]) -> bytes:
        made = b""
        for name, number in entries:
            length = 1024 - len(made) if (name, number) == entries[-1] else -(-(8 + len(name)) // 4) * 4
            made += struct.pack("<LHBB", number, length, len(name), 0).ljust(8, b"\0") + name
            made = made.ljust(len(made) + length - 8 - len(name), b"\0")
        return made

    def extents(*runs: tuple[int, int, int]) -> bytes:
        made = struct.pack("<HHHHL", 0xF30A, len(runs), 4, 0, 0)
        return made + b"".join(struct.pack("<LHHL", at, count, 0, block) for at, block, count in runs)

    superblock = bytearray(1024)
    struct.pack_into("<LL12xLL12xL", superblock, 0, 16, 64, 1, 0, 16)
    struct.pack_into("<H", superblock, 0x38, 0xEF53)
    struct.pack_into("<L8xH6xL", superblock, 0x4C, 1, 128, 0x42)
    nodes = [b"\0" * 128] * 16
    nodes[1] = inode(0x41ED, 1024, 0x80000, extents((0, 10, 1)))
    nodes[10] = inode(0x41ED, 1024, 0x80000, extents((0, 11, 1)))
    nodes[11] = inode(0x81A4, 3000, 0x80000, extents((0, 12, 1), (2, 14, 1)))
    nodes[12] = inode(0x81A4, 20, 0, struct.pack("<L", 13))
    return {
        1024: bytes(superblock),
        2048: struct.pack("<LLL", 3, 4, 5).ljust(32, b"\0"),
        5 * 1024: b"".join(nodes),
        10 * 1024: folder((b".", 2), (b"..", 2), (b"boot", 11)),
        11 * 1024: folder((b".", 11), (b"..", 2), (b"initrd.img-6.1", 12), (b"config-6.1", 13)),
        12 * 1024: b"070701",
        13 * 1024: b"CONFIG_VIRTIO_BLK=y\n",
        64 * 1024 - 1: b"\0",
    }


def xfs() -> Pieces:
    """Version 5: an initial RAM disk by extents, a configuration by a tree of one node, in the root."""

    def inode(mode: int, form: int, size: int, extents: int, fork: bytes) -> bytes:
        made = bytearray(512)
        struct.pack_into(">2sHBB", made, 0, b"IN", mode, 3, form)
        struct.pack_into(">QQLL", made, 56, size, 0, 0, extents)
        made[176 : 176 + len(fork)] = fork
        return bytes(made)

    def extent(at: int, block: int, count: int) -> bytes:
        return struct.pack(">QQ", at << 9 | block >> 43, (block << 21 | count) & (1 << 64) - 1)

    superblock = bytearray(512)
    struct.pack_into(">4sLQ", superblock, 0, b"XFSB", 4096, 40)
    struct.pack_into(">Q", superblock, 56, 128)
    struct.pack_into(">LL", superblock, 84, 40, 1)
    struct.pack_into(">HHH", superblock, 100, 0xB4A5, 512, 512)
    superblock[123:125] = b"\3\6"
    struct.pack_into(">L", superblock, 216, 1)
    names = b"\2\0" + struct.pack(">L", 128)
    for name, number in ((b"initrd.img-6.1", 129), (b"config-6.1", 130)):
        names += struct.pack(">BH", len(name), 96) + name + b"\1" + struct.pack(">L", number)
    root = struct.pack(">HHQ", 1, 1, 0)
    root = root.ljust(4 + 8 * ((512 - 176 - 4) // 16), b"\0") + struct.pack(">Q", 20)
    node = struct.pack(">4sHH", b"BMA3", 0, 1).ljust(72, b"\0") + extent(0, 21, 1)
    return {
        0: bytes(superblock),
        65536: inode(0x41ED, 1, len(names), 0, names),
        66048: inode(0x81A4, 2, 9000, 2, extent(0, 22, 1) + extent(2, 23, 1)),
        66560: inode(0x81A4, 3, 20, 1, root),
        20 * 4096: node,
        21 * 4096: b"CONFIG_VIRTIO_PCI=y\n",
        40 * 4096 - 1: b"\0",
    }


def initramfs() -> list[bytes]:
    made = b""
    for name, data in (("usr/lib/modules/6.1/kernel/virtio_blk.ko.xz", b"x" * 9), ("TRAILER!!!", b"")):
        numbers = (0, 0o100644, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        made += b"070701" + b"".join(b"%08X" % number for number in numbers) + name.encode() + b"\0"
        made += bytes(-len(made) % 4) + data
        made += bytes(-len(made) % 4)
    return [made + bytes(512), made + bytes(256) + gzip.compress(b"x"), b"\x28\xb5\x2f\xfd" + bytes(60)]


def nvram_record(name: str, value: bytes, vendor: bytes = b"") -> bytes:
    """`vendor`: EFI_GLOBAL_VARIABLE where it is empty."""
    vendor = vendor or uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le
    raw = name.encode("utf-16-le") + b"\0\0"
    return vendor + struct.pack("<LLL", 7, len(raw) + len(value), len(raw)) + raw + value


def nvram(more: bytes = b"") -> bytes:
    """A `.nvram` of VMware with `more` records at its end."""
    records = nvram_record("Lang", b"eng\0") + nvram_record("BootOrder", b"\1\0\2\0\7\0")
    for number, name in ((1, "debian"), (2, "EFI Network")):
        option = struct.pack("<LH", 1, 4) + name.encode("utf-16-le") + b"\0\0" + b"\x7f\xff\4\0"
        records += nvram_record(f"Boot{number:04X}", option)
    records += more
    head = b"MRVN" + struct.pack("<L", 1) + bytes(64) + b"EFI_NV\0\0" + struct.pack("<L", 4096)
    return head + b"VMWNVRAM" + struct.pack("<LL", 0, 16 + len(records)) + records + b"\xff" * 512


def as_file(pieces: Pieces) -> int:
    """An open file in memory, of which most takes no room."""
    fd = os.memfd_create("pieces")
    for at, data in pieces.items():
        os.pwrite(fd, data, at)
    return fd
