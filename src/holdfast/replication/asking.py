"""Asking a receiver whose turn it is, and about failovers: a short link for each question."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from holdfast.replication.identity import Identity
from holdfast.replication.link import Address, LinkLost, connect, greet, hear, tell
from holdfast.replication.receiving import Asked
from holdfast.replication.wire import TurnIs
from holdfast.spec.replica import ReplicaPeer

_AT_ONCE = 8  # threads; one that asks a host that is not there waits for it


class TurnAsker:
    """`name`: what this host calls itself."""

    def __init__(self, identity: Identity, name: str) -> None:
        self._identity = identity
        self._name = name
        self._threads = ThreadPoolExecutor(_AT_ONCE, "replica-asker")

    async def ask(self, peer: ReplicaPeer, asked: Asked, limit: float = 10.0) -> TurnIs:
        """Ask a receiver, which answers within `limit` seconds.

        Raises:
            PeerRefused: it said no.
            LinkLost, NotThatPeer, FrameRefused, NoCommonVersion
        """
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._answer, peer, asked, limit)
        try:
            async with asyncio.timeout(limit):
                return await work
        except TimeoutError as error:
            raise LinkLost(
                f"{peer.name} did not answer within {limit:g} seconds",
                value=peer.name,
                cure="See that the other host runs and that the network between the two works.",
            ) from error

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _answer(self, peer: ReplicaPeer, asked: Asked, limit: float) -> TurnIs:
        address = Address(host=peer.host or "", port=peer.port or 0)
        link = connect(address, self._identity, peer.fingerprint, silence=limit, handshake=limit)
        try:
            greet(link, self._name)
            tell(link, asked)
            return hear(link, TurnIs, limit)
        finally:
            link.close()
