"""Whether somebody still holds a disk's locks (fcntl_locking(2), open file descriptions)."""

import fcntl
import os
import struct
from pathlib import Path

_FLOCK = struct.Struct("hhqqi4x")
"""struct flock of 64-bit Linux: type, whence, start, length, pid."""
_QEMU_BYTES = (100, 200)
"""Start and length: from 100 on QEMU locks what it does, from 200 on what others may do (file-posix.c)."""


def is_locked(path: Path) -> bool:
    """Whether another open file holds any lock of QEMU's on `path`; False where there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        start, length = _QEMU_BYTES
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
    finally:
        os.close(fd)
