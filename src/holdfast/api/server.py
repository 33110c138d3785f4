"""The listeners: a UNIX socket and, where asked for, TLS over TCP, both in the daemon's own loop.

uvicorn's protocol does the HTTP; its Server class is not used, since it takes over signals and
wakes up ten times a second.
"""

import asyncio
import os
import socket
import ssl
import stat
from pathlib import Path
from types import TracebackType
from typing import Any

import structlog
from uvicorn.config import Config
from uvicorn.server import ServerState

from holdfast.api.doors import DoorProtocol, group_id
from holdfast.spec.errors import Conflict, Failed

log = structlog.get_logger(__name__)
_HANDSHAKE_SECONDS = 10.0
_MAX_CONNECTIONS = 1024


class SocketInUse(Conflict):
    id = "socket-in-use"


class AddressInUse(Conflict):
    id = "address-in-use"


class CannotListen(Failed):
    id = "cannot-listen"


def _clear_stale(path: Path) -> None:
    """Remove a socket on which nobody listens (the lock of the state folder is the real guard)."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    in_use = SocketInUse(
        f"{path} is in use",
        value=str(path),
        cure="Stop the daemon that listens there, or choose another --socket.",
    )
    if not stat.S_ISSOCK(mode):
        raise in_use
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass
    raise in_use


def listen_unix(path: Path) -> socket.socket:
    """A socket bound at `path`, for the daemon's user and the group. Raises SocketInUse, CannotListen."""
    _clear_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o177)
    try:
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        raise CannotListen(f"cannot listen on {path}: {error.strerror}", value=str(path)) from error
    finally:
        os.umask(old)
    group = group_id()
    if group is not None and os.getuid() == 0:
        os.chown(path, 0, group)
        path.chmod(0o660)
    return sock


def _tcp_sockets(host: str, port: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise AddressInUse(
            f"cannot listen on {host}:{port}: {error.strerror}",
            value=f"{host}:{port}",
            cure="Choose another address with --listen.",
        ) from error
    return sockets


class ApiServer:
    """Listens from `start` to `stop`. Owner of the UNIX socket's file."""

    def __init__(
        self,
        app: Any,
        unix_path: Path,
        tcp: tuple[str, int] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if tcp and not tls:
            raise ValueError("TCP is served over TLS only")
        self._unix_path = unix_path
        self._tcp = tcp
        self._tls = tls
        self._state = ServerState()
        self._config = Config(
            app,
            http=DoorProtocol,
            ws="websockets-sansio",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=30,
            ws_max_size=1024**2,
            ws_max_queue=16,
            ws_per_message_deflate=False,
        )
        self._servers: list[asyncio.Server] = []
        self.tcp_ports: list[int] = []
        """Where TCP listens; of use where port 0 was asked for."""

    async def start(self) -> None:
        """Both doors are open when this returns.

        Raises:
            SocketInUse, AddressInUse, CannotListen
        """
        self._config.load()
        loop = asyncio.get_running_loop()
        sock = await asyncio.to_thread(listen_unix, self._unix_path)
        self._servers.append(await loop.create_unix_server(self._protocol, sock=sock, backlog=256))
        if self._tcp:
            try:
                sockets = await asyncio.to_thread(_tcp_sockets, *self._tcp)
            except BaseException:
                await self.stop(0)
                raise
            for sock in sockets:
                self.tcp_ports.append(sock.getsockname()[1])
                self._servers.append(
                    await loop.create_server(
                        self._protocol, sock=sock, ssl=self._tls, ssl_handshake_timeout=_HANDSHAKE_SECONDS
                    )
                )
        log.info("listening", socket=str(self._unix_path), tcp=self._tcp)

    def _protocol(self) -> asyncio.Protocol:
        return DoorProtocol(config=self._config, server_state=self._state, app_state={})

    async def stop(self, grace: float = 3.0) -> None:
        """No new connections; requests under way get `grace` seconds, then they are cut off."""
        for server in self._servers:
            server.close()
        self._unix_path.unlink(missing_ok=True)
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(set(self._state.tasks), timeout=grace)
        for task in set(self._state.tasks):
            task.cancel()
        await asyncio.gather(*self._state.tasks, return_exceptions=True)
        for connection in list(self._state.connections):
            if connection.transport is not None and not connection.transport.is_closing():
                connection.transport.abort()
        self._servers.clear()

    async def __aenter__(self) -> "ApiServer":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


async def serve(
    app: Any,
    unix_path: Path,
    tcp: tuple[str, int] | None,
    tls: ssl.SSLContext | None,
    stop: asyncio.Event,
) -> None:
    """Listen until `stop` is set, then end gracefully."""
    async with ApiServer(app, unix_path, tcp, tls):
        await stop.wait()
