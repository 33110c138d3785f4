"""Every write of the store goes through here, one system call a method, nothing durable until it is synced.

That makes a power loss something a test can replay: another `Files` records what is called, and any part of
what was not synced may be missing or torn afterwards. Descriptors of files are kept open between calls.
"""

import contextlib
import ctypes
import errno
import os
import threading
from pathlib import Path
from typing import Protocol

from holdfast.host.files import sync_folder

_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02  # fallocate(2)
_WRITE_OUT = 0x02  # SYNC_FILE_RANGE_WRITE, sync_file_range(2)
_NOT_THERE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_ZEROES = bytes(1 << 20)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]

Data = bytes | bytearray | memoryview


class Files(Protocol):
    """All raise OSError. `rename` and `remove` close the file first; both need `sync_folder` to last."""

    def write(self, path: Path, offset: int, data: Data) -> None:
        """All of `data`; the file is made where there is none."""

    def truncate(self, path: Path, size: int) -> None: ...

    def discard(self, path: Path, offset: int, length: int) -> None:
        """The range reads as zeroes and takes no room where the file system can do that; no file grows."""

    def sync(self, path: Path) -> None: ...

    def begin_sync(self, path: Path, offset: int, length: int) -> None:
        """Have the range written out from now on, so that `sync` has less to wait for; which it still has."""

    def let_go(self, path: Path, offset: int, length: int) -> None:
        """The range is not read soon: what of it was written out need not stay in memory."""

    def rename(self, path: Path, new: Path) -> None: ...

    def remove(self, path: Path) -> None: ...

    def sync_folder(self, path: Path) -> None: ...

    def read(self, path: Path, offset: int, length: int) -> bytes:
        """Fewer bytes where the file ends; none where there is no file."""

    def is_hole(self, path: Path, offset: int, length: int) -> bool:
        """Whether the range takes no room, so that `read` would give zeroes or nothing."""

    def close(self) -> None: ...


class HostFiles:
    """The host's file system."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}
        self._lock = threading.Lock()

    def write(self, path: Path, offset: int, data: Data) -> None:
        fd, rest = self._fd(path), memoryview(data)
        while rest:
            count = os.pwrite(fd, rest, offset)
            rest, offset = rest[count:], offset + count

    def truncate(self, path: Path, size: int) -> None:
        os.ftruncate(self._fd(path), size)

    def discard(self, path: Path, offset: int, length: int) -> None:
        fd = self._fd(path)
        length = min(length, os.fstat(fd).st_size - offset)
        if length <= 0:
            return
        if _libc.fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length) == 0:
            return
        number = ctypes.get_errno()
        if number not in _NOT_THERE:
            raise OSError(number, os.strerror(number), str(path))
        for start in range(offset, offset + length, len(_ZEROES)):
            self.write(path, start, _ZEROES[: offset + length - start])

    def sync(self, path: Path) -> None:
        os.fsync(self._fd(path))

    def begin_sync(self, path: Path, offset: int, length: int) -> None:
        # Nothing is waited for, so an error stays for fsync(2) to tell.
        _libc.sync_file_range(self._fd(path), offset, length, _WRITE_OUT)

    def let_go(self, path: Path, offset: int, length: int) -> None:
        os.posix_fadvise(self._fd(path), offset, length, os.POSIX_FADV_DONTNEED)

    def rename(self, path: Path, new: Path) -> None:
        self._forget(path)
        self._forget(new)
        path.rename(new)

    def remove(self, path: Path) -> None:
        self._forget(path)
        path.unlink(missing_ok=True)

    def sync_folder(self, path: Path) -> None:
        sync_folder(path)

    def read(self, path: Path, offset: int, length: int) -> bytes:
        try:
            fd = self._fd(path, create=False)
        except FileNotFoundError:
            return b""
        parts = []
        while length > 0:
            part = os.pread(fd, length, offset)
            if not part:
                break
            parts.append(part)
            length, offset = length - len(part), offset + len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def is_hole(self, path: Path, offset: int, length: int) -> bool:
        try:
            return os.lseek(self._fd(path, create=False), offset, os.SEEK_DATA) >= offset + length
        except FileNotFoundError:
            return True
        except OSError as error:
            return error.errno == errno.ENXIO  # only a hole is left

    def close(self) -> None:
        with self._lock:
            for fd in self._open.values():
                os.close(fd)
            self._open.clear()

    def _fd(self, path: Path, create: bool = True) -> int:
        with self._lock:
            if path not in self._open:
                flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
                self._open[path] = os.open(path, flags, 0o600)
            return self._open[path]

    def _forget(self, path: Path) -> None:
        with self._lock, contextlib.suppress(KeyError):
            os.close(self._open.pop(path))
