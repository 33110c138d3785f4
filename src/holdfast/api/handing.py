"""The door for open files, beside the API's UNIX socket: a caller hands over a descriptor, not a path.

    caller ── 1 byte and 1 descriptor (SCM_RIGHTS, unix(7)) ──▶ daemon
    caller ◀── a line of JSON: the file's id and size, or an error ── daemon       any number of times

Whoever has a file open may read it, so nothing is gained by handing it over, and a large file need
not be copied. What is kept is which file it is, not the descriptor: see `FileIdentity`.
"""

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from holdfast.api.doors import admit_peer, read_peer
from holdfast.api.server import listen_unix
from holdfast.api.uploads import UploadFolder
from holdfast.host.file_identity import FileIdentity, identify
from holdfast.spec.appliance import HandedFile
from holdfast.spec.errors import HoldfastError, Insufficient
from holdfast.spec.ids import new_id

_MOST_FILES = 4096
_KEPT_SECONDS = 24 * 3600.0
_MOST_CALLERS = 64
_SILENCE = 30.0  # seconds that a caller may say nothing


class TooManyFilesHanded(Insufficient):
    id = "too-many-files-handed"


class SourceFileBook:
    """Files that were sent (`uploads`) or handed over, by their ids; the latter are forgotten after a day."""

    def __init__(self, uploads: UploadFolder) -> None:
        self._uploads = uploads
        self._handed: dict[str, tuple[float, FileIdentity]] = {}

    def add(self, fd: int) -> HandedFile:
        """Note the file of a descriptor, which is not kept.

        Raises:
            FileNotHandable: it is no regular file that can be opened again.
            TooManyFilesHanded
        """
        self._forget_old()
        if len(self._handed) >= _MOST_FILES:
            raise TooManyFilesHanded(
                f"{_MOST_FILES} files have been handed over already",
                value=_MOST_FILES,
                cure="Import what was handed over first, or send the files as uploads.",
            )
        identity = identify(fd)
        file_id = new_id()
        self._handed[file_id] = (time.monotonic(), identity)
        return HandedFile(id=file_id, size=identity.size)

    def identity(self, upload: str) -> FileIdentity:
        """Which file an id means. Raises UploadNotFound, FileNotHandable."""
        if upload in self._handed:
            return self._handed[upload][1]
        fd = os.open(self._uploads.take(upload), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return identify(fd)
        finally:
            os.close(fd)

    def uploaded(self, upload: str) -> Path | None:
        """Where the content that was sent lies; None where the file was handed over."""
        return None if upload in self._handed else self._uploads.take(upload)

    def _forget_old(self) -> None:
        oldest = time.monotonic() - _KEPT_SECONDS
        self._handed = {key: value for key, value in self._handed.items() if value[0] > oldest}


class HandingDoor:
    """Listens from `start` to `stop`; the callers it admits are those of the API's UNIX socket."""

    def __init__(self, path: Path, add: Callable[[int], HandedFile]) -> None:
        self._path = path
        self._add = add
        self._socket: socket.socket | None = None
        self._callers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "HandingDoor":
        self._socket = await asyncio.to_thread(listen_unix, self._path)
        self._socket.listen(_MOST_CALLERS)
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self._accept, self._socket)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
        self._path.unlink(missing_ok=True)
        for task in self._callers:
            task.cancel()

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            caller, _ = listening.accept()
            if len(self._callers) >= _MOST_CALLERS:
                caller.close()
                return
            task = asyncio.ensure_future(asyncio.to_thread(self._serve, caller))
            self._callers.add(task)
            task.add_done_callback(self._callers.discard)

    def _serve(self, caller: socket.socket) -> None:
        """In a thread, one caller: descriptors in, ids out, until it hangs up or falls silent."""
        with caller, contextlib.suppress(OSError):
            caller.settimeout(_SILENCE)
            try:
                admit_peer(read_peer(caller.fileno()))
            except HoldfastError as refused:
                _answer(caller, refused)
                return
            while True:
                data, fds, _, _ = socket.recv_fds(caller, 1, 1, socket.MSG_CMSG_CLOEXEC)
                try:
                    if not data or not fds:
                        return
                    _answer(caller, self._added(fds[0]))
                finally:
                    for fd in fds:
                        os.close(fd)

    def _added(self, fd: int) -> HandedFile | HoldfastError:
        try:
            return self._add(fd)
        except HoldfastError as refused:
            return refused


def _answer(caller: socket.socket, answer: HandedFile | HoldfastError) -> None:
    wire = answer.as_dict() if isinstance(answer, HoldfastError) else answer.model_dump(mode="json")
    caller.sendall(json.dumps(wire).encode() + b"\n")
