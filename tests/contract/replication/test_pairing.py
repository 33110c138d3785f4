"""Two hosts are paired over real TLS: by one token, once, and pinned from then on."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.replication import identity
from holdfast.replication.identity import BadPeerCertificate
from holdfast.replication.link import Address, Door, NotThatPeer, TlsLink, connect, greet
from holdfast.replication.pairing import (
    BadPairingToken,
    PairingToken,
    PairingTokenUnknown,
    PeerBook,
    PeerNameTaken,
    PeerNotFound,
    TooManyPairingTokens,
    pair_with,
    serve_pairing,
)
from holdfast.replication.wire import Pair, PeerRefused
from holdfast.spec.replica import PeerRole, ReplicaPeer


class Host:
    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.catalog = Catalog.open(folder / "catalog.sqlite")
        self.events = EventLog(self.catalog)
        self.book = PeerBook(self.catalog, self.events)
        self.identity = identity.load_or_make(folder)
        self.pinned: tuple[str, ...] = ()
        self.door = Door(Address(host="127.0.0.1", port=0), self.identity, lambda: self.pinned, silence=5.0)
        self.address = Address(host="127.0.0.1", port=self.door.port)

    async def serve(self, work: Callable[[TlsLink], object]) -> object:
        def served() -> object:
            return work(self.door.admit(self.door.accept()))

        return await asyncio.to_thread(served)

    async def serve_pairing(self) -> None:
        loop = asyncio.get_running_loop()

        def admit(asked: Pair) -> ReplicaPeer:
            return asyncio.run_coroutine_threadsafe(self.book.admit(asked), loop).result(10)

        await self.serve(lambda link: serve_pairing(link, "south", admit))

    async def pair(self, other: "Host", token: PairingToken, name: str = "north") -> ReplicaPeer:
        served = asyncio.create_task(other.serve_pairing())
        try:
            return await asyncio.to_thread(
                pair_with, other.address, token, self.identity, ours=name, name="south"
            )
        finally:
            await asyncio.wait({served})
            served.exception()

    def close(self) -> None:
        self.door.close()
        self.catalog.close()


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[tuple[Host, Host]]:
    made = Host(tmp_path / "north"), Host(tmp_path / "south")
    yield made
    for host in made:
        host.close()


async def test_paired_hosts_have_pinned_each_other(hosts: tuple[Host, Host]) -> None:
    north, south = hosts
    token = PairingToken.parse(f" {await south.book.accept(south.identity)}\n")
    peer = await north.pair(south, token)
    await north.book.add(peer)
    (source,) = await south.book.peers()
    assert (source.name, source.role, source.fingerprint) == (
        "north",
        PeerRole.SOURCE,
        north.identity.fingerprint,
    )
    assert (peer.role, peer.host, peer.port) == (PeerRole.RECEIVER, "127.0.0.1", south.door.port)
    assert peer.certificate == south.identity.certificate.read_text()

    south.pinned = (source.certificate,)
    served = asyncio.create_task(south.serve(lambda link: (greet(link, "south"), link.peer)))
    link = await asyncio.to_thread(connect, south.address, north.identity, peer.fingerprint)
    await asyncio.to_thread(greet, link, "north")
    assert await served == (1, north.identity.fingerprint)
    link.close()


async def test_a_token_is_of_use_once(hosts: tuple[Host, Host]) -> None:
    north, south = hosts
    token = await south.book.accept(south.identity)
    await north.pair(south, token)
    with pytest.raises(PeerRefused) as caught:
        await north.pair(south, token)
    assert caught.value.value == "replica-token-unknown"


async def test_of_two_at_once_one_gets_in(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    _, south = hosts
    token = await south.book.accept(south.identity)
    asked = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pem = identity.load_or_make(tmp_path / name).certificate.read_text()
        asked.append(Pair(name=name, secret=token.secret, certificate=pem))
    done = await asyncio.gather(*(south.book.admit(each) for each in asked), return_exceptions=True)
    assert sorted(type(each).__name__ for each in done) == ["PairingTokenUnknown", "ReplicaPeer"]
    assert len(await south.book.peers()) == 1


async def test_a_token_that_is_too_old_or_was_never_made_is_of_no_use(hosts: tuple[Host, Host]) -> None:
    north, south = hosts
    old = await south.book.accept(south.identity, timedelta(seconds=-1))
    for token in (old, PairingToken("x" * 43, south.identity.fingerprint)):
        with pytest.raises(PeerRefused) as caught:
            await north.pair(south, token)
        assert caught.value.value == "replica-token-unknown"
    assert await south.book.peers() == ()


async def test_another_host_than_the_tokens_learns_nothing(hosts: tuple[Host, Host]) -> None:
    north, south = hosts
    token = await south.book.accept(north.identity)  # a host in the middle would have another certificate
    with pytest.raises(NotThatPeer):
        await north.pair(south, token)
    pem = north.identity.certificate.read_text()
    await south.book.admit(Pair(name="north", secret=token.secret, certificate=pem))  # it was not spent


async def test_a_host_that_pairs_anew_is_renamed_and_takes_no_other_name(hosts: tuple[Host, Host]) -> None:
    north, south = hosts
    await north.pair(south, await south.book.accept(south.identity))
    await north.pair(south, await south.book.accept(south.identity), name="pole")
    assert [peer.name for peer in await south.book.peers()] == ["pole"]
    token = await south.book.accept(south.identity)
    other = Pair(name="Pole", secret=token.secret, certificate=south.identity.certificate.read_text())
    with pytest.raises(PeerNameTaken):
        await south.book.admit(other)
    await south.book.admit(other.model_copy(update={"name": "west"}))  # the token is still of use
    with pytest.raises(PairingTokenUnknown):
        await south.book.admit(other.model_copy(update={"name": "west"}))


async def test_removed_peers_are_gone_and_told_of(hosts: tuple[Host, Host]) -> None:
    north, south = hosts
    await north.pair(south, await south.book.accept(south.identity))
    assert (await south.book.get("NORTH")).name == "north"
    await south.book.remove("north")
    for gone in (south.book.get("north"), south.book.remove("north")):
        with pytest.raises(PeerNotFound):
            await gone


async def test_certificates_that_are_none_are_refused(hosts: tuple[Host, Host]) -> None:
    _, south = hosts
    token = await south.book.accept(south.identity)
    with pytest.raises(BadPeerCertificate):
        await south.book.admit(Pair(name="a", secret=token.secret, certificate="é"))


async def test_no_more_tokens_than_anybody_needs(hosts: tuple[Host, Host]) -> None:
    _, south = hosts
    await south.book.accept(south.identity, timedelta(seconds=-1))
    for _ in range(100):
        await south.book.accept(south.identity)
    with pytest.raises(TooManyPairingTokens):
        await south.book.accept(south.identity)


async def test_the_secret_is_stored_and_shown_nowhere(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    _, south = hosts
    token = await south.book.accept(south.identity)
    assert token.secret not in repr(token)
    south.catalog.close()
    for file in (tmp_path / "south").iterdir():
        assert token.secret.encode() not in file.read_bytes()


@pytest.mark.parametrize(
    "text", ["", "hfr_", "hf_abc", "hfr_" + "a" * 43, "hfr_" + "a" * 43 + "." + "g" * 64]
)
def test_what_is_no_token_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(BadPairingToken) as caught:
        PairingToken.parse(text)
    assert not text or not re.search("aaaa", str(caught.value.as_dict()))
