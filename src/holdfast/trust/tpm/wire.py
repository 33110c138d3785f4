"""Reading and writing the big-endian structures of TPM 2.0, within bounds.

Trusted Platform Module Library, part 2: integers are big-endian, a TPM2B is a 16-bit size and so
many bytes. What is read may be hostile: nothing passes the end, and what is left over is refused.
"""

import struct

from holdfast.spec.errors import Failed


class TpmNonsense(Failed):
    """Bytes that are no such structure."""

    id = "tpm-nonsense"


class Reader:
    """Moves forward over `data`; every step past the end raises TpmNonsense."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if not 0 <= count <= self.left:
            raise TpmNonsense(f"{self._what} ends too early", value=len(self._data))
        self._at += count
        return self._data[self._at - count : self._at]

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def sized(self) -> bytes:
        """The content of a TPM2B."""
        return self.take(self.u16())

    def end(self) -> None:
        """Raises TpmNonsense where anything is left."""
        if self.left:
            raise TpmNonsense(f"{self._what} has {self.left} bytes too many", value=len(self._data))


def u8(value: int) -> bytes:
    return struct.pack(">B", value)


def u16(value: int) -> bytes:
    return struct.pack(">H", value)


def u32(value: int) -> bytes:
    return struct.pack(">I", value)


def sized(content: bytes) -> bytes:
    """A TPM2B."""
    return u16(len(content)) + content
