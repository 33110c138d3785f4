"""Which very file an open descriptor is, so that it can be opened again after a restart.

A caller who hands over a descriptor has shown that he may read the file. Its path alone shows nothing:
so the file is opened again only where it is the same inode, unchanged since (inode(7): the change time
moves with content, owner and mode alike).
"""

import fcntl
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from holdfast.spec.errors import Conflict, InvalidInput


class FileNotHandable(InvalidInput):
    id = "file-not-handable"


class SourceFileChanged(Conflict):
    id = "source-file-changed"


@dataclass(frozen=True)
class FileIdentity:
    path: str
    device: int
    inode: int
    size: int
    """Bytes."""
    modified: int
    """Nanoseconds since 1970, as the next."""
    changed: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_dict(cls, fields: dict[str, Any]) -> Self:
        return cls(**fields)

    def open(self) -> int:
        """A descriptor of that very file, for reading.

        Raises:
            SourceFileChanged: it is gone, is another one, or was changed.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            raise self._changed(error.strerror or "it cannot be opened") from error
        if _facts(fd) != (self.device, self.inode, self.size, self.modified, self.changed):
            os.close(fd)
            raise self._changed("it is another one, or was written to")
        return fd

    def _changed(self, what: str) -> SourceFileChanged:
        return SourceFileChanged(
            f"the file {Path(self.path).name!r} is no more what it was when it was handed over: {what}",
            value=Path(self.path).name,
            cure="Leave the source alone while it is imported, and import it again.",
        )


def identify(fd: int) -> FileIdentity:
    """The file of a descriptor that is open for reading; `fd` stays open.

    Raises:
        FileNotHandable: it is no regular file, not readable, or has no path of its own here.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    readable = flags & os.O_ACCMODE != os.O_WRONLY and not flags & os.O_PATH
    if not readable or not stat.S_ISREG(os.fstat(fd).st_mode):
        raise _not_handable("it is no regular file that is open for reading")
    try:
        identity = FileIdentity(str(Path(f"/proc/self/fd/{fd}").readlink()), *_facts(fd))
        os.close(identity.open())
    except (OSError, SourceFileChanged) as error:
        raise _not_handable(str(error)) from error
    return identity


def _facts(fd: int) -> tuple[int, int, int, int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _not_handable(what: str) -> FileNotHandable:
    return FileNotHandable(
        f"the file cannot be taken over as it is open: {what[:200]}",
        cure="Send its content instead, as an upload.",
    )
