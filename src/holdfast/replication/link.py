"""A way for frames between two hosts: the Protocol that transports serve, and the one over TLS 1.3.

Everything here blocks, for threads of a worker process: TLS and zstd let go of Python's lock over large
buffers, and a worker has a core of its own. A link is used by one thread at a time: a TLS connection of
Python's below 3.14 must not be read and written at once.

    source  ── connect(address, fingerprint) ──▶  Door.accept ▶ admit   receiver
            ◀────── TLS 1.3, both certificates pinned ──────▶
"""

import contextlib
import errno
import re
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Protocol, TypeVar

from holdfast.replication.identity import Identity, client_context, fingerprint, server_context
from holdfast.replication.wire import (
    GOODBYE_SECONDS,
    HEADER_BYTES,
    LARGEST_BODY,
    WINDOW_LOG,
    FrameRefused,
    Hello,
    Kind,
    Message,
    PeerRefused,
    Refused,
    Spoken,
    agreed,
    body,
    header,
    parse,
    parse_header,
)
from holdfast.replication.zstandard import DecompressionParameter, ZstdDecompressor, ZstdError
from holdfast.spec.errors import Failed, Forbidden, HoldfastError
from holdfast.spec.model import Frozen
from holdfast.spec.units import KIB

SILENCE_SECONDS = 30.0
"""How long the other side may say nothing, or take nothing, before a link is given up."""
_HANDSHAKE_SECONDS = 10.0
_PARTING_SECONDS = 1.0
_PARTING_READS = 16
_NO_WAY = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL)
_REFUSES_US = re.compile("ALERT.*(UNKNOWN_CA|CERTIFICATE|ACCESS_DENIED)")
"""Alerts about a client's certificate (RFC 8446, section 6.2), as OpenSSL names them."""
_SLOWEST = 16 * KIB  # bytes a second at which a frame must come

Buffer = bytes | bytearray | memoryview
M = TypeVar("M", bound=Message)


class LinkLost(Failed):
    """The other host cannot be reached, went away, or says nothing."""

    id = "replica-link-lost"


class HostUnknown(LinkLost):
    """The peer's name is not known to any resolver of this host."""

    id = "replica-host-unknown"


class HostUnreachable(LinkLost):
    """No way leads to the peer's address, or nothing answers there."""

    id = "replica-host-unreachable"


class NobodyListens(LinkLost):
    """The host is there, and refuses connections to that port."""

    id = "replica-nobody-listens"


class NotLetIn(LinkLost):
    """The other host does not know this one's certificate: it is paired no more."""

    id = "replica-not-let-in"


class NotThatPeer(Forbidden):
    """The other side of a connection is not who it should be."""

    id = "replica-not-that-peer"


class Link(Protocol):
    """Frames to and from one peer: each arrives whole, unchanged and in its order, or the link fails."""

    def send(self, kind: Kind, *parts: Buffer, size: int | None = None) -> None:
        """Send one frame whose body is all `parts`; `size`: what they are uncompressed, None where they are.

        Raises LinkLost.
        """
        ...

    def receive(self, limit: float = SILENCE_SECONDS) -> Spoken:
        """The next frame, which must begin within `limit` seconds; its buffers are valid until the next call.

        Raises LinkLost, FrameRefused.
        """
        ...

    def waiting(self) -> bool:
        """Whether something has come that `receive` would take without waiting. Raises LinkLost."""
        ...

    def close(self) -> None:
        """May be called twice."""
        ...


