"""Hands open files to the daemon on this host (see `handing`), for its command line."""

import json
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from holdfast.spec.errors import RemoteError

_PATIENCE = 30.0  # seconds
_LONGEST_ANSWER = 64 * 1024


def handing_path(api_socket: Path) -> Path:
    """Where the door is, beside the API's socket."""
    return api_socket.with_name(f"{api_socket.name}.files")


class Handing:
    """One connection to the door. Raises OSError where there is none."""

    def __init__(self, api_socket: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_PATIENCE)
        try:
            self._socket.connect(str(handing_path(api_socket)))
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def hand(self, path: Path) -> str:
        """The id of a file that is opened here. Raises OSError, RemoteError."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            socket.send_fds(self._socket, [b"f"], [fd])
        finally:
            os.close(fd)
        wire = self._answer()
        if "kind" in wire:
            raise RemoteError(wire)
        return str(wire["id"])

    def _answer(self) -> dict[str, Any]:
        data = b""
        while not data.endswith(b"\n") and len(data) < _LONGEST_ANSWER:
            chunk = self._socket.recv(4096)
            if not chunk:
                break
            data += chunk
        try:
            wire = json.loads(data)
        except ValueError as error:
            raise OSError("the daemon answered nothing that is known") from error
        return dict(wire)
