"""The certificates of all VMs as the API asks for them: list, plan, and work as operations.

Every change goes the same way: it is recorded in the VM's folder, then made at once where the VM does
not run, and at its next start where it does. A crash in between leaves the record, and the operation
that goes on afterwards, or the next start, makes it.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy.orm import Session

from holdfast.operations.engine import Operations
from holdfast.operations.procedure import Job, Procedure
from holdfast.spec.certificates import CertsEnrol, CertsUpdate, KeyPlan, KeyPlans, VmCertificates
from holdfast.spec.errors import HoldfastError, InvalidInput
from holdfast.spec.operation import Operation
from holdfast.spec.paging import Page, PageQuery
from holdfast.spec.vm import VmState
from holdfast.trust.key_changes import KeyChange, certificates_as
from holdfast.trust.key_stores import KeyStores, NothingToRollBack, rollback
from holdfast.trust.signature_lists import HeldCertificate, parse_lists, read_certificate, update_payload
from holdfast.vm import records
from holdfast.vm.admission import Refused, Verb, admit
from holdfast.vm.certificates import PCR7, Standpoint, plan, view, worked_out
from holdfast.vm.lifecycle import Find
from holdfast.vm.owner import VmOwner
from holdfast.vm.pending_keys import look_at, make_pending
from holdfast.vm.records import VmNotFound, VmRecord
from holdfast.vm.rooms import Rooms

log = structlog.get_logger(__name__)

_DEAD = (VmState.OFF, VmState.FAILED)
_OWNER = uuid.UUID("7f2c6b1e-5b0c-4f52-9b7c-7a1d1e6b8c55")
"""SignatureOwner of certificates that a user of Holdfast enrols: a random GUID that is always this one."""


class NotACertificate(InvalidInput):
    id = "not-a-certificate"


class NotARevocationList(InvalidInput):
    id = "not-a-revocation-list"


class NoVmsNamed(InvalidInput):
    id = "no-vms-named"


class CertificateWork:
    """Fits `api.services.Certificates`."""

    def __init__(self, rooms: Rooms, operations: Operations) -> None:
        self._rooms = rooms
        self._operations = operations

    async def list(self, query: PageQuery) -> Page[VmCertificates]:
        page = await self._rooms.records.page(query, None)
        found = []
        for each in page.items:
            with contextlib.suppress(VmNotFound):  # deleted meanwhile
                found.append(await self.show(each.id))
        return Page(items=tuple(found), total=page.total, offset=page.offset, limit=page.limit)

    async def show(self, name: str) -> VmCertificates:
        authorities = await self._rooms.keys.authorities()
        at = await self._look(await self._rooms.records.get(name))
        return await asyncio.to_thread(view, at, authorities)

    async def plan(self, request: CertsUpdate) -> KeyPlans:
        change = await asyncio.to_thread(update_of, request)
        return KeyPlans(items=tuple([made for _, made in await self._plans(request, change)]))

    async def update(self, request: CertsUpdate, actor: str) -> Operation:
        """Named VMs are refused together where one must be; of all VMs, those are left alone."""
        change = await asyncio.to_thread(update_of, request)
        chosen, left = [], []
        for record, made in await self._plans(request, change):
            if made.when != "never" and not (request.all and record.operation):
                chosen.append(record)
                continue
            if request.vms:
                await self._require(record, change)
            reason = made.reason or "another operation on it is under way"
            left.append({"vm": record.name, "outcome": "left-alone", "reason": reason})
        return await self._submit("certs.update", chosen, change, actor, left)

    async def rollback(self, name: str, actor: str) -> Operation:
        """Drop a change that is not made yet; else bring back the keys from before the last one."""
        record = await self._rooms.records.get(name)
        folder = self._rooms.state.vm(record.name)
        if await asyncio.to_thread(KeyStores.is_pending, folder):
            return await self._submit("certs.rollback", [record], None, actor)
        previous = await asyncio.to_thread(KeyStores.previous, folder)
        if previous is None:
            raise NothingToRollBack(
                f"no earlier keys of {record.name!r} are kept",
                value=record.name,
                cure="Keys are kept when `holdfast certs update` or `holdfast certs enrol` changes them.",
            )
        return await self._submit("certs.rollback", [record], rollback(previous), actor)

    async def enrol(self, name: str, request: CertsEnrol, actor: str) -> Operation:
        record = await self._rooms.records.get(name)
        change = await asyncio.to_thread(enrolment_of, request)
        await self._require(record, change)
        return await self._submit("certs.enrol", [record], change, actor)

    async def _plans(self, request: CertsUpdate, change: KeyChange) -> Sequence[tuple[VmRecord, KeyPlan]]:
        if bool(request.vms) is request.all:
            raise NoVmsNamed(
                "neither VMs nor all of them were asked for" if not request.all else "both VMs and all",
                cure="Name VMs, or say --all.",
            )
        authorities = await self._rooms.keys.authorities()
        if request.all:
            found = await self._rooms.records.all()
        else:
            found = [await self._rooms.records.get(name) for name in dict.fromkeys(request.vms)]
        made = []
        for record in found:
            at = await self._look(record)
            made.append((record, await asyncio.to_thread(plan, at, change, authorities)))
        return made

    async def _look(self, record: VmRecord) -> Standpoint:
        return await look_at(self._rooms, record)

    async def _require(self, record: VmRecord, change: KeyChange) -> None:
        """Raises the refusal of a change, where there is one."""
        at = await self._look(record)
        authorities = await self._rooms.keys.authorities()
        await asyncio.to_thread(worked_out, at, (*at.pending, change), authorities)

    async def _submit(
        self,
        kind: str,
        chosen: Sequence[VmRecord],
        change: KeyChange | None,
        actor: str,
        left: Sequence[dict[str, str]] = (),
    ) -> Operation:
        names = [each.name for each in chosen] or [each["vm"] for each in left]
        params = {
            "vms": [each.id for each in chosen],
            "names": {each.id: each.name for each in chosen},
            "change": await asyncio.to_thread(change.to_json) if change else None,
            "left": [*left],
        }

        def reserve(session: Session, operation: str) -> None:
            for each in chosen:
                try:
                    row = records.by_id(session, each.id)
                except VmNotFound:
                    if len(chosen) == 1:
                        raise
                    continue  # deleted meanwhile: said of it alone, when its turn comes
                if VmState(row.state) not in _DEAD:
                    continue  # only recorded, which disturbs nothing that is under way
                verdict = admit(row.name, VmState(row.state), row.operation, Verb.CERTIFICATES)
                if isinstance(verdict, Refused):
                    raise verdict.error
                row.operation = operation

        subject = names[0] if len(names) == 1 else f"{len(chosen)} VMs"
        return await self._operations.submit(kind, subject, params, actor, reserve)


def update_of(request: CertsUpdate) -> KeyChange:
    """Raises NotARevocationList."""
    added = {}
    if request.dbx is not None:
        try:
            added["dbx"] = parse_lists(update_payload(request.dbx))
            if not added["dbx"]:
                raise ValueError("it is empty")
        except ValueError as error:
            raise NotARevocationList(
                f"the revocation list cannot be read: {error}",
                value=len(request.dbx),
                cure="Give UEFI signature lists, or an update file such as DBXUpdate.bin for x64.",
            ) from error
    return KeyChange(successors=True, added=added, force=request.force)


def enrolment_of(request: CertsEnrol) -> KeyChange:
    """Raises NotACertificate."""
    given = {
        "KEK": certificates_as(_OWNER, [held for each in request.kek for held in certificates_in(each)]),
        "db": certificates_as(_OWNER, [held for each in request.db for held in certificates_in(each)]),
    }
    given = {name: each for name, each in given.items() if each}
    platform = certificates_in(request.pk) if request.pk is not None else ()
    if len(platform) > 1 or not (platform or given):
        raise NotACertificate(
            f"{len(platform)} certificates for the platform key" if platform else "no certificate was given",
            value=len(platform),
            cure="Give one certificate for PK, or some for KEK or db.",
        )
    replaced = {"PK": certificates_as(_OWNER, platform)} if platform else {}
    if request.replace:
        return KeyChange(replaced={**replaced, **given}, force=request.force)
    return KeyChange(added=given, replaced=replaced, force=request.force)


def certificates_in(data: bytes) -> tuple[HeldCertificate, ...]:
    """Of a file in PEM (with one or more) or DER. Raises NotACertificate."""
    try:
        ders = [data]
        if b"-----BEGIN" in data:
            ders = [each.public_bytes(Encoding.DER) for each in x509.load_pem_x509_certificates(data)]
        found = [read_certificate(each) for each in ders]
    except ValueError:
        found = [None]
    usable = tuple(each for each in found if each is not None)
    if len(usable) != len(found) or not usable:
        raise NotACertificate(
            "a file holds no X.509 certificate that can be read",
            value=len(data),
            cure="Give certificates in PEM or DER, of 16 KiB at most each.",
        )
    return usable


class _KeyPhase:
    title = ""
    weight = 1.0

    def __init__(self, rooms: Rooms, find: Find) -> None:
        self._rooms = rooms
        self._find = find

    @staticmethod
    async def _change(job: Job) -> KeyChange | None:
        wire = job.params["change"]
        return await asyncio.to_thread(KeyChange.from_json, wire) if wire is not None else None

    async def _in_turn(self, vm_id: str, action: Callable[[VmOwner], Awaitable[None]]) -> None:
        """In the task of the VM's owner, so that it neither starts nor is renamed meanwhile."""
        owner = await self._find(vm_id)
        await owner.request(lambda: action(owner))

    async def _of_each(self, job: Job, action: Callable[[VmOwner], Awaitable[None]]) -> AsyncIterator[int]:
        """Every VM that nothing is said of yet, as its place among all. What fails for one of many fails
        for it alone: the others go on, and it is not tried again by itself."""
        ids = job.params["vms"]
        outcomes: dict[str, Any] = job.notes.setdefault("outcomes", {})
        for index, vm_id in enumerate(ids):
            if vm_id in outcomes:
                continue
            yield index
            try:
                await self._in_turn(vm_id, action)
            except (HoldfastError, OSError) as error:
                if len(ids) == 1:
                    raise
                name = job.params.get("names", {}).get(vm_id, vm_id)
                reason = error.message if isinstance(error, HoldfastError) else str(error)
                with contextlib.suppress(VmNotFound):
                    name = (await self._rooms.records.get(vm_id)).name
                await self._withdraw(job, vm_id)
                outcomes[vm_id] = {"vm": name, "outcome": "failed", "reason": reason}
            if vm_id in outcomes:
                await job.keep()

    async def _withdraw(self, job: Job, vm_id: str) -> None:
        """Take back what this operation recorded for a VM, which may be gone by now."""

        async def withdraw(owner: VmOwner) -> None:
            folder = self._rooms.state.vm(owner.record.name)
            await asyncio.to_thread(KeyStores.withdraw, folder, job.id)

        if job.params["change"] is None:
            return
        try:
            await self._in_turn(vm_id, withdraw)
        except VmNotFound:
            pass
        except (HoldfastError, OSError) as error:
            if len(job.params["vms"]) == 1:
                raise
            log.warning("a recorded change of keys could not be withdrawn", vm=vm_id, error=str(error))


