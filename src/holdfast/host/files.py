"""Files that are whole or not there: atomic writes, sparse copies, removal.

Every function returns only after the data is on stable storage (fsync of file and folder), so that
a record written afterwards never names something that a power loss took away.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

from holdfast.spec.ids import new_id

_FICLONE = 0x40049409  # ioctl_ficlone(2)
_CHUNK = 4 * 1024 * 1024


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Make what a file holds durable. Raises OSError, also for a link."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put `data` at `path`: afterwards the file holds all of it, or what it held before."""
    scratch = path.with_name(f".{path.name}.{new_id()[:8]}")
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file whole; as a reflink where the file system has them, else holes stay holes.

    `target` must not exist. On failure nothing is left behind.
    """
    writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with source.open("rb") as reader:
            _copy_open(reader.fileno(), writer)
        os.fsync(writer)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    finally:
        os.close(writer)
    sync_folder(target.parent)


def allocated(path: Path) -> int:
    """Bytes that a file takes of its file system; 0 where it is gone."""
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:
        return 0


def write_out(path: Path) -> None:
    """Let what a file or block device holds be on the disk already when it must be.

    Nothing happens where that fails, or where it is neither.
    """
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
                os.fdatasync(fd)
        finally:
            os.close(fd)


def can_share(source: Path, folder: Path) -> bool:
    """Whether files in a folder can stand on the same blocks as a file (ioctl_ficlonerange(2))."""
    try:
        # Others may write to the folder that it lies in: whatever it is, it is not waited for.
        reader = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        with tempfile.TemporaryFile(dir=folder) as writer:
            fcntl.ioctl(writer, _FICLONE, reader)
    except OSError:
        return False
    finally:
        os.close(reader)
    return True


def _copy_open(source: int, target: int) -> None:
    try:
        fcntl.ioctl(target, _FICLONE, source)
        return
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS):
            raise
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    position = 0
    while position < size:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        position = start
        while position < end:
            count = min(_CHUNK, end - position)
            copied = _copy_range(source, target, count, position)
            if copied == 0:
                return
            position += copied


def _copy_range(source: int, target: int, count: int, position: int) -> int:
    """Bytes copied from and to the same position; 0 at the end."""
    try:
        return os.copy_file_range(source, target, count, position, position)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
    os.lseek(target, position, os.SEEK_SET)
    return os.sendfile(target, source, position, count)


def in_memory(name: str, data: bytes) -> int:
    """A descriptor of a file that is in memory alone, for a child to read; `name` is shown in /proc."""
    fd = os.memfd_create(name)
    os.write(fd, data)
    return fd


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it; nothing happens where it is not there."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
        sync_folder(path.parent)


def own(path: Path, uid: int, gid: int) -> None:
    """Give a file or a folder with all in it to somebody; symbolic links are not followed."""
    os.chown(path, uid, gid, follow_symlinks=False)
    if stat.S_ISDIR(path.lstat().st_mode):
        for entry in path.iterdir():
            own(entry, uid, gid)
