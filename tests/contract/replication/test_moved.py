"""A VM that failed over goes on to the other hosts that it was sent to, and no host talks itself into that.

North sent it to west, where it runs now, and to south, which holds a point of it.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from test_listening import Host, Hosts, send
from test_turns import Rig, has

from holdfast.catalog.clock import aware, now
from holdfast.replication.asking import TurnAsker
from holdfast.replication.fencing import VmFenced
from holdfast.replication.link import Address, TlsLink, connect, greet
from holdfast.replication.listening import PeerCannotSend, ReplicaStillSent
from holdfast.replication.shipping import open_vm
from holdfast.replication.turns import TurnRecord, moved
from holdfast.replication.wire import Open, PeerRefused, Query, Standing, TakeOver, Yield
from holdfast.replication.yielding import Yielding
from holdfast.spec.replica import PeerAdd, PeerRole, ReplicaAccept, ReplicaLimits, ReplicaSender
from holdfast.spec.turn import Turn


class Three(Rig):
    async def join(self, folder: Path, limits: ReplicaLimits) -> None:
        """West is paired with south."""
        await self.sent()
        self.west = Host(folder / "west")
        south = self.hosts.south
        made = await south.peering.accept(ReplicaAccept(limits=limits))
        address = f"https://127.0.0.1:{south.listener.port}"
        await self.west.peering.add(
            PeerAdd(name="south", address=address, token=made.token, own_name="west end")
        )
        self.theirs = TurnAsker(self.west.identity, "west")
        self.yielding = Yielding(self.north_turns, self.hosts.north.peers, self.book, self.asker)

    def open(self, opened: Open) -> tuple[TlsLink, Standing]:
        """From west."""
        south = self.hosts.south
        address = Address(host="127.0.0.1", port=south.listener.port or 0)
        link = connect(address, self.west.identity, south.identity.fingerprint, silence=5.0)
        greet(link, "west")
        return link, open_vm(link, opened)

    async def refused(self, opened: Open) -> PeerRefused:
        with pytest.raises(PeerRefused) as refused:
            await asyncio.to_thread(self.open, opened)
        return refused.value

    def of_west(self, term: int) -> Open:
        return self.opened.model_copy(update={"replication": str(uuid.uuid4()), "term": term})

    async def fence(self) -> TurnRecord:
        """North knows that west has the VM for good."""
        fenced = TurnRecord(
            vm=self.opened.vm,
            name="web",
            turn=Turn.FENCED,
            term=2,
            peer=self.west.identity.fingerprint,
            since=aware(now()),
            committed=True,
        )
        await self.north_turns.decide(self.opened.vm, lambda *_: fenced)
        return fenced

    async def said(self) -> None:
        await self.yielding.note(await self.fence())
        await self.yielding.look()
        known = self.north()
        assert known is not None and list(known.others.values()) == [False]  # it may be taken back still
        await self.adopting()
        await self.yielding.look()

    async def adopting(self) -> None:
        def decide(_: object, before: TurnRecord | None) -> TurnRecord | None:
            return moved(before, Turn.ADOPTING) if before else None

        await self.north_turns.decide(self.opened.vm, decide)


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Three]:
    made = Three(Hosts(tmp_path))
    await made.join(tmp_path, ReplicaLimits(vms=1))
    yield made
    made.asker.close()
    made.theirs.close()
    made.hosts.south.listener.close()


async def test_no_paired_host_talks_itself_into_a_replica(three: Three) -> None:
    refused = await three.refused(three.of_west(9))
    assert refused.value == "replica-of-another-source"
    assert "holdfast replica accept-from web --peer 'west end'" in refused.cure
    south = (await three.west.peers.peers())[0]
    for asked in (
        Yield(vm=three.opened.vm, term=9, to=three.west.identity.fingerprint),
        TakeOver(vm=three.opened.vm, term=9, cycle=5),
    ):
        with pytest.raises(PeerRefused) as told:
            await three.theirs.ask(south, asked)
        assert told.value.value == "replica-not-held"
    assert (await three.refused(three.of_west(9))).value == "replica-of-another-source"


async def test_by_the_old_senders_word_the_new_one_goes_on_with_what_is_held(three: Three) -> None:
    await three.said()
    known = three.north()
    assert known is not None and list(known.others.values()) == [True]
    assert (await three.refused(three.of_west(1))).value == "replica-of-another-source"
    link, standing = await asyncio.to_thread(three.open, three.of_west(2))
    assert (standing.cycle, standing.compare, standing.points) == (5, True, 1)
    assert (await asyncio.to_thread(send, link, 6, 0, 2, compared=True)).points == 2
    link.close()
    (held,) = await three.hosts.south.listener.held()
    assert (held.name, held.source, held.accepted_from) == ("web", "west end", "")

    # North has no say in it any more, and one that knows nothing of it finds out.
    with pytest.raises(PeerRefused) as told:
        await asyncio.to_thread(three.hosts.connect, three.opened)
    assert told.value.value == "replica-moved"
    with pytest.raises(PeerRefused):
        await three.ask(TakeOver(vm=three.opened.vm, term=9, cycle=6))
    answer = await three.ask(Yield(vm=three.opened.vm, term=9, to=three.hosts.north.identity.fingerprint))
    assert answer.sender == three.west.identity.fingerprint
    (held,) = await three.hosts.south.listener.held()
    assert (held.source, held.accepted_from) == ("west end", "")


async def test_a_sender_that_forgot_finds_out_and_does_not_start_it(three: Three) -> None:
    await three.said()
    forgotten = moved(three.north(), Turn.PRIMARY, term=1)  # type: ignore[arg-type]
    for _ in range(2):  # before west has come, and after that
        await three.north_turns.decide(three.opened.vm, lambda *_: forgotten)
        with pytest.raises(PeerRefused) as told:
            await asyncio.to_thread(three.hosts.connect, three.opened)
        assert told.value.value == "replica-moved"
        with pytest.raises(VmFenced):
            await three.start()
        fenced = three.north()
        assert fenced is not None
        assert (fenced.term, fenced.peer) == (2, three.west.identity.fingerprint)
        assert not fenced.committed
        link, _ = await asyncio.to_thread(three.open, three.of_west(2))
        link.close()


async def test_a_vm_that_is_taken_back_is_sent_by_its_old_host(three: Three) -> None:
    await three.said()
    again = three.opened.model_copy(update={"term": 3})
    link, standing = await asyncio.to_thread(three.hosts.connect, again)
    link.close()
    assert not standing.compare
    assert (await three.refused(three.of_west(2))).value == "replica-of-another-source"


async def test_where_the_old_sender_is_lost_a_person_says_so(three: Three) -> None:
    listener = three.hosts.south.listener
    link, _ = await asyncio.to_thread(three.hosts.connect, three.opened)
    with pytest.raises(ReplicaStillSent, match="north"):
        await listener.accept_from("web", ReplicaSender(peer="west end"))
    view = await listener.accept_from("web", ReplicaSender(peer="west end", replace=True))
    assert (view.source, view.accepted_from) == ("north", "west end")
    link.close()
    link, standing = await asyncio.to_thread(three.open, three.of_west(1))
    assert (standing.compare, standing.points) == (True, 1)
    link.close()
    back = await listener.accept_from("web", ReplicaSender(peer="north", replace=True))
    assert back.accepted_from == "north"
    link, _ = await asyncio.to_thread(three.hosts.connect, three.opened)
    link.close()
    receiver = await three.hosts.south.peers.turned(
        (await three.hosts.south.peers.peers())[0].model_copy(update={"port": 1}), PeerRole.RECEIVER
    )
    with pytest.raises(PeerCannotSend):
        await listener.accept_from("web", ReplicaSender(peer=receiver.name))


async def test_the_new_sender_has_no_more_than_it_was_allowed(three: Three) -> None:
    other = three.of_west(1).model_copy(update={"vm": str(uuid.uuid4()), "name": "db"})
    link, _ = await asyncio.to_thread(three.open, other)
    link.close()
    await three.said()
    assert (await three.refused(three.of_west(2))).value == "replica-too-many-vms"


async def test_what_is_to_be_said_is_said_again_until_it_was_heard(three: Three) -> None:
    await three.yielding.note(await three.fence())
    await three.adopting()
    south = three.hosts.south
    port = south.listener.port
    south.listener.close()
    await three.yielding.look()
    known = three.north()
    assert known is not None and list(known.others.values()) == [False]
    await south.listener.listen(Address(host="127.0.0.1", port=port or 0))
    await three.yielding.look()
    known = three.north()
    assert known is not None and list(known.others.values()) == [True]


async def test_whoever_runs_it_answers_who_sent_it_before(three: Three) -> None:
    await three.said()
    link, _ = await asyncio.to_thread(three.open, three.of_west(2))
    link.close()
    await has(three.hosts.south, three.opened)
    await three.turn(Turn.PRIMARY, 3)
    answer = await three.ask(Query(vm=three.opened.vm, turn=Turn.FENCED, term=2))
    assert (answer.turn, answer.term) == (Turn.PRIMARY, 3)
