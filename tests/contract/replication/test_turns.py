"""Whose turn it is, over real links and the real store: who is let in, who is fenced, what is asked twice."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blake3 import blake3
from sqlalchemy.orm import Session
from test_listening import DISK, Host, Hosts, send, vm

from holdfast.catalog.clock import aware, now
from holdfast.catalog.tables import VmRow
from holdfast.replication import wire
from holdfast.replication.asking import TurnAsker
from holdfast.replication.attachments import SentVm
from holdfast.replication.fencing import Fencing, Local, VmFenced
from holdfast.replication.link import LinkLost, TlsLink, hear, tell
from holdfast.replication.replication_records import Replication, ReplicationBook
from holdfast.replication.taking_over import first
from holdfast.replication.turn_desk import TurnDesk
from holdfast.replication.turns import TurnBook, TurnRecord, moved
from holdfast.replication.wire import (
    Ask,
    Begin,
    Commit,
    Committed,
    Digests,
    Kind,
    Open,
    PeerRefused,
    Prepare,
    Query,
    Release,
    TakeOver,
)
from holdfast.spec.replica import ReplicaEnable, ReplicaLimits, ReplicaPeer
from holdfast.spec.turn import Turn
from holdfast.spec.vm import KernelBoot, VmSpec
from holdfast.vm import records

SPEC = VmSpec(cpus=1, memory=1 << 27, boot=KernelBoot(kernel="0" * 64), disks=(), nics=())


async def has(host: Host, opened: Open) -> None:
    """A VM's record, without a VM."""

    def insert(session: Session) -> None:
        records.insert(session, opened.vm, opened.name, SPEC, None)

    await host.catalog.write(insert)


class Rig:
    """North sends a VM to south; what south does with a TAKE_OVER is noted, and nothing is made."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts, self.opened = hosts, vm()
        north, south = hosts.north, hosts.south
        self.taken: list[tuple[int, int | None]] = []
        self.north_turns = TurnBook(north.catalog, north.events)
        self.south_turns = TurnBook(south.catalog, south.events)
        self.asker = TurnAsker(north.identity, "north")
        self.book = ReplicationBook(north.catalog, north.events)
        self.running = False
        self.fencing = Fencing(
            self.north_turns, north.peers, self.book, self.asker, north.events, self._local, lambda _: False
        )
        south.listener.desk = TurnDesk(
            self.south_turns, south.book, south.store, self, self._free, lambda _: None
        )

    async def _local(self, _: str) -> Local:
        return Local("web", self.running)

    async def _free(self, _: SentVm) -> None:
        """Nothing is in the way."""

    async def begin(self, held, point, term, *, start, final, actor):  # type: ignore[no-untyped-def]
        """As `Takeovers.begin`, of which only the turn is real."""
        self.taken.append((point.number, term))
        await self.turn(Turn.TAKING_OVER, term)

    async def turn(self, to: Turn, term: int) -> None:
        held = await self.hosts.south.book.of_vm(self.opened.vm)
        assert held is not None

        def decide(_: Session, before: TurnRecord | None) -> TurnRecord:
            return moved(before or first(held), to, term=term)

        await self.south_turns.decide(self.opened.vm, decide)

    async def sent(self) -> None:
        """South holds cycle 5 of the VM, which is north's by its records."""
        await self.hosts.pair(ReplicaLimits())
        link, _ = await asyncio.to_thread(self.hosts.connect, self.opened)
        await asyncio.to_thread(self._initial, link)
        link.close()
        await has(self.hosts.north, self.opened)
        settings = ReplicaEnable(peer="south")
        peer = await self.south()
        await self.book.add(
            Replication(id=self.opened.replication, vm=self.opened.vm, settings=settings, enabled=peer.paired)
        )

    def _initial(self, link: TlsLink) -> None:
        sent = SentVm(id=self.opened.vm, name="web", spec=SPEC).model_dump_json().encode()
        tell(link, Begin(cycle=5, base=0, taken_us=5, disks=(DISK,)))
        link.send(Kind.ATTACH, wire.part("spec", last=True) + sent)
        tell(link, Commit(cycle=5, written=0, zeroed=0))
        hear(link, Committed)

    async def south(self) -> ReplicaPeer:
        return await self.hosts.north.peers.get("south")

    async def ask(self, asked: Query | Prepare | TakeOver | Release):  # type: ignore[no-untyped-def]
        return await self.asker.ask(await self.south(), asked)

    async def start(self) -> None:
        await self.fencing.before_start(self.opened.vm, "web")

    def north(self) -> TurnRecord | None:
        return self.north_turns.known(self.opened.vm)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    hosts = Hosts(tmp_path)
    made = Rig(hosts)
    await made.sent()
    yield made
    made.asker.close()
    hosts.south.listener.close()


