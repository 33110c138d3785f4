"""Files sent to the daemon, so that it never opens a path that a caller names.

They lie in scratch, which is emptied at daemon start: an upload lives until it is used or that.
"""

import asyncio
import errno
import hashlib
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

from holdfast.spec.errors import Insufficient, NotFound
from holdfast.spec.ids import new_id
from holdfast.spec.image_requests import Upload

_ID = re.compile(r"[0-9a-f-]{36}", re.ASCII)


class UploadNotFound(NotFound):
    id = "upload-not-found"


class NoSpaceForUpload(Insufficient):
    id = "no-space-for-upload"


class UploadFolder:
    """Owner of `folder` and everything in it. `reserve`: bytes of the file system left to others."""

    def __init__(self, folder: Path, reserve: int = 1024**3) -> None:
        self._folder = folder
        self._reserve = reserve

    async def receive(self, chunks: AsyncIterator[bytes]) -> Upload:
        """Write the chunks to a new file; nothing is left behind where the sender breaks off.

        Raises:
            NoSpaceForUpload: the file system has less than the reserve left.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        upload_id = new_id()
        path = self._folder / upload_id
        digest, size = hashlib.sha256(), 0

        def store(fd: int, chunk: bytes) -> None:
            space = os.fstatvfs(fd)
            if space.f_bavail * space.f_frsize < self._reserve + len(chunk):
                raise OSError(errno.ENOSPC, "reserve reached")
            digest.update(chunk)
            view = memoryview(chunk)
            while view:
                view = view[os.write(fd, view) :]

        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            async for chunk in chunks:
                size += len(chunk)
                await asyncio.to_thread(store, fd, chunk)
        except BaseException as error:
            path.unlink()
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise NoSpaceForUpload(
                    f"no space is left for the upload after {size} bytes",
                    value=size,
                    cure="Free space on the file system of the state folder.",
                ) from error
            raise
        finally:
            os.close(fd)
        return Upload(id=upload_id, size=size, sha256=digest.hexdigest())

    def take(self, upload_id: str) -> Path:
        """The file of an upload. Whoever takes it removes it."""
        path = self._folder / upload_id
        if not _ID.fullmatch(upload_id) or not path.is_file():
            raise UploadNotFound(
                f"there is no upload {upload_id!r}", value=upload_id, cure="Send the file again."
            )
        return path
