"""Extensions of replicas as people and failovers change them, over three hosts' real links and stores."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.orm import Session
from test_capture import state_in
from test_chain import Chain
from test_turns import has

from holdfast.replication.asking import TurnAsker
from holdfast.replication.dispatch import Dispatch
from holdfast.replication.extending import Extensions
from holdfast.replication.extending import Means as ExtendingMeans
from holdfast.replication.history import History
from holdfast.replication.peering import Peering, PeerInUse
from holdfast.replication.relaying import HeldMeans
from holdfast.replication.replica_records import NoSuchReplica, ReplicaLoop
from holdfast.replication.replicating import Means
from holdfast.replication.replication_records import AlreadyReplicated, NotReplicated, ReplicationBook
from holdfast.replication.revival import NoPoints
from holdfast.replication.service import (
    ExtensionNotConsistent,
    NeedsAttestedHost,
    NoSuchDisk,
    PeerCannotReceive,
    Replications,
)
from holdfast.replication.store.errors import ReplicaInUse
from holdfast.replication.taking_over import first
from holdfast.replication.turn_desk import TurnDesk
from holdfast.replication.turns import ReplicaFailedOver, TurnBook, TurnRecord, moved
from holdfast.replication.wire import PeerRefused
from holdfast.spec.replica import PeerRole, ReplicaChange, ReplicaExtend
from holdfast.spec.turn import Turn
from holdfast.vm.records import VmNotFound

_SECONDS = 8.0


class NoVms:
    """A registry of a host without VMs."""

    async def named(self, name: str) -> None:
        raise VmNotFound(f"there is no VM {name!r}", value=name)


class Middle:
    """South as a daemon composes it, as far as replicas are sent on; west answers about turns."""

    def __init__(self, chain: Chain) -> None:
        self.chain, host = chain, chain.south
        self.dispatch = Dispatch(chain.processes)
        self.vms = ReplicationBook(host.catalog, host.events)
        means = Means(
            *(host.identity, "south", host.peers, self.vms, self.dispatch),
            *(None, host.events, None),  # type: ignore[arg-type]
            turns=chain.turns,
        )
        holds = HeldMeans(host.book, host.store, chain.folder, host.identity.key)
        history = History(chain.folder / "history.sqlite")
        state = state_in(chain.folder)
        self.sent = Replications(means, NoVms(), state, history, holds, chain.extensions)  # type: ignore[arg-type]
        self.asker = TurnAsker(host.identity, "south")
        peers, pin = host.peers, host.listener.pin
        self.extensions = Extensions(
            ExtendingMeans(
                host.identity, peers, holds, chain.extensions, chain.turns, self.asker, self.sent, pin
            )
        )
        host.listener.arrived = self.sent.arrived
        host.listener.extended = self.extensions.peers_of
        self.west_turns = TurnBook(chain.west.catalog, chain.west.events)
        takeovers, ready = None, None
        chain.west.listener.desk = TurnDesk(
            self.west_turns,
            chain.west.book,
            chain.west.store,
            takeovers,
            ready,
            lambda _: None,  # type: ignore[arg-type]
        )

    async def extend(self) -> None:
        await self.extensions.extend("web", ReplicaExtend(peer="west", rpo_seconds=1.0))
        await self.until_held()

    async def until_held(self) -> None:
        await self.until(lambda: self.chain.held() == self.chain.last)

    async def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _SECONDS
        while not holds():
            assert time.monotonic() < deadline, await self.sent.list()
            await asyncio.sleep(0.02)

    async def looked(self) -> None:
        """As `keep` does once, at once."""
        self.extensions._asked_at.clear()
        for each in await self.chain.extensions.all():
            await self.extensions.look(each)

    async def west_turn(self, to: Turn, term: int) -> None:
        held = await self.chain.west.book.of_vm(self.chain.opened.vm)
        assert held is not None

        def decide(_: Session, before: TurnRecord | None) -> TurnRecord:
            return moved(before or first(held), to, term=term)

        await self.west_turns.decide(self.chain.opened.vm, decide)
        if to is not Turn.REPLICA:
            await self.chain.west.listener.halt(self.chain.opened.vm)


@pytest.fixture
async def middle(tmp_path: Path) -> AsyncIterator[Middle]:
    chain = Chain(tmp_path)
    await chain.pair()
    made = Middle(chain)
    yield made
    await made.sent.close()
    made.asker.close()
    chain.link.close()
    for host in (chain.south, chain.west):
        host.listener.close()


async def test_a_replica_that_is_sent_on_is_changed_and_shown_as_a_vm_is(middle: Middle) -> None:
    chain = middle.chain
    await chain.cycle(full=True)
    await middle.extend()
    (shown,) = await middle.sent.list()
    assert (shown.vm, shown.peer, shown.sent_on) == ("web", "west", True)
    assert [each.vm for each in await middle.sent.list("WEB")] == ["web"]
    with pytest.raises(AlreadyReplicated):
        await middle.extensions.extend("web", ReplicaExtend(peer="west"))
    assert (await middle.sent.pause("web", paused=True)).state == "suspended"
    await chain.cycle()
    await asyncio.sleep(0.3)  # what is measured is that nothing is sent meanwhile
    assert chain.held() < chain.last
    changed = await middle.sent.set("web", ReplicaChange(rpo_seconds=2.0, limit="100Mbit/s"))
    assert (changed.target_seconds, changed.limit) == (2.0, "100Mbit/s")
    with pytest.raises(ExtensionNotConsistent):
        await middle.sent.set("web", ReplicaChange(consistent_seconds=60.0))
    await middle.sent.pause("web", "west", paused=False)
    await middle.until_held()
    assert (await middle.sent.explain("web"))[0].peer == "west"
    assert (await middle.sent.history("web", timedelta(hours=1))).vm == "web"
    with pytest.raises(PeerInUse):
        peering = Peering(
            *(chain.south.identity, chain.south.peers, chain.south.listener, chain.south.book, middle.vms),
            extensions=chain.extensions,
        )
        await peering.remove("west")
    with pytest.raises(ReplicaInUse):
        await chain.south.listener.remove("web")
    await middle.sent.disable("web", "west")
    assert chain.south.store.replica("web").pins() == {}
    assert await middle.sent.list() == ()
    with pytest.raises(VmNotFound):
        await middle.sent.show("web")


async def test_what_cannot_be_sent_on_is_refused_beforehand(middle: Middle) -> None:
    chain = middle.chain
    with pytest.raises(NoSuchReplica):
        await middle.extensions.extend("db", ReplicaExtend(peer="west"))
    with pytest.raises(NoPoints):
        await middle.extensions.extend("web", ReplicaExtend(peer="west"))
    chain.spec = chain.spec.model_copy(update={"require_attested_host": True})
    await chain.cycle(full=True)
    with pytest.raises(NeedsAttestedHost):
        await middle.extensions.extend("web", ReplicaExtend(peer="west"))
    with pytest.raises(PeerCannotReceive):
        await middle.extensions.extend("web", ReplicaExtend(peer="north"))
    with pytest.raises(NoSuchDisk):
        await middle.extensions.extend("web", ReplicaExtend(peer="west", exclude=("disk7",)))
    # North is known to take replicas, too: the VM is its own.
    north = await chain.south.peers.of(chain.hosts.north.identity.fingerprint, PeerRole.SOURCE)
    assert north is not None
    reached = await chain.south.peers.reached(north, "127.0.0.1", 9)
    back = await chain.south.peers.turned(reached, PeerRole.RECEIVER)
    with pytest.raises(ReplicaLoop):
        await middle.extensions.extend("web", ReplicaExtend(peer=back.name))


async def test_a_vm_that_runs_further_on_does_not_fail_over_here_and_comes_back_from_there(
    middle: Middle,
) -> None:
    chain = middle.chain
    await chain.cycle(full=True)
    await middle.extend()
    held = await chain.south.book.of_vm(chain.opened.vm)
    assert held is not None
    await middle.extensions.allow(held)
    await middle.west_turn(Turn.FAILED_OVER, 2)
    with pytest.raises(ReplicaFailedOver, match="west"):
        await middle.extensions.allow(held)
    await chain.cycle()
    await middle.until(lambda: bool(middle.sent.trouble(_id(middle))))
    await middle.looked()
    (shown,) = await middle.sent.list()
    assert (shown.state, shown.moved_to) == ("failed-over", "west")
    # It is taken back over there: the chain goes on, and nothing was copied anew.
    await middle.west_turn(Turn.REPLICA, 2)
    await middle.looked()
    await middle.until_held()
    assert (await middle.sent.list())[0].full_copies == 0

    # It is final: south is west's from now on, and north's no more.
    (extension,) = await chain.extensions.all()
    await has(chain.west, chain.opened)
    await middle.west_turn(Turn.PRIMARY, 3)
    await chain.cycle()
    await middle.until(lambda: bool(middle.sent.trouble(_id(middle))))
    await middle.looked()
    assert await chain.extensions.all() == ()
    held = await chain.south.book.of_vm(chain.opened.vm)
    assert held is not None and (held.heir, held.heir_term) == (chain.west.identity.fingerprint, 3)
    assert await chain.south.peers.of(held.heir, PeerRole.SOURCE) is not None
    with pytest.raises(ReplicaFailedOver):
        await middle.extensions.allow(held)
    chain.link.close()
    with pytest.raises(PeerRefused) as refused:
        await chain.connected()
    assert refused.value.value == "replica-moved"
    assert chain.south.store.replica("web").pins() == {}
    # Also where a daemon was killed before it had ended the extension, and west sends already.
    west = await chain.south.peers.of(held.heir, PeerRole.SOURCE)
    assert west is not None
    await chain.south.book.claim(west, chain.opened.model_copy(update={"term": 3}))
    await middle.sent.extend(extension)
    await middle.until(lambda: bool(middle.sent.trouble(_id(middle))))
    await middle.looked()
    assert await chain.extensions.all() == ()


def _id(middle: Middle) -> str:
    return next(iter(middle.sent._sent))


async def test_an_extension_becomes_the_replication_of_a_vm_that_is_this_hosts_now(middle: Middle) -> None:
    chain = middle.chain
    await chain.cycle(full=True)
    await middle.extend()
    (extension,) = await chain.extensions.all()
    await has(chain.south, chain.opened)
    assert await chain.extensions.become(extension)
    (made,) = await middle.vms.all()
    assert (made.id, made.settings, made.initial) == (extension.id, extension.settings, True)
    with pytest.raises(NotReplicated):
        await chain.extensions.become(extension)
    # Where the VM is replicated there already, that stays as it is.
    await chain.extensions.add(extension.model_copy(update={"id": chain.opened.replication}))
    (again,) = await chain.extensions.all()
    assert not await chain.extensions.become(again)
    assert await chain.extensions.all() == ()
    assert await middle.vms.all() == (made,)


async def test_while_a_failover_here_is_not_final_nothing_is_sent_on_and_that_is_said(
    middle: Middle,
) -> None:
    chain = middle.chain
    await chain.cycle(full=True)
    await middle.extend()
    held = await chain.south.book.of_vm(chain.opened.vm)
    assert held is not None
    before = first(held)
    await chain.turns.decide(held.vm, lambda *_: moved(before, Turn.FAILED_OVER, term=2))
    middle.sent.wake(held.vm)
    await middle.until(lambda: middle.sent._sent[_id(middle)].sender.undecided)
    (shown,) = await middle.sent.list()
    assert (shown.state, shown.health) == ("failover-waiting-completion", "warning")
    assert "not final" in shown.findings[0]
    await middle.looked()
    assert len(await chain.extensions.all()) == 1
    # It is taken back: the chain goes on.
    await chain.turns.turn(held.vm, Turn.REPLICA, {Turn.FAILED_OVER})
    middle.sent.wake(held.vm)
    chain.link.close()
    chain.link, _ = await chain.connected()
    await chain.cycle()
    await middle.until_held()


async def test_what_a_killed_daemon_kept_for_an_extension_that_is_over_is_let_go(middle: Middle) -> None:
    chain = middle.chain
    await chain.cycle(full=True)
    await middle.extend()
    replica = chain.south.store.replica("web")
    kept = replica.pins()
    replica.pin("left-over", [1])
    task = asyncio.create_task(middle.extensions.keep())
    await middle.until(lambda: replica.pins() == kept)
    task.cancel()