async def test_what_failed_over_is_received_no_more_and_does_not_start_where_it_was(rig: Rig) -> None:
    await rig.start()
    await rig.turn(Turn.FAILED_OVER, 2)
    with pytest.raises(PeerRefused) as refused:
        await asyncio.to_thread(rig.hosts.connect, rig.opened)
    assert refused.value.value == "replica-failed-over"
    with pytest.raises(VmFenced):
        await rig.start()
    rig.hosts.south.listener.close()  # it is known by now, and nobody is to be asked
    with pytest.raises(VmFenced):
        await rig.start()


async def test_a_host_that_cannot_be_asked_has_no_say(rig: Rig) -> None:
    await rig.turn(Turn.FAILED_OVER, 2)
    rig.hosts.south.listener.close()
    await rig.start()
    found = [each.kind async for each in _events(rig)]
    assert "replica.started-unasked" in found


async def _events(rig: Rig):  # type: ignore[no-untyped-def]
    events = rig.hosts.north.events
    async with asyncio.timeout(5):
        last = await events.last_id()
        async for each in events.follow(0):
            yield each
            if each.id >= last:
                return


async def test_a_failover_that_is_taken_back_lets_the_vm_go(rig: Rig) -> None:
    rig.running = True
    await rig.turn(Turn.FAILED_OVER, 2)
    await rig.fencing.look()
    fenced = rig.north()
    assert fenced is not None
    assert (fenced.turn, fenced.term, fenced.committed) == (Turn.FENCED, 2, False)
    assert "replica.both-run" in [each.kind async for each in _events(rig)]
    await rig.turn(Turn.REPLICA, 2)
    await rig.fencing.look()
    await rig.start()
    await has(rig.hosts.south, rig.opened)
    await rig.turn(Turn.PRIMARY, 3)
    await rig.fencing.look()
    fenced = rig.north()
    assert fenced is not None
    assert (fenced.turn, fenced.term, fenced.committed) == (Turn.FENCED, 3, True)


async def test_of_two_that_claim_a_vm_the_higher_term_is_right(rig: Rig) -> None:
    await rig.turn(Turn.FAILED_OVER, 2)
    await rig.fencing.look()
    found = await rig.fencing.reclaim(rig.opened.vm, "web")
    assert (found.turn, found.term) == (Turn.PRIMARY, 3)
    await rig.fencing.look()  # south says 2 still
    await rig.start()
    await rig.turn(Turn.FAILED_OVER, 4)
    with pytest.raises(VmFenced):
        await rig.start()


async def test_a_take_over_counts_once_and_not_after_its_release(rig: Rig) -> None:
    vm_id = rig.opened.vm
    assert (await rig.ask(Prepare(vm=vm_id, term=2, memory=1))).turn is Turn.REPLICA
    with pytest.raises(PeerRefused) as refused:
        await rig.ask(TakeOver(vm=vm_id, term=2, cycle=4))
    assert refused.value.value == "replica-cycle-not-newest"
    for _ in range(2):
        assert (await rig.ask(TakeOver(vm=vm_id, term=2, cycle=5))).turn is Turn.TAKING_OVER
    assert rig.taken == [(1, 2)]
    assert (await rig.ask(Release(vm=vm_id, term=2))).turn is Turn.TAKING_OVER
    await rig.turn(Turn.REPLICA, 2)  # it could not be made
    assert (await rig.ask(Release(vm=vm_id, term=3))).term == 3
    late = await rig.ask(TakeOver(vm=vm_id, term=3, cycle=5))
    assert (late.turn, late.term) == (Turn.REPLICA, 3)
    assert rig.taken == [(1, 2)]


async def test_a_link_that_opens_in_the_midst_of_a_hand_over_does_not_void_it(rig: Rig) -> None:
    fenced = TurnRecord(
        vm=rig.opened.vm,
        name="web",
        turn=Turn.HANDING_OVER,
        term=2,
        peer=(await rig.south()).fingerprint,
        since=aware(now()),
    )
    await rig.north_turns.decide(rig.opened.vm, lambda *_: fenced)
    assert rig.north_turns.own_term(rig.opened.vm) == 1
    again = rig.opened.model_copy(update={"term": rig.north_turns.own_term(rig.opened.vm)})
    link, _ = await asyncio.to_thread(rig.hosts.connect, again)
    link.close()
    assert (await rig.ask(TakeOver(vm=rig.opened.vm, term=2, cycle=5))).turn is Turn.TAKING_OVER


