"""A VM that failed over was sent to other hosts, too: each of them is told who sends it from now on.

Without that a receiver lets nobody take the place of the host that it was sent by. Said once the failover is
final and the VM is off here, and again until each knows it, also when there is no VM here any more.
"""

import asyncio
import functools
from dataclasses import dataclass

import structlog

from holdfast.replication.asking import TurnAsker
from holdfast.replication.pairing import PeerBook
from holdfast.replication.replication_records import ReplicationBook
from holdfast.replication.turns import TurnBook, TurnRecord
from holdfast.replication.wire import PeerRefused, Yield
from holdfast.spec.errors import HoldfastError
from holdfast.spec.replica import PeerRole
from holdfast.spec.turn import RUNS, Turn

log = structlog.get_logger(__name__)

_GIVEN_UP = (Turn.ADOPTING, Turn.REPLICA)
_ROUND_SECONDS = 1.0
_AGAIN_SECONDS = 30.0
_ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class Yielding:
    turns: TurnBook
    peers: PeerBook
    book: ReplicationBook
    asker: TurnAsker

    async def note(self, known: TurnRecord) -> None:
        """Remember whom a VM that is fenced is sent to, but for the host that has it."""
        names = {each.peer.lower() for each in await self.book.all(known.vm)}
        sent_to = {
            each.fingerprint
            for each in await self.peers.peers()
            if each.role is PeerRole.RECEIVER and each.name.lower() in names
        }

        def decide(_: object, now: TurnRecord | None) -> TurnRecord | None:
            if now is None or now.turn in RUNS:
                return None
            others = dict.fromkeys(sorted(sent_to - {now.peer}), False) | now.others
            return now.model_copy(update={"others": others})

        if sent_to - {known.peer} - known.others.keys():
            await self.turns.decide(known.vm, decide)

    async def keep(self) -> None:
        """Tell whoever is to be told, for ever."""
        clock, not_before = asyncio.get_running_loop().time, 0.0
        while True:
            if self._waits() and clock() >= not_before:
                try:
                    await self.look()
                except Exception:
                    log.exception("who sends a VM from now on could not be told")
                not_before = clock() + _AGAIN_SECONDS if self._waits() else 0.0
            await asyncio.sleep(_ROUND_SECONDS)

    def _waits(self) -> bool:
        known = [each for each in self.turns.all() if each.turn in _GIVEN_UP]
        return any(not all(each.others.values()) for each in known)

    async def look(self) -> None:
        """Tell once each that does not know."""
        for known in self.turns.all():
            for other in [each for each, knows in known.others.items() if not knows]:
                if known.turn in _GIVEN_UP and await self._told(known, other):
                    await self.turns.decide(known.vm, functools.partial(_knows, other))

    async def _told(self, known: TurnRecord, other: str) -> bool:
        peer = await self.peers.of(other, PeerRole.RECEIVER)
        if peer is None:
            return True
        asked = Yield(vm=known.vm, term=known.term, to=known.peer)
        try:
            await self.asker.ask(peer, asked, _ANSWER_SECONDS)
        except PeerRefused as error:
            return bool(error.value == "replica-not-held")
        except (HoldfastError, OSError):
            return False
        return True


def _knows(other: str, _: object, now: TurnRecord | None) -> TurnRecord | None:
    if now is None or other not in now.others:
        return None
    return now.model_copy(update={"others": {**now.others, other: True}})
