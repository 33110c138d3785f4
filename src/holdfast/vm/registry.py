"""All VMs of this host: finds the owner of each, and is what the API speaks to.

Long verbs are admitted here (refused before the first change), recorded together with the
operation that carries them out, and done by the procedures of `lifecycle`, `create`, `clone` and
`delete`. Short verbs go straight to the owner.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy.orm import Session

from holdfast.catalog.tables import OperationRow, VmRow
from holdfast.host.log_tail import tail
from holdfast.machine.running import RunningMachine
from holdfast.network.user_mode import notice as user_mode_notice
from holdfast.operations.engine import Operations
from holdfast.spec.errors import Conflict, RemoteError
from holdfast.spec.names import check_name
from holdfast.spec.operation import Operation
from holdfast.spec.paging import Page, PageQuery
from holdfast.spec.vm import VmState
from holdfast.spec.vm_requests import ExecRequest, ExecResult, VmChange, VmClone, VmCreate
from holdfast.spec.vm_view import VmSummary, VmView
from holdfast.storage.images import require_stored
from holdfast.storage.pools.book import require_pools
from holdfast.vm import records
from holdfast.vm.admission import Refused, Verb, admit
from holdfast.vm.attested_host import guard_key, require_guardable
from holdfast.vm.cd_drives import change_disc
from holdfast.vm.guest import AgentNotThere
from holdfast.vm.owner import VmDied, VmOwner
from holdfast.vm.planning import Planner
from holdfast.vm.rooms import Rooms
from holdfast.vm.sizing import GuestSize, guest_size, require_room, resize, use
from holdfast.vm.usage import images_of, pools_of
from holdfast.vm.view import in_user_mode, show

Lines = list[str]  # `list` is a verb of the registry below
LogSource = Literal["console", "qemu", "swtpm"]
_LOGS: dict[str, str] = {"console": "console.log", "qemu": "qemu.log", "swtpm": "swtpm.log"}


class VmChangedMeanwhile(Conflict):
    id = "vm-changed-meanwhile"


class VmRegistry:
    """Owner of the owners."""

    def __init__(self, rooms: Rooms, operations: Operations) -> None:
        self._rooms = rooms
        self._operations = operations
        self._planner = Planner(rooms)
        self._owners: dict[str, VmOwner] = {}
        operations.before_finish.append(self._release)

    # Owners

    def add(self, record: records.VmRecord, machine: RunningMachine | None = None) -> VmOwner:
        """An owner for a record that has none yet."""
        owner = VmOwner(self._rooms, record, machine)
        self._owners[record.id] = owner
        return owner

    async def owner(self, vm_id: str) -> VmOwner:
        """The owner of a VM's id. Raises VmNotFound."""
        if vm_id not in self._owners:
            record = await self._rooms.records.get(vm_id)
            self._owners.setdefault(vm_id, VmOwner(self._rooms, record))
        return self._owners[vm_id]

    async def forget(self, vm_id: str) -> None:
        owner = self._owners.pop(vm_id, None)
        if owner:
            await owner.close()

    def boots(self) -> dict[str, object]:
        """Of each VM that runs, its id and `VmOwner.boot`."""
        return {vm_id: owner.boot for vm_id, owner in self._owners.items() if owner.boot is not None}

    def owners(self) -> list[VmOwner]:
        return list(self._owners.values())

    async def named(self, name: str) -> VmOwner:
        """The owner of a name or an id, told what operation is under way. Raises VmNotFound."""
        record = await self._rooms.records.get(name)
        owner = await self.owner(record.id)
        owner.noticed(record.operation)
        return owner

    # Long verbs

    async def create(self, request: VmCreate, actor: str) -> Operation:
        plan = await self._planner.plan(request)

        def reserve(session: Session, operation: str) -> None:
            require_stored(session, images_of(plan.spec, plan.full_copies))
            require_pools(session, pools_of(plan.spec))
            records.insert(session, plan.vm_id, request.name, plan.spec, operation)

        params = {**plan.params(), "requested": _now()}
        return await self._operations.submit("vm.create", request.name, params, actor, reserve)

    async def start(self, name: str, actor: str) -> Operation:
        owner = await self.named(name)
        if owner.admits(Verb.START):
            await self._planner.require_startable(owner.record)
        return await self.begin("vm.start", owner, Verb.START, {"requested": _now()}, actor)

    async def stop(self, name: str, timeout_seconds: float, actor: str) -> Operation:
        params = {"timeout_seconds": timeout_seconds}
        return await self.begin("vm.stop", await self.named(name), Verb.STOP, params, actor)

    async def restart(self, name: str, timeout_seconds: float, actor: str) -> Operation:
        params = {"timeout_seconds": timeout_seconds, "requested": _now()}
        return await self.begin("vm.restart", await self.named(name), Verb.RESTART, params, actor)

    async def save(self, name: str, actor: str) -> Operation:
        owner = await self.named(name)
        if owner.admits(Verb.SAVE):
            await self._planner.require_savable(owner.record)
        return await self.begin("vm.save", owner, Verb.SAVE, {}, actor)

    async def clone(self, name: str, request: VmClone, actor: str) -> Operation:
        owner = await self.named(name)
        owner.admits(Verb.CLONE)
        plan = await self._planner.plan_clone(owner.record, request)

        def reserve(session: Session, operation: str) -> None:
            self._reserve(session, owner, Verb.CLONE, operation)
            require_stored(session, images_of(plan.spec, plan.full_copies))
            require_pools(session, pools_of(plan.spec))
            records.insert(session, plan.vm_id, request.name, plan.spec, operation)

        params = {**plan.params(), "source": owner.record.id}
        return await self._operations.submit("vm.clone", request.name, params, actor, reserve)

    async def delete(self, name: str, force: bool, actor: str) -> Operation:
        owner = await self.named(name)
        verb = Verb.KILL if force and owner.record.state not in (VmState.OFF, VmState.FAILED) else Verb.DELETE
        return await self.begin("vm.delete", owner, verb, {"force": force}, actor)

    async def begin(
        self,
        kind: str,
        owner: VmOwner,
        verb: Verb,
        params: dict[str, Any],
        actor: str,
        also: Callable[[Session], None] = lambda _: None,
    ) -> Operation:
        """Begin an operation on a VM, admitted and recorded in one transaction: of two at once one is let in.

        `also` runs in that transaction, and may refuse by raising.
        """
        params = {"vm": owner.record.id, **params}

        def reserve(session: Session, operation: str) -> None:
            self._reserve(session, owner, verb, operation)
            also(session)

        return await self._operations.submit(kind, owner.record.name, params, actor, reserve)

    def _reserve(self, session: Session, owner: VmOwner, verb: Verb, operation: str) -> None:
        row = records.by_id(session, owner.record.id)
        verdict = admit(row.name, VmState(row.state), row.operation, verb)
        if isinstance(verdict, Refused):
            raise verdict.error
        row.operation = operation

    def _release(self, session: Session, operation: OperationRow) -> None:
        """In the transaction that ends an operation: its VMs are free again."""
        for row in session.query(VmRow).filter(VmRow.operation == operation.id):
            row.operation = None
            owner = self._owners.get(row.id)
            if owner:
                owner.released(operation.id)

    # Short verbs

    async def kill(self, name: str) -> VmView:
        owner = await self.named(name)
        await owner.kill()
        return await self.show(owner.record.id)

    async def pause(self, name: str) -> VmView:
        owner = await self.named(name)
        owner.admits(Verb.PAUSE)
        await owner.request(owner.pause)
        return await self.show(owner.record.id)

    async def resume(self, name: str) -> VmView:
        owner = await self.named(name)
        owner.admits(Verb.RESUME)
        await owner.request(owner.resume)
        return await self.show(owner.record.id)

    async def rename(self, name: str, new_name: str) -> VmView:
        owner = await self.named(name)
        check_name(new_name)
        owner.admits(Verb.RENAME)
        old_name = owner.record.name
        if new_name == old_name:
            return await self.show(owner.record.id)
        if new_name.lower() != old_name.lower():
            await self._planner.require_free_name(new_name)

        def reserve(session: Session, operation: str) -> None:
            if new_name.lower() != old_name.lower():
                records.require_free(session, new_name)
            self._reserve(session, owner, Verb.RENAME, operation)

        params = {"vm": owner.record.id, "name": new_name, "old_name": old_name}
        begun = await self._operations.submit("vm.rename", old_name, params, "", reserve)
        await self._finished(begun)
        return await self.show(owner.record.id)

    async def _finished(self, begun: Operation) -> None:
        ended = await self._operations.wait(begun.id)
        if ended.error:
            raise RemoteError(ended.error)

    async def change(self, name: str, change: VmChange) -> VmView:
        owner = await self.named(name)
        owner.admits(Verb.CHANGE)
        before = owner.record.spec
        spec = await self._planner.changed(owner.record, change)
        await require_room(owner.record, change.memory)
        guarded = spec.require_attested_host
        changes = guarded != owner.record.spec.require_attested_host
        key = await guard_key(self._rooms, owner.record) if changes else b""

        async def apply() -> None:
            owner.admits(Verb.CHANGE)
            if owner.record.spec != before:
                raise VmChangedMeanwhile(
                    f"the settings of VM {owner.record.name!r} were changed by somebody else just now",
                    value=owner.record.name,
                    cure="Look at them again, and ask for your change once more.",
                )
            vtpm, folder = self._rooms.vtpm, self._rooms.state.vm(owner.record.name)
            if changes:
                require_guardable(owner.record)
            if key and not guarded:
                await vtpm.unguard(owner.record.id, folder, key)
            if change.iso is not None and owner.machine is not None:
                await change_disc(self._rooms, owner, spec, await self._planner.medium(spec))
            await owner.change(lambda row: records.set_spec(row, spec), "vm.changed")
            if sized:
                await resize(self._rooms, owner)
            if key and guarded:
                await vtpm.guard(owner.record.id, folder, key)

        sized = change.cpus is not None or change.memory is not None
        used, was = await guest_size(owner) if sized else GuestSize(), owner.record.running_spec
        await owner.request(apply)
        if sized:
            await use(owner, used, was)
        return await self.show(owner.record.id)

    async def show(self, name: str) -> VmView:
        record = await self._rooms.records.get(name)
        owner = await self.owner(record.id)
        if owner.guest:
            await owner.guest.refresh()
            record = await self._rooms.records.get(record.id)
        return show(
            record,
            str(self._rooms.state.vm(record.name)),
            self._rooms.acceleration.known,
            ([user_mode_notice(record.name)] if any(map(in_user_mode, record.spec.nics)) else [])
            + ([owner.stall.text] if owner.stall else []),
        )

    async def list(self, query: PageQuery, state: VmState | None = None) -> Page[VmSummary]:
        return await self._rooms.records.page(query, state)

    async def execute(self, name: str, request: ExecRequest) -> ExecResult:
        owner = await self.named(name)
        owner.admits(Verb.AGENT)
        if owner.guest is None:
            raise AgentNotThere(
                f"VM {owner.record.name!r} has no guest agent",
                value=owner.record.name,
                cure="Install qemu-guest-agent in the guest and set `--guest-agent` on the VM.",
            )
        return await owner.guest.execute(request)

    async def screenshot(self, name: str) -> bytes:
        return await self._screen_of(await self.named(name)).screenshot()

    async def console_path(self, name: str) -> Path:
        return self._screen_of(await self.named(name)).console_path

    async def vnc_path(self, name: str) -> Path:
        return self._screen_of(await self.named(name)).vnc_path

    @staticmethod
    def _screen_of(owner: VmOwner) -> RunningMachine:
        owner.admits(Verb.CONSOLE)
        if owner.machine is None:
            raise VmDied(f"QEMU of VM {owner.record.name!r} has just ended", value=owner.record.name)
        return owner.machine

    async def log(self, name: str, lines: int, source: LogSource) -> Lines:
        record = await self._rooms.records.get(name)
        return tail(self._rooms.state.vm(record.name) / _LOGS[source], lines)


def _now() -> str:
    return datetime.now(UTC).isoformat()
