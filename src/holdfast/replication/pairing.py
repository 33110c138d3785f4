"""How two hosts come to know each other: by a token that is carried from one to the other and is of use once.

    receiver   accept ──▶ token: a secret and the receiver's fingerprint ── carried by a person ──▶ source
    source     connects, and sees that the receiver's certificate is the one of the token
               PAIR: the secret, the source's certificate and name ──▶ receiver: the secret is spent
               ◀── PAIRED                             both pin the other's certificate from then on

The secret proves to the receiver that a person wants this; the fingerprint proves to the source that it talks
to that receiver. Of the secret only the SHA-256 is stored: 256 random bits cannot be guessed, and the look-up
goes by the hash, so no comparison leaks how near a guess was. Owner of the records of peers: `PeerBook`.
"""

import hashlib
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from holdfast.catalog.clock import aware, now
from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.catalog.tables import ReplicaPeerRow, ReplicaTokenRow
from holdfast.replication.identity import Identity, fingerprint_of, normal
from holdfast.replication.link import Address, LinkLost, TlsLink, connect, greet, hear, refuse, tell
from holdfast.replication.wire import Pair, Paired
from holdfast.spec.errors import Conflict, HoldfastError, InvalidInput, NotFound, Unauthenticated
from holdfast.spec.names import MAX_NAME
from holdfast.spec.replica import PeerRole, ReplicaLimits, ReplicaPeer

TOKEN_LIFE = timedelta(hours=1)
"""How long a token is of use."""
_TOKEN = re.compile(r"hfr_([A-Za-z0-9_-]{43})\.([0-9a-f]{64})")
_MOST_TOKENS = 100


class BadPairingToken(InvalidInput):
    id = "replica-bad-token"


class PairingTokenUnknown(Unauthenticated):
    """It was never made, was used already, or is too old."""

    id = "replica-token-unknown"


class TooManyPairingTokens(Conflict):
    id = "replica-too-many-tokens"


class PeerNameTaken(Conflict):
    id = "replica-peer-name-taken"


class PeerNotFound(NotFound):
    id = "replica-peer-not-found"


@dataclass(frozen=True, repr=False)
class PairingToken:
    """What `accept` made, as the source reads it. Never in a log: its secret admits a host."""

    secret: str
    fingerprint: str

    @classmethod
    def parse(cls, text: str) -> "PairingToken":
        """Raises BadPairingToken, which does not repeat the text."""
        match = _TOKEN.fullmatch(text.strip())
        if match is None:
            raise BadPairingToken(
                "that is not a token for pairing", cure="Copy all of what `holdfast replica accept` printed."
            )
        return cls(match[1], f"sha256:{match[2]}")

    def __str__(self) -> str:
        return f"hfr_{self.secret}.{self.fingerprint.removeprefix('sha256:')}"