class TlsLink:
    """One TLS connection; `peer`: fingerprint of the other side's certificate, None where it showed none."""

    def __init__(self, connection: ssl.SSLSocket, silence: float) -> None:
        self._connection = connection
        self._silence = silence
        self._waits = 0.0
        """Seconds, as the connection was told last."""
        self._wire = memoryview(bytearray(LARGEST_BODY))
        self._head = memoryview(bytearray(HEADER_BYTES))
        certificate = connection.getpeercert(binary_form=True)
        self.peer = fingerprint(certificate) if certificate else None
        self.certificate = ssl.DER_cert_to_PEM_cert(certificate) if certificate else ""
        """The other side's, PEM; empty where it showed none."""
        self.sent = 0
        """Bytes so far, of frames."""

    @property
    def host(self) -> str:
        """The other side's address. Raises LinkLost."""
        with _reported():
            return str(self._connection.getpeername()[0])

    def send(self, kind: Kind, *parts: Buffer, size: int | None = None) -> None:
        length = sum(len(part) for part in parts)
        with _reported():
            self._wait_at_most(self._silence)
            head = header(kind, length, size)
            if length <= len(self._wire) // 64:  # a small frame in one record
                self._connection.sendall(head + b"".join(parts))
            else:
                self._connection.sendall(head)
                for part in parts:
                    self._connection.sendall(part)
        self.sent += HEADER_BYTES + length

    def receive(self, limit: float = SILENCE_SECONDS) -> Spoken:
        with _reported():
            self._fill(self._head[:1], limit)
            # From here on it flows, so that nobody holds a thread by one byte now and then.
            until = time.monotonic() + self._silence
            self._fill(self._head[1:], until - time.monotonic())
            head = parse_header(self._head)
            until += head.length / _SLOWEST
            received = self._wire[: head.length]
            while received:
                received = received[self._some(received, until - time.monotonic()) :]
        data = self._wire[: head.length]
        return parse(head.kind, _decompressed(data, head.size) if head.compressed else data)

    def waiting(self) -> bool:
        with _reported():
            return bool(self._connection.pending() or _readable(self._connection))

    def abort(self) -> None:
        """Let what another thread does with it fail with LinkLost; that thread must close it."""
        with contextlib.suppress(OSError):
            # Not SSLSocket's own, which would let the other thread go on in the clear.
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)

    def close(self) -> None:
        self.abort()
        self._connection.close()

    def _fill(self, target: memoryview, limit: float) -> None:
        until = time.monotonic() + limit
        while target:
            target = target[self._some(target, until - time.monotonic()) :]

    def _some(self, target: memoryview, limit: float) -> int:
        if limit <= 0:
            raise TimeoutError
        self._wait_at_most(limit)
        count = self._connection.recv_into(target)
        if not count:
            raise EOFError
        return count

    def _wait_at_most(self, limit: float) -> None:
        """About so many seconds: setting it is a system call, and a record of TLS has but 16 KiB."""
        if abs(limit - self._waits) > limit / 10:
            self._connection.settimeout(limit)
            self._waits = limit


class Address(Frozen):
    host: str
    """A name or an address, IPv4 or IPv6, without brackets."""
    port: int


def connect(
    address: Address,
    identity: Identity | None,
    peer: str,
    *,
    silence: float = SILENCE_SECONDS,
    handshake: float = _HANDSHAKE_SECONDS,
) -> TlsLink:
    """Connect to a receiver.

    Args:
        identity: what we show; None only to pair.
        peer: fingerprint that the receiver's certificate must have.
        handshake: seconds for each step until the link is there.

    Raises:
        HostUnknown, HostUnreachable, NobodyListens, LinkLost
        NotThatPeer: its certificate is another; nothing was sent to it.
    """
    context = client_context(identity)
    with _reported():
        plain = _dialled(address, handshake)
        try:
            link = _secured(plain, lambda: context.wrap_socket(plain), silence)
        except BaseException:
            plain.close()
            raise
    if link.peer != peer:
        link.close()
        raise NotThatPeer(
            f"{address.host} shows the certificate {link.peer}, not {peer} which was pinned",
            value=link.peer,
            cure="If that host was set up anew, remove the peer and pair with it again.",
        )
    return link


class Door:
    """Where sources connect.

    Args:
        peers: gives the pinned certificates (PEM) of all that may connect, asked for each connection.
    """

    def __init__(
        self,
        address: Address,
        identity: Identity,
        peers: Callable[[], tuple[str, ...]],
        *,
        silence: float = SILENCE_SECONDS,
    ) -> None:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self._listener = socket.create_server((address.host, address.port), family=family, backlog=64)
        self._identity = identity
        self._peers = peers
        self._silence = silence

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def told(self) -> Address:
        """As others are told of it: without a host where every address of this one will do."""
        host = str(self._listener.getsockname()[0])
        found = ip_address(host)
        # What is local to a link is found by an interface's name, which is another over there.
        return Address(host="" if found.is_unspecified or found.is_link_local else host, port=self.port)

    def accept(self) -> socket.socket:
        """The next connection, of which nothing is known yet. Raises LinkLost once the door is closed."""
        with _reported():
            return self._listener.accept()[0]

    def admit(self, connection: socket.socket) -> TlsLink:
        """Learn who connected; in a thread of its own, since that may take its time.

        A link without `peer` showed no certificate: all that may come over it is PAIR.

        Raises:
            LinkLost: it does not speak TLS 1.3, or shows a certificate that is not pinned.
        """
        context = server_context(self._identity, self._peers())
        connection.settimeout(_HANDSHAKE_SECONDS)

        def wrap() -> ssl.SSLSocket:
            secured = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            try:
                secured.do_handshake()
            except BaseException:
                _part(secured)
                raise
            return secured

        try:
            with _reported():
                return _secured(connection, wrap, self._silence)
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # else a thread in accept() would stay there
        self._listener.close()


