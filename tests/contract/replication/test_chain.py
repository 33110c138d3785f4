"""Chains of three hosts over real links and real stores: what north sends to south goes on to west.

North is a source that sends what a test tells it; south's relay ships by the real process.
"""

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.orm import Session
from test_capture import state_in
from test_listening import Host, Hosts, vm

from holdfast.catalog.tables import ReplicaExtensionRow
from holdfast.host.processes import Processes
from holdfast.replication import wire
from holdfast.replication.attachments import SentVm
from holdfast.replication.dispatch import Dispatch
from holdfast.replication.explaining import Moment, explain
from holdfast.replication.link import Address, TlsLink, hear, tell
from holdfast.replication.relaying import HeldMeans, Relay, came_through
from holdfast.replication.replica_records import ReplicaLoop
from holdfast.replication.replicating import Means
from holdfast.replication.replication_records import Replication, ReplicationBook
from holdfast.replication.statuses import facts_of, status_of
from holdfast.replication.turns import TurnBook
from holdfast.replication.wire import Begin, Commit, Committed, DiskShape, Kind, PeerRefused, Standing
from holdfast.spec.ids import new_id
from holdfast.spec.replica import (
    Consistency,
    PeerAdd,
    ReplicaAccept,
    ReplicaEnable,
    ReplicaLimits,
    ReplicaStatus,
)
from holdfast.spec.vm import Disk, UefiBoot, VmSpec
from holdfast.trust.firmware_state import FirmwareState, opened
from holdfast.trust.protection import RecipientLock, RecipientOpener

STORE = Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
SIZE, BLOCK = 4 << 20, 4096
SHAPES = tuple(DiskShape(id=each, size=SIZE) for each in ("disk0", "disk1"))
_SECONDS = 8.0


