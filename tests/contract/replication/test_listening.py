"""The listening side over real TLS and the real store: who may send, how much, and who takes whose place."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from blake3 import blake3

from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.replication import identity, wire
from holdfast.replication.link import Address, LinkLost, TlsLink, connect, greet, hear, tell
from holdfast.replication.listening import CannotListen, ReplicaListener
from holdfast.replication.pairing import PairingToken, PeerBook
from holdfast.replication.peering import NotListening, Peering
from holdfast.replication.replica_records import ReplicaBook
from holdfast.replication.replication_records import ReplicationBook
from holdfast.replication.scrubbing import Scrubbing
from holdfast.replication.shipping import open_vm
from holdfast.replication.store.replica import ReplicaStore
from holdfast.replication.wire import (
    Ask,
    Begin,
    Commit,
    Committed,
    Digests,
    DiskShape,
    Kind,
    Open,
    PeerRefused,
    Standing,
)
from holdfast.spec.replica import PeerAdd, PeerRole, ReplicaAccept, ReplicaLimits

DISK = DiskShape(id="disk0", size=1 << 20)
BLOCK = 4096


class Host:
    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "replicas").mkdir()
        self.folder = folder
        catalog = self.catalog = Catalog.open(folder / "catalog.sqlite")
        events = self.events = EventLog(catalog)
        self.identity = identity.load_or_make(folder)
        self.peers = PeerBook(catalog, events)
        self.book = ReplicaBook(catalog, events)
        self.store = ReplicaStore(folder / "replicas")
        self.listener = ReplicaListener(self.identity, folder.name, self.peers, self.book, self.store)
        sent = ReplicationBook(catalog, events)
        self.peering = Peering(self.identity, self.peers, self.listener, self.book, sent)


class Hosts:
    def __init__(self, folder: Path) -> None:
        self.north, self.south = Host(folder / "north"), Host(folder / "south")

    async def pair(self, limits: ReplicaLimits) -> None:
        await self.south.listener.listen(Address(host="127.0.0.1", port=0))
        made = await self.south.peering.accept(ReplicaAccept(limits=limits))
        address = f"https://127.0.0.1:{self.south.listener.port}"
        asked = PeerAdd(name="south", address=address, token=made.token, own_name="north")
        assert (await self.north.peering.add(asked)).role is PeerRole.RECEIVER

    def connect(self, opened: Open) -> tuple[TlsLink, Standing]:
        address = Address(host="127.0.0.1", port=self.south.listener.port or 0)
        link = connect(address, self.north.identity, self.south.identity.fingerprint, silence=5.0)
        greet(link, "north")
        return link, open_vm(link, opened)


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[Hosts]:
    made = Hosts(tmp_path)
    yield made
    made.south.listener.close()


def vm(name: str = "web") -> Open:
    one, other = str(uuid.uuid4()), str(uuid.uuid4())
    return Open(replication=one, vm=other, name=name, disks=(DISK,), points="all:10m")


def send(link: TlsLink, cycle: int, base: int, fill: int, *, compared: bool = False) -> Committed:
    tell(link, Begin(cycle=cycle, base=base, taken_us=cycle, disks=(DISK,), compared=compared))
    link.send(Kind.WRITE, wire.table(0, [(0, BLOCK)]) + bytes([fill]) * BLOCK)
    tell(link, Commit(cycle=cycle, written=BLOCK, zeroed=0))
    return hear(link, Committed)


async def test_a_paired_source_sends_and_finds_again_what_is_held(hosts: Hosts) -> None:
    await hosts.pair(ReplicaLimits())
    opened = vm()
    link, standing = await asyncio.to_thread(hosts.connect, opened)
    assert (standing.cycle, standing.compare, standing.points) == (0, False, 0)
    assert (await asyncio.to_thread(send, link, 5, 0, 1)).points == 1
    assert (await asyncio.to_thread(send, link, 6, 5, 2)).points == 2
    link.close()
    link, standing = await asyncio.to_thread(hosts.connect, opened)
    assert (standing.cycle, standing.compare, standing.points) == (6, False, 2)
    tell(link, Ask(disk="disk0", offset=0, length=BLOCK, block=4096))
    answer = await asyncio.to_thread(hear, link, Digests)
    assert answer.digests == blake3(b"\2" * BLOCK).hexdigest()
    (held,) = await hosts.south.listener.held()
    assert (held.name, held.source, held.connected, held.points) == ("web", "north", True, 2)
    hosts.south.listener._tested = {"web": datetime(2030, 1, 1, tzinfo=UTC)}
    assert (await asyncio.to_thread(send, link, 7, 6, 3)).tested_us == 1_893_456_000_000_000
    link.close()


async def test_what_an_earlier_replication_brought_is_compared_before_it_is_changed(hosts: Hosts) -> None:
    await hosts.pair(ReplicaLimits())
    opened = vm()
    link, _ = await asyncio.to_thread(hosts.connect, opened)
    await asyncio.to_thread(send, link, 5, 0, 1)
    link.close()
    anew = opened.model_copy(update={"replication": str(uuid.uuid4())})
    for _ in range(2):  # to have connected is not to have compared
        link, standing = await asyncio.to_thread(hosts.connect, anew)
        assert (standing.cycle, standing.compare) == (5, True)
        with pytest.raises(PeerRefused, match="not compared"):
            await asyncio.to_thread(send, link, 6, 5, 2)
        link.close()
    link, _ = await asyncio.to_thread(hosts.connect, anew)
    assert (await asyncio.to_thread(send, link, 7, 5, 3, compared=True)).points == 2
    await asyncio.to_thread(send, link, 8, 7, 4)
    link.close()
    _, standing = await asyncio.to_thread(hosts.connect, anew)
    assert not standing.compare


async def test_a_source_has_no_more_vms_and_no_more_room_than_it_is_allowed(hosts: Hosts) -> None:
    await hosts.pair(ReplicaLimits(vms=1, space=BLOCK))
    link, _ = await asyncio.to_thread(hosts.connect, vm())
    with pytest.raises(PeerRefused) as refused:
        await asyncio.to_thread(hosts.connect, vm("db"))
    assert refused.value.value == "replica-too-many-vms"
    tell(link, Begin(cycle=5, base=0, taken_us=1, disks=(DISK,)))
    link.send(Kind.WRITE, wire.table(0, [(0, 64 * BLOCK)]) + bytes(64 * BLOCK))
    with pytest.raises(PeerRefused) as refused:
        await asyncio.to_thread(hear, link, Committed)
    assert refused.value.value == "replica-space-limit"
    link.close()


async def test_a_newer_link_takes_the_place_of_one_that_hangs(hosts: Hosts) -> None:
    await hosts.pair(ReplicaLimits())
    opened = vm()
    hung, _ = await asyncio.to_thread(hosts.connect, opened)
    tell(hung, Begin(cycle=5, base=0, taken_us=1, disks=(DISK,)))
    link, _ = await asyncio.to_thread(hosts.connect, opened)
    await asyncio.to_thread(send, link, 6, 0, 1)
    with pytest.raises(LinkLost):
        await asyncio.to_thread(hear, hung, Committed)
    link.close()


async def test_two_hosts_vms_of_one_name_lie_apart(hosts: Hosts) -> None:
    await hosts.pair(ReplicaLimits())
    first, _ = await asyncio.to_thread(hosts.connect, vm())
    second, _ = await asyncio.to_thread(hosts.connect, vm("WEB"))
    assert [each.name for each in await hosts.south.listener.held()] == ["web", "WEB of north"]
    first.close()
    second.close()


async def test_a_peer_that_is_removed_is_let_go_of_and_its_replicas_stay(hosts: Hosts) -> None:
    await hosts.pair(ReplicaLimits())
    opened = vm()
    link, _ = await asyncio.to_thread(hosts.connect, opened)
    await asyncio.to_thread(send, link, 5, 0, 1)
    await hosts.south.peering.remove("north")
    with pytest.raises(LinkLost):
        await asyncio.to_thread(send, link, 6, 5, 1)
    with pytest.raises((LinkLost, PeerRefused)):
        await asyncio.to_thread(hosts.connect, opened)
    (held,) = await hosts.south.listener.held()
    assert (held.source, held.points) == ("", 1)
    await hosts.south.listener.remove("web")
    assert await hosts.south.listener.held() == ()
    assert hosts.south.store.names() == []


async def test_who_does_not_listen_makes_no_tokens_and_a_taken_port_is_said(hosts: Hosts) -> None:
    with pytest.raises(NotListening):
        await hosts.south.peering.accept(ReplicaAccept())
    await hosts.pair(ReplicaLimits())
    with pytest.raises(CannotListen):
        await hosts.north.listener.listen(Address(host="127.0.0.1", port=hosts.south.listener.port or 0))
    token = (await hosts.south.peering.accept(ReplicaAccept())).token
    assert PairingToken.parse(token).fingerprint == hosts.south.identity.fingerprint


async def test_damage_is_found_and_healed_by_comparing(hosts: Hosts) -> None:
    await hosts.pair(ReplicaLimits())
    opened = vm()
    link, _ = await asyncio.to_thread(hosts.connect, opened)
    await asyncio.to_thread(send, link, 1, 0, 1)
    await asyncio.to_thread(send, link, 2, 1, 2)
    south = hosts.south
    (path,) = (south.folder / "replicas/web/journal").iterdir()
    content = path.read_bytes()
    path.write_bytes(content.replace(bytes([2]) * BLOCK, bytes([2]) * (BLOCK - 1) + b"!"))
    scrubbing = Scrubbing(south.book, south.store, south.events)
    await scrubbing.scrub("web")
    await scrubbing.scrub("web")
    told = await south.events.recent(100)
    assert [each.subject for each in told if each.kind == "replica.damaged"] == ["web"]
    with pytest.raises(PeerRefused, match="not compared"):
        await asyncio.to_thread(send, link, 3, 2, 3)
    link, standing = await asyncio.to_thread(hosts.connect, opened)
    assert (standing.cycle, standing.compare) == (2, True)
    assert (await asyncio.to_thread(send, link, 3, 2, 3, compared=True)).cycle == 3
    assert not hosts.south.store.replica("web").must_compare()
    await asyncio.to_thread(send, link, 4, 3, 4)
    link.close()
