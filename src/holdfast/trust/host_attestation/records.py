"""The records of hosts that attest to this one, in the catalog; and the keys that guard for them.

keys/guards/<VM id>.key     32 bytes, hexadecimal (0600); opens nothing without the VM's own folder
"""

import asyncio
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.catalog.tables import AttestedHostRow
from holdfast.host.files import sync_folder, write_atomic
from holdfast.spec.errors import Failed, InvalidInput, NotFound
from holdfast.spec.host_attestation import EnrolledHost
from holdfast.spec.paging import BadSort, Page, PageQuery

_SORTS = ("name", "enrolled")
_PURPOSE = re.compile(r"vm ([0-9a-f-]{36})")
_BYTES = 32


class GuardKeyMissing(NotFound):
    id = "guard-key-missing"


class GuardKeyDamaged(Failed):
    id = "guard-key-damaged"


class HostBook:
    """Owner of the records of attested hosts. A verdict that changes is an event."""

    def __init__(self, catalog: Catalog, events: EventLog) -> None:
        self._catalog = catalog
        self._events = events

    async def get(self, host_id: str) -> EnrolledHost | None:
        def load(session: Session) -> EnrolledHost | None:
            row = session.get(AttestedHostRow, host_id)
            return EnrolledHost.model_validate(row.record) if row else None

        return await self._catalog.read(load)

    async def named(self, name: str) -> EnrolledHost | None:
        def load(session: Session) -> EnrolledHost | None:
            row = session.scalar(select(AttestedHostRow).where(AttestedHostRow.name == name))
            return EnrolledHost.model_validate(row.record) if row else None

        return await self._catalog.read(load)

    async def put(self, host: EnrolledHost) -> None:
        row = AttestedHostRow(
            id=host.id,
            name=host.name,
            enrolled=host.enrolled.replace(tzinfo=None),
            record=host.model_dump(mode="json"),
        )
        last = host.last

        def store(session: Session) -> None:
            known = session.get(AttestedHostRow, host.id)
            earlier = EnrolledHost.model_validate(known.record).last if known else None
            session.merge(row)
            if last is not None and (earlier is None or earlier.verdict != last.verdict):
                failures = [each.id for each in last.findings if each.severity == "failure"]
                before = earlier.verdict if earlier else None
                data = {"before": before, "verdict": last.verdict, "failures": failures}
                self._events.append(session, "trust.host-verdict-changed", host.name, data)

        await self._catalog.write(store)

    async def remove(self, host_id: str) -> None:
        await self._catalog.write(
            lambda session: session.execute(delete(AttestedHostRow).where(AttestedHostRow.id == host_id))
        )

    async def page(self, query: PageQuery) -> Page[EnrolledHost]:
        """Raises BadSort."""
        key = query.sort.lstrip("-")
        if key not in _SORTS:
            raise BadSort(
                f"hosts cannot be sorted by {key!r}", value=key, cure=f"Use one of {', '.join(_SORTS)}."
            )

        def load(session: Session) -> Page[EnrolledHost]:
            statement = select(AttestedHostRow)
            if query.filter:
                statement = statement.where(AttestedHostRow.name.icontains(query.filter, autoescape=True))
            total = session.scalar(select(func.count()).select_from(statement.subquery())) or 0
            column = getattr(AttestedHostRow, key)
            ordered = statement.order_by(column.desc() if query.sort.startswith("-") else column)
            rows: Sequence[AttestedHostRow] = session.scalars(
                ordered.offset(query.offset).limit(query.limit)
            ).all()
            items = tuple(EnrolledHost.model_validate(row.record) for row in rows)
            return Page(items=items, total=total, offset=query.offset, limit=query.limit)

        return await self._catalog.read(load)


class GuardKeys:
    """Owner of the keys that are released to trusted hosts only."""

    def __init__(self, keys: Path) -> None:
        self._folder = keys / "guards"
        self._one = asyncio.Lock()

    async def get(self, purpose: str, make: bool) -> bytes:
        """The 32 bytes kept for `vm ID`.

        Raises:
            GuardKeyMissing: there are none, and none are to be made.
            GuardKeyDamaged: the file holds none.
        """
        named = _PURPOSE.fullmatch(purpose)
        if not named:
            raise InvalidInput(f"{purpose[:64]!r} is no purpose of a key", value=purpose[:64])
        async with self._one:
            return await asyncio.to_thread(self._get, self._folder / f"{named[1]}.key", purpose, make)

    def _get(self, path: Path, purpose: str, make: bool) -> bytes:
        try:
            with path.open("rb") as file:
                text = file.read(2 * _BYTES + 1)
        except FileNotFoundError as error:
            if not make:
                raise GuardKeyMissing(
                    f"this verifier keeps no key for {purpose}",
                    value=purpose,
                    cure="Use the verifier that the VM was bound to, or the VM's recovery key.",
                ) from error
            key = secrets.token_bytes(_BYTES)
            if not self._folder.is_dir():
                self._folder.mkdir(mode=0o700, exist_ok=True)
                sync_folder(self._folder.parent)
            write_atomic(path, key.hex().encode(), 0o600)
            return key
        if not re.fullmatch(rb"[0-9a-f]{64}", text):
            raise GuardKeyDamaged(
                f"{path} holds no key", value=str(path), cure="Restore it from a backup of the verifier."
            )
        return bytes.fromhex(text.decode("ascii"))