def tell(link: Link, message: Message) -> None:
    """Send one message. Raises LinkLost."""
    link.send(message.kind, body(message))


def hear(link: Link, wanted: type[M], limit: float = SILENCE_SECONDS) -> M:
    """The next message, which is of this kind.

    Raises:
        PeerRefused: the other side said no instead.
        FrameRefused: something else came.
        LinkLost
    """
    said = link.receive(limit)
    if isinstance(said, wanted):
        return said
    raise refusal(said)


def refusal(said: Spoken) -> HoldfastError:
    """What to raise for a frame that may not come now: what the other side refused, or our refusal of it."""
    if isinstance(said, Refused):
        return PeerRefused(
            f"the other host refused: {said.message}",
            value=said.id,
            cure=said.cure,
            detail={"id": said.id, "message": said.message},
        )
    return FrameRefused(
        f"the other host sent a {type(said).__name__}, which may not come now",
        value=type(said).__name__,
        cure="See that both hosts run the same version, and what the other one logs.",
    )


def greet(link: Link, host: str) -> int:
    """Say HELLO, hear it, and return the version that is spoken. Raises NoCommonVersion and as `hear`."""
    ours = Hello(host=host[:253])
    tell(link, ours)
    return agreed(ours, hear(link, Hello))


def refuse(link: Link, error: HoldfastError) -> None:
    """Say no and close, once the other side has closed or `GOODBYE_SECONDS` are over."""
    until = time.monotonic() + GOODBYE_SECONDS
    with contextlib.suppress(LinkLost, FrameRefused):
        tell(link, Refused.of(error))
        while (left := until - time.monotonic()) > 0:
            link.receive(left)
    link.close()


def _dialled(address: Address, handshake: float) -> socket.socket:
    """Raises HostUnknown, HostUnreachable, NobodyListens, OSError."""
    place = f"{address.host[:253]}, port {address.port}"
    try:
        return socket.create_connection((address.host, address.port), handshake)
    except (socket.gaierror, UnicodeError) as error:
        raise HostUnknown(
            f"the name {address.host[:253]!r} of the other host is not known here",
            value=address.host[:253],
            cure="See that this host's resolver knows it, or pair again by the host's address.",
        ) from error
    except ConnectionRefusedError as error:
        raise NobodyListens(
            f"nobody listens for replicas at {place}",
            value=place,
            cure="See that the other host's daemon runs with --replica-listen for that address and port.",
        ) from error
    except OSError as error:
        if not isinstance(error, TimeoutError) and error.errno not in _NO_WAY:
            raise
        raise HostUnreachable(
            f"the other host cannot be reached at {place}: {error.strerror or 'nothing answers'}",
            value=place,
            cure="See that the host is on, and that routes and firewalls between the two let it through.",
        ) from error


def _part(connection: ssl.SSLSocket) -> None:
    """Close so that why a handshake failed, which was said, is not lost by what was not read."""
    plain = socket.socket
    with contextlib.suppress(OSError):
        plain.shutdown(connection, socket.SHUT_WR)
        plain.settimeout(connection, _PARTING_SECONDS)
        for _ in range(_PARTING_READS):
            if not plain.recv(connection, 64 * KIB):
                break
    plain.close(connection)


def _secured(plain: socket.socket, wrap: Callable[[], ssl.SSLSocket], silence: float) -> TlsLink:
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return TlsLink(wrap(), silence)


def _readable(connection: socket.socket) -> bool:
    poll = select.poll()  # select(2) knows 1,024 descriptors only
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _decompressed(data: memoryview, size: int) -> memoryview:
    """Raises FrameRefused."""
    try:
        decompressor = ZstdDecompressor(options={DecompressionParameter.window_log_max: WINDOW_LOG})
        plain = decompressor.decompress(data, size + 1)
    except ZstdError as error:
        raise FrameRefused("the other host sent a frame that cannot be decompressed") from error
    if len(plain) != size or not decompressor.eof or decompressor.unused_data:
        raise FrameRefused(f"the other host sent a frame that is not of {size} bytes", value=size)
    return memoryview(plain)


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except LinkLost:
        raise
    except (OSError, EOFError, ValueError) as error:
        if isinstance(error, ssl.SSLError) and _REFUSES_US.search(error.reason or ""):
            raise NotLetIn(
                "the other host does not know this one any more",
                value=error.reason,
                cure="Pair the hosts again: `holdfast replica accept` there, `replica peer add` here.",
            ) from error
        raise LinkLost(
            f"the link to the other host was lost: {str(error) or type(error).__name__}",
            value=str(error),
            cure="See that the other host runs and that the network between the two works.",
        ) from error
