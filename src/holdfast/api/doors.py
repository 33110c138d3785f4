"""Who stands at the door: peers of the UNIX socket by the kernel's word, of TLS by a token.

UNIX socket: root, the daemon's own user and members of the group `holdfast` are admins (whoever
may create VMs and images on a host rules it anyway); everybody else is refused. The credentials
are those at connect time (SO_PEERCRED, SO_PEERGROUPS: unix(7), socket(7)). uvicorn keeps the socket
from ASGI, so its protocol is given a subclass that puts the peer into `scope["state"]`; WebSocket
connections are handed that same state.
"""

import asyncio
import grp
import os
import pwd
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from holdfast.api.services import Tokens
from holdfast.spec.access import Principal, Role
from holdfast.spec.errors import Forbidden, Unauthenticated

GROUP = "holdfast"
HEADER_SECONDS = 15.0
MAX_HEADER_BYTES = 64 * 1024
_SO_PEERGROUPS = 59
_PEER = "holdfast_peer"
ABORT = "holdfast_abort"
"""Key in `scope["state"]` of a function that cuts the connection."""


class NotAdmitted(Forbidden):
    id = "not-admitted"


class NoToken(Unauthenticated):
    id = "no-token"


class RoleTooLow(Forbidden):
    id = "role-too-low"


@dataclass(frozen=True)
class UnixPeer:
    uid: int
    groups: frozenset[int]


def group_id() -> int | None:
    """The id of the group `holdfast`, None where this host has no such group."""
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


def read_peer(fd: int) -> UnixPeer:
    """Credentials of the other end of a UNIX socket; unreadable extra groups count as none."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        _, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        try:
            raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
        except OSError:
            raw = b""
    return UnixPeer(uid, frozenset({gid, *struct.unpack(f"{len(raw) // 4}I", raw)}))


def admit_peer(peer: UnixPeer) -> Principal:
    """An admin, or:

    Raises:
        NotAdmitted: neither root, nor the daemon's user, nor in the group.
    """
    if peer.uid in (0, os.getuid()) or group_id() in peer.groups:
        return Principal(name=f"uid {peer.uid}", role=Role.ADMIN)
    try:
        name = pwd.getpwuid(peer.uid).pw_name
    except KeyError:
        name = str(peer.uid)
    raise NotAdmitted(
        f"the user {name} may not use this daemon",
        value=peer.uid,
        cure=f"Become a member of the group {GROUP!r}, or use a token over TLS.",
    )


async def authenticate(scope: Mapping[str, Any], tokens: Tokens) -> Principal:
    """The caller of a request or WebSocket.

    Raises:
        NotAdmitted, NoToken, and what `TokenStore.authenticate` raises.
    """
    peer = scope.get("state", {}).get(_PEER)
    if isinstance(peer, UnixPeer):
        return admit_peer(peer)
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, secret = value.decode("latin-1").partition(" ")
            if scheme.lower() == "bearer" and secret:
                return await tokens.authenticate(secret.strip())
    raise NoToken("the request carries no token", cure="Send `Authorization: Bearer hf_...`.")


class DoorProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with the peer's credentials and limits on slow or long headers."""

    _deadline: asyncio.TimerHandle | None = None
    _header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEADER_SECONDS, transport.abort)
        sock = transport.get_extra_info("socket")
        self.app_state = {**self.app_state, ABORT: transport.abort}
        if sock is not None and sock.family == socket.AF_UNIX:
            self.app_state[_PEER] = read_peer(sock.fileno())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            self.transport.abort()

    def on_headers_complete(self) -> None:
        self._stop_deadline()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        super().connection_lost(exc)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
