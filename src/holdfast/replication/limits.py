"""What all replications of this host may send together, and all to one peer; kept in a file, changed live.

A VM's own limit is among its settings. Owner of the file: `SharedLimits`; peers stand in it by fingerprint,
so that a host which is paired under another name keeps its limit. They are as `pace.parse_limit` reads them.
"""

import asyncio
import json
from collections.abc import Collection
from pathlib import Path

import structlog

from holdfast.host.files import write_atomic
from holdfast.replication.dispatch import Dispatch
from holdfast.replication.pace import parse_limit
from holdfast.replication.pairing import PeerBook
from holdfast.replication.worker import Limits
from holdfast.spec.errors import HoldfastError, InvalidInput
from holdfast.spec.replica import PeerRole, ReplicaPeer, ReplicaSharedLimits

log = structlog.get_logger(__name__)

NONE = "none"


class PeerNotSentTo(InvalidInput):
    """A limit is of what is sent, and to this peer nothing is."""

    id = "replica-peer-not-sent-to"


class SharedLimits:
    def __init__(self, path: Path, dispatch: Dispatch, peers: PeerBook) -> None:
        self._path = path
        self._dispatch = dispatch
        self._peers = peers
        self._changing = asyncio.Lock()

    @property
    def now(self) -> Limits:
        return self._dispatch.limits

    def of_peer(self, fingerprint: str) -> str:
        return self.now.peers.get(fingerprint, NONE)

    def load(self) -> None:
        """At the start. What cannot be read limits nothing, and is logged."""
        try:
            read = json.loads(self._path.read_bytes())
            limits = Limits.model_validate({"host": read["host"], "peers": read["peers"]})
            for each in (limits.host, *limits.peers.values()):
                parse_limit(each)
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, HoldfastError) as error:
            log.error(
                "the limits of what replicas send cannot be read", path=str(self._path), error=str(error)
            )
            return
        self._dispatch.limit(limits)

    async def show(self) -> ReplicaSharedLimits:
        names = {each.fingerprint: each.name for each in await self._receivers()}
        peers = {names[each]: limit for each, limit in self.now.peers.items() if each in names}
        return ReplicaSharedLimits(host=self.now.host, peers=dict(sorted(peers.items())))

    async def limit_host(self, limit: str) -> ReplicaSharedLimits:
        """Raises BadLimit."""
        parse_limit(limit)
        async with self._changing:
            await self._change(self.now.model_copy(update={"host": limit}))
        return await self.show()

    async def limit_peer(self, name: str, limit: str) -> ReplicaSharedLimits:
        """Raises BadLimit, PeerNotFound, PeerNotSentTo."""
        parse_limit(limit)
        peer = await self._peers.get(name)
        if peer.role is not PeerRole.RECEIVER:
            raise PeerNotSentTo(
                f"{peer.name!r} sends replicas to this host; nothing is sent to it",
                value=peer.name,
                cure="Set the limit over there, for the name that this host has on that one.",
            )
        async with self._changing:
            known = {each.fingerprint for each in await self._receivers()}
            peers = {**self.now.peers, peer.fingerprint: limit}
            await self._change(self.now.model_copy(update={"peers": _needed(peers, known)}))
        return await self.show()

    async def _receivers(self) -> tuple[ReplicaPeer, ...]:
        return tuple(each for each in await self._peers.peers() if each.role is PeerRole.RECEIVER)

    async def _change(self, limits: Limits) -> None:
        data = json.dumps({"host": limits.host, "peers": limits.peers}).encode()
        await asyncio.to_thread(write_atomic, self._path, data)
        self._dispatch.limit(limits)


def _needed(peers: dict[str, str], known: Collection[str]) -> dict[str, str]:
    return {each: limit for each, limit in peers.items() if each in known and limit.strip().lower() != NONE}