class PeerBook:
    """The records of peers, and the tokens by which they come."""

    def __init__(self, catalog: Catalog, events: EventLog) -> None:
        self._catalog = catalog
        self._events = events

    async def accept(
        self, identity: Identity, valid: timedelta = TOKEN_LIFE, limits: ReplicaLimits | None = None
    ) -> PairingToken:
        """A token by which one host may pair with this one; it cannot be had again.

        `limits`: of the host that pairs by it; None: the usual ones.

        Raises TooManyPairingTokens.
        """
        token = PairingToken(secrets.token_urlsafe(32), identity.fingerprint)

        def store(session: Session) -> None:
            session.execute(delete(ReplicaTokenRow).where(ReplicaTokenRow.expires <= now()))
            if len(session.scalars(select(ReplicaTokenRow)).all()) >= _MOST_TOKENS:
                raise TooManyPairingTokens(
                    f"{_MOST_TOKENS} tokens for pairing are unused already",
                    value=_MOST_TOKENS,
                    cure="Use one of them, or wait until they expire.",
                )
            allowed = (limits or ReplicaLimits()).model_dump(mode="json")
            session.add(ReplicaTokenRow(digest=_digest(token.secret), expires=now() + valid, limits=allowed))

        await self._catalog.write(store)
        return token

    async def admit(self, asked: Pair) -> ReplicaPeer:
        """Spend a token, and pin the certificate of the source that had it. One that pairs anew is renamed.

        Raises:
            PairingTokenUnknown, BadPeerCertificate
            PeerNameTaken: another peer has the name; the token is not spent.
        """
        peer = ReplicaPeer(
            name=asked.name,
            role=PeerRole.SOURCE,
            certificate=normal(asked.certificate),
            fingerprint=fingerprint_of(asked.certificate),
            paired=aware(now()),
        )

        def store(session: Session) -> None:
            row = session.get(ReplicaTokenRow, _digest(asked.secret))
            if row is None or row.expires <= now():
                raise PairingTokenUnknown(
                    "the token for pairing was used already, is too old, or is of another host",
                    cure="Make a new one with `holdfast replica accept` on the receiving host.",
                )
            limits = ReplicaLimits.model_validate(row.limits)
            session.delete(row)
            self._put(session, peer.model_copy(update={"limits": limits}))

        await self._catalog.write(store)
        return await self.get(peer.name)

    async def add(self, peer: ReplicaPeer) -> None:
        """Record a receiver that was paired with. Raises PeerNameTaken."""
        await self._catalog.write(lambda session: self._put(session, peer))

    async def require_free(self, name: str, role: PeerRole, fingerprint: str) -> None:
        """Before a token is spent: the name is free, or that host's own. Raises PeerNameTaken."""

        def look(session: Session) -> None:
            named = session.get(ReplicaPeerRow, name)
            if named is not None and (named.role, named.fingerprint) != (role, fingerprint):
                raise _taken(name)

        await self._catalog.read(look)

    async def get(self, name: str) -> ReplicaPeer:
        """Raises PeerNotFound."""

        def load(session: Session) -> ReplicaPeer:
            return ReplicaPeer.model_validate(_row(session, name).record)

        return await self._catalog.read(load)

    async def peers(self) -> tuple[ReplicaPeer, ...]:
        """All of them, by name."""

        def load(session: Session) -> tuple[ReplicaPeer, ...]:
            rows = session.scalars(select(ReplicaPeerRow).order_by(ReplicaPeerRow.name))
            return tuple(ReplicaPeer.model_validate(row.record) for row in rows)

        return await self._catalog.read(load)

    async def reached(self, peer: ReplicaPeer, host: str, port: int) -> ReplicaPeer:
        """A source receives at `host` and `port`; 0: it does not. Raises PeerNotFound."""
        found = {"host": host if port else None, "port": port or None}

        def store(session: Session) -> ReplicaPeer:
            row = _row(session, peer.name)
            row.record = {**row.record, **found}
            return ReplicaPeer.model_validate(row.record)

        return await self._catalog.write(store)

    async def of(self, fingerprint: str, role: PeerRole) -> ReplicaPeer | None:
        """A host in one role, if it was paired in that."""
        known = (each for each in await self.peers() if each.fingerprint == fingerprint)
        return next((each for each in known if each.role is role), None)

    async def turned(self, peer: ReplicaPeer, role: PeerRole) -> ReplicaPeer:
        """A host that was paired, in the other role too: what was sent to it comes back, or the other way."""
        known = await self.of(peer.fingerprint, role)
        if known is not None and (role is PeerRole.SOURCE or known.port == peer.port):
            return known
        taken = {each.name.lower() for each in await self.peers() if known is None or each.name != known.name}
        word = "to" if role is PeerRole.RECEIVER else "from"
        names = (f"{word} {peer.name}"[: MAX_NAME - 4].rstrip(" .") + end for end in ("", " 2", " 3", " 4"))
        name = known.name if known else next(each for each in names if each.lower() not in taken)
        limits = ReplicaLimits(vms=1)  # it sends what it took over; for more it is to be paired
        made = peer.model_copy(update={"name": name, "role": role, "limits": limits, "paired": aware(now())})
        await self.add(made)
        return made

    async def remove(self, name: str) -> None:
        """Forget a peer: it is let in, or sent to, no more. Raises PeerNotFound."""

        def store(session: Session) -> None:
            row = _row(session, name)
            session.delete(row)
            self._events.append(session, "replica.peer-removed", row.name, {"role": row.role})

        await self._catalog.write(store)

    def _put(self, session: Session, peer: ReplicaPeer) -> None:
        same = (ReplicaPeerRow.role == peer.role) & (ReplicaPeerRow.fingerprint == peer.fingerprint)
        known = session.scalar(select(ReplicaPeerRow).where(same))
        named = session.get(ReplicaPeerRow, peer.name)
        if named is not None and named is not known:
            raise _taken(peer.name)
        if known is not None:
            session.delete(known)
            session.flush()
        row = ReplicaPeerRow(
            name=peer.name,
            role=peer.role,
            fingerprint=peer.fingerprint,
            paired=peer.paired.replace(tzinfo=None),
            record=peer.model_dump(mode="json"),
        )
        session.add(row)
        self._events.append(
            session, "replica.paired", peer.name, {"role": peer.role, "fingerprint": peer.fingerprint}
        )


def pair_with(
    address: Address, token: PairingToken, identity: Identity, *, ours: str, name: str
) -> ReplicaPeer:
    """Pair with a receiver; blocks.

    Args:
        ours: what this host calls itself.
        name: what the receiver is called here.

    Raises:
        NotThatPeer: another host than the one of the token is there; it was told nothing.
        PeerRefused: the token is of no use, or the name is taken over there.
        LinkLost
    """
    link = connect(address, None, token.fingerprint)
    try:
        greet(link, ours)
        tell(link, Pair(name=ours, secret=token.secret, certificate=identity.certificate.read_text()))
        hear(link, Paired)
        certificate = link.certificate
    finally:
        link.close()
    return ReplicaPeer(
        name=name,
        role=PeerRole.RECEIVER,
        certificate=certificate,
        fingerprint=token.fingerprint,
        host=address.host,
        port=address.port,
        paired=aware(now()),
    )


def serve_pairing(link: TlsLink, ours: str, admit: Callable[[Pair], object]) -> None:
    """Serve a source that showed no certificate, which may only pair; blocks, and closes the link.

    Raises:
        LinkLost: it went.
        HoldfastError: it was refused for this, and told so.
    """
    try:
        greet(link, ours)
        admit(hear(link, Pair))
        tell(link, Paired(name=ours))
    except LinkLost:
        link.close()
        raise
    except HoldfastError as error:
        refuse(link, error)
        raise
    link.close()


def _taken(name: str) -> PeerNameTaken:
    return PeerNameTaken(
        f"there is already a peer named {name!r}",
        value=name,
        cure="Pair under another name, or remove that peer first.",
    )


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def _row(session: Session, name: str) -> ReplicaPeerRow:
    row = session.get(ReplicaPeerRow, name)
    if row is None:
        raise PeerNotFound(
            f"there is no peer {name[:64]!r}",
            value=name[:64],
            cure="List them with `holdfast replica peer list`.",
        )
    return row