async def test_who_does_not_send_a_vm_has_no_say_about_it(rig: Rig) -> None:
    other = str(uuid.uuid4())
    for asked in (Query(vm=other, turn=Turn.PRIMARY, term=9), TakeOver(vm=other, term=9, cycle=5)):
        with pytest.raises(PeerRefused) as refused:
            await rig.ask(asked)
        assert refused.value.value == "replica-not-held"


async def test_a_vm_of_this_host_is_not_overwritten(rig: Rig) -> None:
    mine = Open(replication=str(uuid.uuid4()), vm=str(uuid.uuid4()), name="db", disks=(DISK,))
    south = rig.hosts.south
    await has(south, mine)
    with pytest.raises(PeerRefused, match="runs on the host"):
        await asyncio.to_thread(rig.hosts.connect, mine)

    def gone(session: Session) -> None:
        session.delete(session.get(VmRow, mine.vm))

    await south.catalog.write(gone)
    link, _ = await asyncio.to_thread(rig.hosts.connect, mine)
    link.close()


async def test_the_host_that_a_vm_came_from_is_known_by_its_port(rig: Rig) -> None:
    opened = rig.opened.model_copy(update={"receives": 4711})
    link, _ = await asyncio.to_thread(rig.hosts.connect, opened)
    link.close()
    north = (await rig.hosts.south.peers.peers())[0]
    assert (north.host, north.port) == ("127.0.0.1", 4711)
    elsewhere = opened.model_copy(update={"receives_at": "2001:db8::7"})
    link, _ = await asyncio.to_thread(rig.hosts.connect, elsewhere)
    link.close()
    north = (await rig.hosts.south.peers.peers())[0]
    assert (north.host, north.port) == ("2001:db8::7", 4711)


async def test_what_took_over_is_let_in_only_once_the_disks_are_ready(rig: Rig) -> None:
    await has(rig.hosts.south, rig.opened)
    await rig.turn(Turn.FENCED, 2)
    with pytest.raises(PeerRefused) as refused:
        await asyncio.to_thread(rig.hosts.connect, rig.opened)
    assert refused.value.value == "replica-not-ready"
    await rig.turn(Turn.ADOPTING, 2)
    link, _ = await asyncio.to_thread(rig.hosts.connect, rig.opened)
    link.close()


async def test_an_open_link_ends_when_the_turn_comes(rig: Rig) -> None:
    link, _ = await asyncio.to_thread(rig.hosts.connect, rig.opened)
    await rig.turn(Turn.TAKING_OVER, 2)
    await rig.hosts.south.listener.halt(rig.opened.vm)
    with pytest.raises((LinkLost, PeerRefused)):
        await asyncio.to_thread(send, link, 6, 5, 1)
    link.close()
    with pytest.raises(PeerRefused):
        await asyncio.to_thread(rig.hosts.connect, rig.opened)
    assert len(rig.hosts.south.store.replica("web").points()) == 1


async def test_disks_that_are_placed_are_compared_before_they_count(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    await hosts.pair(ReplicaLimits())
    opened, south = vm(), hosts.south
    disk = tmp_path / "content" / "base" / "disk0"
    disk.parent.mkdir(parents=True)
    disk.write_bytes(b"\1" * DISK.size)
    peer = (await south.peers.peers())[0]
    held = await south.book.adopt(opened.vm, "web", peer)
    south.store.place(held.name, tmp_path / "content")
    south.store.place(held.name, tmp_path / "content")  # as after a kill between the two steps
    link, standing = await asyncio.to_thread(hosts.connect, opened)
    assert (standing.cycle, standing.compare, standing.points) == (0, True, 0)
    with pytest.raises(PeerRefused, match="is held"):
        await asyncio.to_thread(send, link, 5, 4, 2)
    link.close()
    link, _ = await asyncio.to_thread(hosts.connect, opened)
    tell(link, Ask(disk="disk0", offset=0, length=4096, block=4096))
    assert (await asyncio.to_thread(hear, link, Digests)).digests == blake3(b"\1" * 4096).hexdigest()
    await asyncio.to_thread(send, link, 5, 0, 2, compared=True)
    replica = south.store.replica(held.name)
    assert replica.read(1, "disk0", 0, DISK.size) == b"\2" * 4096 + b"\1" * (DISK.size - 4096)
    link.close()
    south.listener.close()
