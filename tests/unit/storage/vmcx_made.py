"""Small Hyper-V configurations, made byte by byte (OpenVMM's guide, "HyperV Storage File Format")."""

import struct
import zlib

NODE, UINT, STRING = 9, 4, 6
ROOT = (0xFFFF, 0)


def header(sequence: int = 1) -> bytes:
    raw = struct.pack("<IIHIIIIQQI", 0x01282014, 0, sequence, 0x0400, 4096, 0, 0, 0, 0, 0)
    return raw[:4] + struct.pack("<I", zlib.crc32(raw)) + raw[8:]


def objects(*entries: tuple[int, int, int]) -> bytes:
    """Kind (1: a table of objects, 2: one of keys), offset, size."""
    made = struct.pack("<II", 0x01110003, len(entries))
    for kind, offset, size in entries:
        made += struct.pack("<BIQIB", kind, 0, offset, size, 0)
    return made


def key(kind: int, name: bytes, data: bytes = b"", parent: tuple[int, int] = ROOT) -> bytes:
    named = name + b"\0"
    length = 21 + len(named) + len(data)
    return struct.pack("<BBIHIIIB", kind, 0, length, *parent, 0, 0, len(named)) + named + data


def keys(number: int, *entries: bytes) -> bytes:
    return struct.pack("<HHHI", 2, number, 0, 0) + b"".join(entries)


def vmcx(*parts: tuple[int, bytes], size: int = 64 * 1024) -> bytes:
    made = bytearray(size)
    for at, data in ((0, header()), *parts):
        made[at : at + len(data)] = data
    return bytes(made)


def small_vmcx() -> bytes:
    text = "web".encode("utf-16-le")
    table = keys(
        1,
        key(NODE, b"configuration"),
        key(STRING, b"Name", struct.pack("<I", len(text)) + text, (1, 10)),
        key(UINT, b"count", struct.pack("<Q", 4), (1, 10)),
    )
    return vmcx((8192, objects((2, 8320, len(table)))), (8320, table), size=8320 + len(table) + 64)