class RecordChange(_KeyPhase):
    title = "record what is to be changed"
    weight = 0.2

    async def do(self, job: Job) -> None:
        change = await self._change(job)

        async def record(owner: VmOwner) -> None:
            folder = self._rooms.state.vm(owner.record.name)
            if change is None:
                await asyncio.to_thread(KeyStores.forget, folder)
            else:
                await asyncio.to_thread(KeyStores.record, folder, change, job.id)

        async for _ in self._of_each(job, record):
            pass

    async def undo(self, job: Job) -> None:
        """Of VMs that were not reached; those that were changed stay so."""
        for vm_id in job.params["vms"]:
            if vm_id not in job.notes.get("outcomes", {}):
                await self._withdraw(job, vm_id)


class MakeChange(_KeyPhase):
    title = "change the variable stores"
    weight = 2.0

    async def do(self, job: Job) -> None:
        count = len(job.params["vms"])
        async for index in self._of_each(job, lambda owner: self._make(job, owner)):
            job.progress(index / count, f"{index} of {count} VMs")

    async def _make(self, job: Job, owner: VmOwner) -> None:
        record = await self._rooms.records.get(owner.record.id)
        if job.params["change"] is None:
            outcome = "dropped"
        elif record.state in _DEAD and record.operation == job.id:
            await make_pending(self._rooms, record)
            outcome = "changed"
        else:
            outcome = "at-next-start"
            await self._rooms.events.emit("vm.certificates-recorded", record.name, {"id": record.id})
        job.notes["outcomes"][record.id] = {"vm": record.name, "outcome": outcome, "reason": ""}

    async def undo(self, job: Job) -> None:
        """Each store was changed whole or not at all."""


def procedures(rooms: Rooms, find: Find) -> Sequence[Procedure]:
    def result(job: Job) -> dict[str, Any]:
        done = job.notes.get("outcomes", {}).values()
        changed = any(each["outcome"] in ("changed", "at-next-start") for each in done)
        return {"vms": [*done, *job.params["left"]], "notices": [PCR7] if changed else []}

    phases = (RecordChange(rooms, find), MakeChange(rooms, find))
    return [Procedure(f"certs.{verb}", phases, result) for verb in ("update", "rollback", "enrol")]
