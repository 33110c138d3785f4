"""Pairing as people ask for it: a token on the receiver, a peer on the source, and the list of both."""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from urllib.parse import urlsplit

from holdfast.catalog.clock import aware, now
from holdfast.replication.identity import Identity
from holdfast.replication.link import Address
from holdfast.replication.listening import ReplicaListener
from holdfast.replication.pairing import PairingToken, PeerBook, pair_with
from holdfast.replication.replica_records import ReplicaBook
from holdfast.replication.replication_records import Replication, ReplicationBook
from holdfast.spec.errors import Conflict, InvalidInput
from holdfast.spec.names import MAX_NAME, host_name
from holdfast.spec.replica import (
    PeerAdd,
    PeerRole,
    PeerView,
    ReplicaAccept,
    ReplicaAccepted,
    ReplicaPeer,
)


class BadPeerAddress(InvalidInput):
    id = "replica-bad-address"


class NotListening(Conflict):
    """No host can send replicas here, so none can pair."""

    id = "replica-not-listening"


class PeerInUse(Conflict):
    id = "replica-peer-in-use"


def own_name() -> str:
    """What this host calls itself to others."""
    return host_name(socket.gethostname())[:MAX_NAME]


def parse_address(text: str) -> Address:
    """`https://HOST:PORT`, with an IPv6 address in brackets. Raises BadPeerAddress."""
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    plain = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username)
    if parts.scheme != "https" or not host or not port or not plain:
        raise BadPeerAddress(
            f"{text[:100]!r} is not the address of a host that takes replicas",
            value=text[:200],
            cure="Write https://HOST:PORT, for example https://192.0.2.7:8444 or https://[2001:db8::7]:8444",
        )
    return Address(host=host, port=port)


def url_of(peer: ReplicaPeer) -> str | None:
    if peer.host is None:
        return None
    host = f"[{peer.host}]" if ":" in peer.host else peer.host
    return f"https://{host}:{peer.port}"


class Peering:
    def __init__(
        self,
        identity: Identity,
        peers: PeerBook,
        listener: ReplicaListener,
        held: ReplicaBook,
        sent: ReplicationBook,
        limit_of: Callable[[str], str] = lambda _: "none",
        extensions: ReplicationBook | None = None,
    ) -> None:
        """Peers of this host.

        Args:
            limit_of: of what is sent to a peer, by its fingerprint.
            extensions: replicas that are sent on.
        """
        self._identity = identity
        self._peers = peers
        self._listener = listener
        self._held = held
        self._sent = sent
        self._limit_of = limit_of
        self._extensions = extensions

    async def accept(self, request: ReplicaAccept) -> ReplicaAccepted:
        """A token by which one host may pair with this one. Raises NotListening, TooManyPairingTokens."""
        if self._listener.port is None:
            raise NotListening(
                "this host does not listen for replicas",
                cure="Start its daemon with --replica-listen ADDRESS:PORT (or HOLDFAST_REPLICA_LISTEN).",
            )
        valid = timedelta(minutes=request.minutes)
        token = await self._peers.accept(self._identity, valid, request.limits)
        return ReplicaAccepted(token=str(token), expires=aware(now()) + valid)

    async def add(self, request: PeerAdd) -> PeerView:
        """Pair with a receiver.

        Raises:
            BadPairingToken, BadPeerAddress, PeerNameTaken
            NotThatPeer, PeerRefused, LinkLost
        """
        token, address = PairingToken.parse(request.token), parse_address(request.address)
        await self._peers.require_free(request.name, PeerRole.RECEIVER, token.fingerprint)
        ours = request.own_name or own_name()
        peer = await asyncio.to_thread(
            pair_with, address, token, self._identity, ours=ours, name=request.name
        )
        await self._peers.add(peer)
        return await self._view(peer)

    async def remove(self, name: str) -> None:
        """Raises PeerNotFound, PeerInUse."""
        peer = await self._peers.get(name)
        sent = [each for each in await self._all_sent() if each.peer.lower() == peer.name.lower()]
        if sent and peer.role is PeerRole.RECEIVER:
            raise PeerInUse(
                f"{len(sent)} VMs are replicated to {peer.name!r}",
                value=peer.name,
                cure="Disable their replication first (`holdfast replica disable VM`).",
            )
        await self._peers.remove(name)
        await self._listener.pin()

    async def list(self) -> tuple[PeerView, ...]:
        return tuple([await self._view(each) for each in await self._peers.peers()])

    async def _all_sent(self) -> tuple[Replication, ...]:
        extended = await self._extensions.all() if self._extensions is not None else ()
        return (*await self._sent.all(), *extended)

    async def _view(self, peer: ReplicaPeer) -> PeerView:
        receiver = peer.role is PeerRole.RECEIVER
        if receiver:
            counted = Counter(each.peer.lower() for each in await self._all_sent())
            count = counted[peer.name.lower()]
        else:
            count = sum(each.source == peer.fingerprint for each in await self._held.held())
        return PeerView(
            name=peer.name,
            role=peer.role,
            address=url_of(peer),
            fingerprint=peer.fingerprint,
            paired=peer.paired,
            limits=None if receiver else peer.limits,
            vms=count,
            limit=self._limit_of(peer.fingerprint) if receiver else "none",
        )
