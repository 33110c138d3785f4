"""The outer form of a UEFI executable: what Authenticode hashes, and the signatures that hang on it.

PE format (Microsoft, "PE Format", revision of 2024; "Windows Authenticode Portable Executable Signature
Format", 2008, section "Calculating the PE Image Hash") and WIN_CERTIFICATE (UEFI specification,
section 32.2.4). The file comes from a guest's disk: every number in it may be a lie. Pure.
"""

import hashlib
import struct
import uuid
from dataclasses import dataclass, field

ALGORITHMS = ("sha256", "sha384", "sha512")
_PKCS7 = uuid.UUID("4aafd29d-68df-49ee-8aa9-347d375665a7").bytes_le
_MAGICS = {0x10B: (96, 92), 0x20B: (112, 108)}
"""Of PE32 and PE32+: where the data directories begin in the optional header, and their number."""
_SECURITY = 4
_MAX_SECTIONS = 4096
_MAX_SIGNATURES = 8
_LARGEST_SIGNATURE = 256 * 1024


class NoImage(ValueError):
    """Not a PE image, or one that contradicts itself; its text says how."""


@dataclass(frozen=True)
class PeImage:
    ranges: tuple[tuple[int, int], ...] = field(repr=False)
    """Begin and end, in bytes, of what is hashed, in order."""
    data: bytes = field(repr=False)
    signatures: tuple[bytes, ...] = field(repr=False)
    """PKCS#7 SignedData in DER, perhaps with padding behind it."""

    def digest(self, algorithm: str) -> bytes:
        """The Authenticode digest; `algorithm` is one of ALGORITHMS."""
        hasher = hashlib.new(algorithm)
        view = memoryview(self.data)
        for begin, end in self.ranges:
            hasher.update(view[begin:end])
        return hasher.digest()


def parse(data: bytes) -> PeImage:
    """Raises NoImage."""
    try:
        return _parse(data)
    except struct.error as error:
        raise NoImage("the headers are cut off") from error


def _parse(data: bytes) -> PeImage:
    if data[:2] != b"MZ":
        raise NoImage("it does not begin as a PE image")
    (pe,) = struct.unpack_from("<L", data, 0x3C)
    if data[pe : pe + 4] != b"PE\0\0":
        raise NoImage("it has no PE header")
    (sections,) = struct.unpack_from("<H", data, pe + 6)
    (optional_size,) = struct.unpack_from("<H", data, pe + 20)
    optional = pe + 24
    (magic,) = struct.unpack_from("<H", data, optional)
    if magic not in _MAGICS:
        raise NoImage(f"its optional header is of the unknown kind {magic:#x}")
    directories, count_at = _MAGICS[magic]
    (headers,) = struct.unpack_from("<L", data, optional + 60)
    (count,) = struct.unpack_from("<L", data, optional + count_at)
    table = optional + optional_size
    if not table + 40 * sections <= headers <= len(data) or sections > _MAX_SECTIONS:
        raise NoImage("its headers contradict themselves")
    checksum, entry = optional + 64, optional + directories + 8 * _SECURITY
    address = size = 0
    ranges = [(0, checksum)]
    if count > _SECURITY and directories + 8 * (_SECURITY + 1) <= optional_size:
        address, size = struct.unpack_from("<LL", data, entry)
        ranges += [(checksum + 4, entry), (entry + 8, headers)]
    else:
        ranges.append((checksum + 4, headers))
    if size and not headers <= address <= address + size <= len(data):
        raise NoImage("its signatures lie outside of it")
    ranges += _bodies(data, table, sections, headers, size)
    return PeImage(tuple(ranges), data, tuple(_signatures(data[address : address + size])))


def _bodies(data: bytes, table: int, sections: int, headers: int, signed: int) -> list[tuple[int, int]]:
    """Sections in the order of the file, then what lies behind them and is no signature."""
    found = []
    for index in range(sections):
        size, pointer = struct.unpack_from("<LL", data, table + 40 * index + 16)
        if size:
            if pointer + size > len(data):
                raise NoImage("a section lies outside of it")
            found.append((pointer, pointer + size))
    found.sort()
    hashed = headers + sum(end - begin for begin, end in found)
    rest = len(data) - signed
    if hashed > rest:
        raise NoImage("its sections overlap")
    if hashed < rest:
        found.append((hashed, rest))
    return found


def _signatures(table: bytes) -> list[bytes]:
    found: list[bytes] = []
    position = 0
    while position + 8 <= len(table) and len(found) < _MAX_SIGNATURES:
        length, _, kind = struct.unpack_from("<LHH", table, position)
        if not 8 <= length <= _LARGEST_SIGNATURE or position + length > len(table):
            break
        body = table[position + 8 : position + length]
        if kind == 0x0002:  # WIN_CERT_TYPE_PKCS_SIGNED_DATA
            found.append(body)
        elif kind == 0x0EF1 and body[:16] == _PKCS7:  # WIN_CERT_TYPE_EFI_GUID
            found.append(body[16:])
        position += (length + 7) & ~7
    return found