class Chain:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts, self.west = Hosts(folder), Host(folder / "west")
        self.south = self.hosts.south
        self.opened = vm().model_copy(update={"disks": SHAPES})
        self.random = random.Random(1)
        self.disks = {each.id: bytearray(SIZE) for each in SHAPES}
        self.sent: dict[int, dict[str, bytes]] = {}
        """What was sent, by cycle."""
        self.last = 0
        disks = tuple(Disk(id=each.id, volume=each.id, size=SIZE) for each in SHAPES)
        boot = UefiBoot(tpm=False)
        self.spec = VmSpec(cpus=1, memory=1 << 28, boot=boot, disks=disks)
        self.firmware = FirmwareState(self.opened.vm, STORE.read_bytes(), None)
        self.extensions = ReplicationBook(self.south.catalog, self.south.events, ReplicaExtensionRow)
        self.turns = TurnBook(self.south.catalog, self.south.events)
        self.processes = Processes(state_in(folder))
        self.task: asyncio.Task[None] | None = None

    async def pair(self) -> None:
        await self.hosts.pair(ReplicaLimits())
        await self.west.listener.listen(Address(host="127.0.0.1", port=0))
        made = await self.west.peering.accept(ReplicaAccept(limits=ReplicaLimits()))
        address = f"https://127.0.0.1:{self.west.listener.port}"
        asked = PeerAdd(name="west", address=address, token=made.token, own_name="south")
        await self.south.peering.add(asked)
        self.link, standing = await self.connected()
        assert standing == Standing(cycle=0)

    async def connected(self) -> tuple[TlsLink, Standing]:
        return await asyncio.to_thread(self.hosts.connect, self.opened)

    async def cycle(self, *, full: bool = False, compared: bool = False, count: int = 6) -> int:
        """North writes and sends; returns the cycle's number."""
        before, self.last = self.last, max(int(time.time() * 1000), self.last + 1)
        written: dict[str, list[tuple[int, bytes]]] = {each: [] for each in self.disks}
        for disk, content in self.disks.items():
            for block in sorted(self.random.sample(range(SIZE // BLOCK), count)):
                data = self.random.randbytes(BLOCK)
                content[block * BLOCK : (block + 1) * BLOCK] = data
                written[disk].append((block * BLOCK, data))
        if compared:
            written = {
                each: [(at, bytes(content[at : at + (1 << 20)])) for at in range(0, SIZE, 1 << 20)]
                for each, content in self.disks.items()
            }
        self.sent[self.last] = {each: bytes(content) for each, content in self.disks.items()}
        base = 0 if full or compared else before
        await asyncio.to_thread(self._send, written, base, compared=compared)
        return self.last

    def _send(self, written: dict[str, list[tuple[int, bytes]]], base: int, *, compared: bool) -> None:
        link, number = self.link, self.last
        taken, consistency = int(time.time() * 1e6), Consistency.APPLICATION
        shapes = SHAPES
        tell(
            link,
            Begin(
                cycle=number,
                base=base,
                taken_us=taken,
                disks=shapes,
                compared=compared,
                consistency=consistency,
            ),
        )
        count = 0
        for number_of, shape in enumerate(shapes):
            for at, data in written[shape.id]:
                link.send(Kind.WRITE, wire.table(number_of, [(at, len(data))]) + data)
                count += len(data)
        if not base:
            sent = SentVm(id=self.opened.vm, name="web", spec=self.spec)
            lock = RecipientLock.of_pem(self.south.identity.certificate.read_bytes())
            for name, data in (
                ("spec", sent.model_dump_json().encode()),
                ("firmware", self.firmware.sealed(lock)),
            ):
                link.send(Kind.ATTACH, wire.part(name, last=True) + data)
        tell(link, Commit(cycle=number, written=count, zeroed=0))
        assert hear(link, Committed).cycle == number

    async def extend(self, **settings: object) -> None:
        """As `Extensions.extend` does, once something came."""
        chosen = ReplicaEnable.model_validate({"peer": "west", "rpo_seconds": 1.0, **settings})
        made = Replication(id=new_id(), vm=self.opened.vm, settings=chosen, enabled=datetime.now(UTC))
        await self.extensions.add(made)
        await self.begin()

    async def begin(self) -> None:
        """As a daemon that starts."""
        self.dispatch = Dispatch(self.processes)
        host = self.south
        means = Means(
            *(host.identity, "south", host.peers, self.extensions, self.dispatch),
            *(None, host.events, None),  # type: ignore[arg-type]
            turns=self.turns,
        )
        holds = HeldMeans(host.book, host.store, self.folder, host.identity.key)
        (record,) = await self.extensions.all()
        held = await host.book.of_vm(self.opened.vm)
        assert held is not None
        self.relay = Relay(record, means, holds, held)
        loop = asyncio.get_running_loop()
        host.listener.arrived = lambda _: loop.call_soon(self.relay.wake) and None
        self.task = asyncio.create_task(self.relay.run())

    async def end(self) -> None:
        """As a daemon that is killed: nothing is put in order."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait({self.task})
            await self.dispatch.close()

    @property
    def status(self) -> ReplicaStatus:
        return status_of("web", self.relay, time.monotonic())

    async def until(self, cycle: int) -> None:
        """West holds a cycle."""
        deadline = time.monotonic() + _SECONDS
        while self.held() < cycle or self.relay.progress.newest < cycle:
            assert time.monotonic() < deadline, (cycle, self.held(), self.status)
            await asyncio.sleep(0.02)

    def held(self) -> int:
        if "web" not in self.west.store.names():
            return 0
        points = self.west.store.replica("web").points()
        return points[-1].cycle if points else 0

    def require_right(self) -> None:
        """Each point at west is what north had at that instant, bit for bit."""
        replica = self.west.store.replica("web")
        here = {each.cycle: each for each in self.south.store.replica("web").points()}
        for point in replica.points():
            for disk, content in self.sent[point.cycle].items():
                assert replica.read(point.number, disk, 0, SIZE) == content, (point, disk)
            if known := here.get(point.cycle):
                assert (point.taken, point.consistency) == (known.taken, known.consistency)


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[Chain]:
    made = Chain(tmp_path)
    await made.pair()
    yield made
    await made.end()
    made.link.close()
    for host in (made.south, made.west):
        host.listener.close()


async def test_points_go_on_with_their_times_and_only_what_changed(chain: Chain) -> None:
    first = await chain.cycle(full=True, count=200)
    await chain.extend(points="all:1h")
    await chain.until(first)
    initial = chain.relay.progress.tries[-1].changed
    for _ in range(4):
        await chain.until(await chain.cycle())
    chain.require_right()
    assert len(chain.west.store.replica("web").points()) == 5
    assert chain.relay.progress.tries[-1].changed == 12 * BLOCK < initial
    status = chain.status
    assert (status.full_copies, status.points, status.state) == (0, 5, "replicating")
    # Counted from the instant on north, not from that of shipping.
    point = chain.west.store.replica("web").points()[-1]
    age = time.time() - point.taken.timestamp()
    assert status.rpo_seconds is not None and abs(status.rpo_seconds - age) < 0.5
    (west,) = await chain.west.book.held()
    assert (west.via, west.points) == ((chain.hosts.north.identity.fingerprint,), "all:1h")
    # What is kept for west is one point, whatever south keeps.
    south = chain.south.store.replica("web")
    assert list(south.pins().values()) == [(south.points()[-1].number,)]
    south.prune([])
    assert len(south.points()) == 1


async def test_firmware_state_is_sealed_anew_for_the_next_host(chain: Chain) -> None:
    await chain.cycle(full=True)
    await chain.extend()
    await chain.until(chain.last)
    replica = chain.west.store.replica("web")
    found = replica.attachments(replica.points()[-1].number)
    opener = RecipientOpener.of_pem(chain.west.identity.key.read_bytes())
    assert opened(found["firmware"], opener) == chain.firmware
    assert SentVm.model_validate_json(found["spec"]).spec == chain.spec
    await chain.until(await chain.cycle())  # nothing of it is sent again
    newest = replica.points()[-1]
    assert replica._holdings.spans[-1].head.last == newest.number
    assert replica._holdings.spans[-1].head.attached == ()


async def test_after_kills_of_the_middle_host_changes_alone_go_on_also_where_points_were_pruned(
    chain: Chain,
) -> None:
    await chain.cycle(full=True, count=200)
    await chain.extend()
    await chain.until(chain.last)
    for _ in range(3):
        await chain.end()
        for _ in range(3):
            await chain.cycle()
        chain.south.store.replica("web").prune([])
        await chain.begin()
        await chain.until(chain.last)
        assert chain.relay.progress.tries[-1].changed <= 36 * BLOCK
    chain.require_right()
    assert chain.status.full_copies == 0
    compared = [each for each in chain.relay.progress.tries if each.changed > 36 * BLOCK]
    assert not compared


async def test_a_cycle_that_is_cut_off_is_sent_again(chain: Chain) -> None:
    await chain.cycle(full=True, count=600)
    await chain.extend(limit="8Mbit/s")
    deadline = time.monotonic() + _SECONDS
    while chain.relay.progress.moving is None:
        assert time.monotonic() < deadline, chain.status
        await asyncio.sleep(0.01)
    await chain.end()
    (record,) = await chain.extensions.all()
    await chain.extensions.set(record, record.settings.model_copy(update={"limit": "none"}))
    await chain.cycle()
    await chain.begin()
    await chain.until(chain.last)
    chain.require_right()
    assert chain.status.full_copies == 0


async def test_where_the_base_is_gone_both_sides_are_compared_and_points_stay(chain: Chain) -> None:
    await chain.cycle(full=True, count=200)
    await chain.extend()
    await chain.until(chain.last)
    await chain.end()
    replica = chain.south.store.replica("web")
    replica.pin(chain.relay.replication.id, ())
    await chain.cycle()
    await chain.cycle()
    replica.prune([])
    await chain.begin()
    await chain.until(chain.last)
    chain.require_right()
    assert chain.status.full_copies == 0
    assert chain.relay.progress.tries[-1].changed == 24 * BLOCK
    assert len(chain.west.store.replica("web").points()) == 2


async def test_damage_at_the_middle_host_is_not_sent_on_and_is_mended_without_a_full_copy(
    chain: Chain,
) -> None:
    await chain.cycle(full=True, count=200)
    await chain.extend()
    await chain.until(chain.last)
    await chain.end()
    good = chain.last
    await chain.cycle()
    journal = chain.south.folder / "replicas" / "web" / "journal"
    for path in journal.iterdir():
        data = bytearray(path.read_bytes())
        data[256 * BLOCK :] = bytes(each ^ 0xFF for each in data[256 * BLOCK :])
        path.write_bytes(data)
    await chain.begin()
    deadline = time.monotonic() + _SECONDS
    while chain.status.last_error_id != "replica-damaged":
        assert time.monotonic() < deadline, chain.status
        await asyncio.sleep(0.02)
    assert chain.held() == good
    assert chain.south.store.replica("web").verify()
    chain.link.close()
    chain.link, standing = await chain.connected()
    assert standing.compare
    await chain.cycle(compared=True)
    chain.relay.wake()
    await chain.until(chain.last)
    chain.require_right()
    assert chain.status.full_copies == 0


async def test_a_chain_goes_to_no_host_that_it_came_through(chain: Chain) -> None:
    north, south = chain.hosts.north.identity.fingerprint, chain.south.identity.fingerprint
    await chain.cycle(full=True)
    held = await chain.south.book.of_vm(chain.opened.vm)
    assert held is not None
    with pytest.raises(ReplicaLoop):
        came_through(held, north)
    assert came_through(held, "sha256:" + "1" * 64) == (north,)
    through = tuple("sha256:" + hashlib.sha256(bytes([each])).hexdigest() for each in range(8))
    with pytest.raises(ReplicaLoop):
        came_through(held.model_copy(update={"via": through}), "sha256:" + "1" * 64)
    # Whatever a source says: nobody takes what came through it.
    chain.opened = vm("other").model_copy(update={"via": (south,)})
    with pytest.raises(PeerRefused) as refused:
        await chain.connected()
    assert refused.value.value == "replica-loop"


async def test_where_nothing_newer_comes_it_says_so(chain: Chain) -> None:
    await chain.cycle(full=True)
    await chain.extend()
    await chain.until(chain.last)
    deadline = time.monotonic() + _SECONDS
    while not chain.relay.waits_for_source:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    at = time.monotonic()
    facts = facts_of(chain.relay, chain.relay.figures.now(at), at)
    found = explain(
        chain.status,
        replace(facts, silent=90.0, missed=0.0),
        chain.relay.progress,
        Moment(at, datetime.now().astimezone()),
    )
    assert found.causes[0].rule == "nothing-to-send-on" and "90 s" in found.summary


async def test_an_extension_is_known_by_its_replica_and_gone_with_its_pins(chain: Chain) -> None:
    await chain.cycle(full=True)
    await chain.extend()
    await chain.until(chain.last)
    await chain.end()
    await chain.relay.forget()
    assert chain.south.store.replica("web").pins() == {}
    (record,) = await chain.extensions.all()

    def rows(session: Session) -> int:
        return session.query(ReplicaExtensionRow).count()

    await chain.extensions.remove(record)
    assert await chain.south.catalog.read(rows) == 0
