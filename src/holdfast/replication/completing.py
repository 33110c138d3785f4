"""After a failover that is final: let the VM stand on its own, drop what it came from, replicate back."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from holdfast.replication.pairing import PeerBook
from holdfast.replication.replica_records import NoSuchReplica
from holdfast.replication.replication_records import AlreadyReplicated
from holdfast.replication.turns import TurnBook, TurnRecord
from holdfast.replication.way_back import enabling
from holdfast.spec.errors import HoldfastError
from holdfast.spec.replica import PeerRole, ReplicaEnable, ReplicaSettings
from holdfast.spec.turn import Turn
from holdfast.spec.vm import VmSpec

log = structlog.get_logger(__name__)

_ROUND_SECONDS = 1.0
_AGAIN_SECONDS = 20.0


@dataclass(frozen=True)
class Means:
    turns: TurnBook
    peers: PeerBook
    replicate: Callable[[str, ReplicaEnable], Awaitable[object]]
    """A VM, by its id, as people enable it."""
    spec: Callable[[str], Awaitable[VmSpec]]
    """What a VM, by its id, has. Raises VmNotFound."""
    settle: Callable[[str], Awaitable[None]]
    """Return once all that a VM has is its own. Raises what that failed by."""
    drop: Callable[[str], Awaitable[None]]
    """A replica, by its name, with all its points."""


class Completion:
    def __init__(self, means: Means) -> None:
        self._means = means
        self._not_before: dict[str, float] = {}
        self._settling: dict[str, asyncio.Task[None]] = {}

    async def keep(self) -> None:
        """Complete what is final, for ever."""
        clock = asyncio.get_running_loop().time
        while True:
            for each in self._means.turns.all():
                if each.turn is not Turn.PRIMARY or not each.replica:
                    continue
                if clock() < self._not_before.get(each.vm, 0.0):
                    continue
                self._not_before[each.vm] = clock() + _AGAIN_SECONDS
                await self._look(each)
            await asyncio.sleep(_ROUND_SECONDS)

    async def _look(self, known: TurnRecord) -> None:
        running = self._settling.get(known.vm)
        if running is None or running.done():
            self._settling[known.vm] = asyncio.create_task(self._completed(known))

    async def _back(self, known: TurnRecord) -> None:
        source = await self._means.peers.of(known.peer, PeerRole.SOURCE)
        if source is None or source.port is None:
            return  # it takes no replicas, or is not known any more
        peer = await self._means.peers.turned(source, PeerRole.RECEIVER)
        spec = await self._means.spec(known.vm)
        asked = enabling(known.back or ReplicaSettings(), peer.name, spec)
        try:
            await self._means.replicate(known.vm, asked)
        except AlreadyReplicated:
            return

    async def _completed(self, known: TurnRecord) -> None:
        """First it comes to stand on its own: no cycle can be captured while its disks' layers are copied."""
        try:
            await self._means.settle(known.vm)
            await self._dropped(known)
            own = True
        except Exception as error:
            _told(known, "a VM does not stand on its own yet", error)
            own = False
        try:
            await self._back(known)
        except Exception as error:
            _told(known, "a VM is not replicated back yet", error)
            return
        if own:
            await self._means.turns.decide(known.vm, _complete)

    async def _dropped(self, known: TurnRecord) -> None:
        try:
            await self._means.drop(known.replica)
        except NoSuchReplica:
            log.debug("the replica of a VM was dropped before", vm=known.name)


def _complete(_: object, now: TurnRecord | None) -> TurnRecord | None:
    return now.model_copy(update={"replica": ""}) if now and now.turn is Turn.PRIMARY else None


def _told(known: TurnRecord, what: str, error: Exception) -> None:
    """It is tried again; what is no refusal is a fault of ours."""
    if isinstance(error, HoldfastError | OSError):
        log.warning(what, vm=known.name, error=str(error))
    else:
        log.error(what, vm=known.name, exc_info=error)
