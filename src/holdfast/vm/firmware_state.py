"""The firmware state of VMs and the keys to it, as the API asks for them.

Export, recovery and rotation are done at once. An import is an operation, so that nothing else happens to
the VM meanwhile; what it puts stands in memory only, since operations are stored and secrets are not: an
import that a crash interrupts has changed nothing, or all, and is asked for again.
"""

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import structlog
from pydantic import SecretStr

from holdfast.host.threads import to_its_end
from holdfast.operations.engine import Operations
from holdfast.operations.procedure import Job, Procedure
from holdfast.spec.errors import HoldfastError, Interrupted, InvalidInput, RemoteError
from holdfast.spec.firmware_state import (
    HostKeyRotate,
    HostKeyRotation,
    RecoveryKey,
    RecoveryKeyRequest,
    StateExport,
    StateImport,
)
from holdfast.spec.ids import new_id
from holdfast.spec.vm import UefiBoot
from holdfast.spec.vm_view import VmView
from holdfast.trust import state_key
from holdfast.trust.bounded import read_bounded
from holdfast.trust.envelope import LONGEST, FirmwareStateDamaged, Lock, Opener
from holdfast.trust.firmware_folder import settle_folder
from holdfast.trust.firmware_state import (
    FirmwareState,
    FirmwareStateOfAnotherVm,
    FirmwareStateUnlike,
    opened,
    read_header,
)
from holdfast.trust.host_key import HostKeyDamaged, HostKeySealed
from holdfast.trust.protection import ContentKey, PassphraseLock, RecipientLock
from holdfast.trust.rotation import VmFolder, finish, rotate
from holdfast.trust.swtpm_state import StateFormat
from holdfast.vm import records
from holdfast.vm.admission import Verb
from holdfast.vm.owner import VmOwner
from holdfast.vm.registry import VmRegistry
from holdfast.vm.rooms import Rooms

log = structlog.get_logger(__name__)


class OneProtection(InvalidInput):
    id = "one-protection"


class NoVtpm(InvalidInput):
    id = "no-vtpm"


class ImportInterrupted(Interrupted):
    id = "import-interrupted"


class VmFirmware:
    """Exports, imports, recovery keys and rotation for all VMs of this host."""

    def __init__(self, rooms: Rooms, registry: VmRegistry, operations: Operations) -> None:
        self._rooms = rooms
        self._registry = registry
        self._operations = operations
        self._incoming: dict[str, FirmwareState] = {}
        operations.register(Procedure("vm.import-state", (_PutState(self),), lambda job: {"vm": job.subject}))

    async def come_back(self) -> None:
        """After a start of the daemon: go on with a rotation that a crash interrupted."""
        if not await self._rooms.host_keys.earlier():
            return
        try:
            await finish(self._rooms.host_keys, self._folders)
        except HoldfastError as error:
            log.warning("an earlier host key is still in use", error=error.message, cure=error.cure)

    # Firmware state

    async def export_state(self, name: str, request: StateExport) -> bytes:
        """The firmware state of a VM that is off, in a container for whoever is named."""
        lock = export_lock(request)
        owner = await self._registry.named(name)
        owner.admits(Verb.EXPORT_STATE)

        async def take() -> FirmwareState:
            owner.admits(Verb.EXPORT_STATE)
            return await self._take(owner)

        state = await owner.request(take)
        data = await asyncio.to_thread(state.sealed, lock)
        await self._tell(
            "vm.firmware-state-exported", owner, {"for": "recipient" if request.recipient else "passphrase"}
        )
        return data

    async def import_state(self, name: str, path: Path, request: StateImport, actor: str) -> VmView:
        """Give a VM that is off the firmware state in the file at `path`, which is removed."""
        try:
            owner = await self._registry.named(name)
            owner.admits(Verb.IMPORT_STATE)
            state = await self._opened(owner, path, request)
        finally:
            path.unlink(missing_ok=True)
        handed = new_id()
        self._incoming[handed] = state
        try:
            begun = await self._registry.begin(
                "vm.import-state", owner, Verb.IMPORT_STATE, {"handed": handed}, actor
            )
            ended = await self._operations.wait(begun.id)
        finally:
            self._incoming.pop(handed, None)
        if ended.error:
            raise RemoteError(ended.error)
        return await self._registry.show(owner.record.id)

    async def _opened(self, owner: VmOwner, path: Path, request: StateImport) -> FirmwareState:
        opener = state_opener(request.passphrase, request.content_key)
        try:
            data = await asyncio.to_thread(read_bounded, path, LONGEST)
        except OSError as error:
            raise FirmwareStateDamaged(f"the file cannot be read: {error.strerror}") from error
        header, _ = read_header(data)
        if header.tpm:
            # Before anything secret is asked for or opened.
            told = StateFormat(header.tpm.version, header.tpm.least)
            await self._rooms.firmware.require_readable(told, header.vm)
        record = owner.record
        _require_alike(record, header.tpm is not None)
        own = (record.id, records.tpm_identity(record.spec, record.id))
        mine = header.tpm is None or header.tpm.identity in own
        if not (mine or request.same_tpm):
            raise FirmwareStateOfAnotherVm(
                f"the firmware state is that of VM {header.vm}, not of {record.name!r}",
                value=header.vm,
                cure=f"Add --same-tpm if {record.name!r} takes that VM's place: it then has the same TPM"
                " identity, and the two must never both run.",
            )
        return await asyncio.to_thread(opened, data, opener)

    async def put(self, vm_id: str, handed: str) -> None:
        """The one phase of an import."""
        owner = await self._registry.owner(vm_id)
        state = self._incoming.get(handed)
        if state is None:
            raise ImportInterrupted(
                "the daemon ended in the middle of the import",
                value=owner.record.name,
                cure="Import the state again; the VM has its former one or, whole, the new one.",
            )
        await owner.request(lambda: self._put(owner, state))

    async def _put(self, owner: VmOwner, state: FirmwareState) -> None:
        record = owner.record
        folder, identity = self._rooms.state.vm(record.name), self._rooms.identities.of(record.number)
        # The record first: no crash may leave two VMs with one TPM identity and no record of it.
        if state.tpm:
            await self._record_identity(owner, state.tpm.identity)
        await self._rooms.firmware.put(state, record.id, folder, identity)
        await self._tell("vm.firmware-state-imported", owner, {"of": state.vm_id})

    async def settle(self, vm_id: str) -> None:
        """An import failed: let the record say of the TPM's identity what the folder says."""
        owner = await self._registry.owner(vm_id)

        async def look() -> None:
            await asyncio.to_thread(settle_folder, self._rooms.state.vm(owner.record.name))
            with contextlib.suppress(state_key.VtpmDamaged):
                identity = await asyncio.to_thread(state_key.identity_of, self._firmware(owner), vm_id)
                await self._record_identity(owner, identity)

        await owner.request(look)

    @staticmethod
    async def _record_identity(owner: VmOwner, identity: str) -> None:
        spec, boot = owner.record.spec, owner.record.spec.boot
        kept = None if identity == owner.record.id else identity
        if isinstance(boot, UefiBoot) and boot.tpm_identity != kept:
            changed = spec.model_copy(update={"boot": boot.model_copy(update={"tpm_identity": kept})})
            await owner.change(lambda row: records.set_spec(row, changed))

    async def _take(self, owner: VmOwner) -> FirmwareState:
        record = owner.record
        if not isinstance(record.spec.boot, UefiBoot):
            raise _no_vtpm(record, "starts a kernel directly and has no firmware state")
        return await self._rooms.firmware.take(
            record.id, self._rooms.state.vm(record.name), has_tpm=record.spec.boot.tpm
        )

    # Keys

    async def recovery_key(self, name: str, request: RecoveryKeyRequest) -> RecoveryKey:
        """A recovery key, shown this once."""
        owner, vm_id = await self._with_keys(name)

        async def make() -> str:
            firmware = self._firmware(owner)
            async with self._rooms.host_keys.wrapping() as ring:
                return await to_its_end(state_key.make_recovery_key, firmware, vm_id, ring, request.new)

        text = await owner.request(make)
        await self._tell("vm.recovery-key-made", owner, {"replaced": request.new})
        return RecoveryKey(vm=owner.record.name, recovery_key=text)

    async def recover(self, name: str, text: str) -> VmView:
        """Bring the key of a VM's TPM back by its recovery key, whatever became of the host key."""
        owner, vm_id = await self._with_keys(name)
        keys = self._rooms.host_keys
        await asyncio.to_thread(state_key.check_recovery_key, self._firmware(owner), vm_id, text)
        async with keys.rotating:
            try:
                await keys.ring()
            except (HostKeySealed, HostKeyDamaged) as error:
                log.warning("the host key does not open: a new one comes into use", error=error.message)
                await keys.renew()

        async def bring_back() -> None:
            firmware = self._firmware(owner)
            async with keys.wrapping() as ring:
                await to_its_end(state_key.recover, firmware, vm_id, text, ring)

        await owner.request(bring_back)
        await self._tell("vm.recovered-by-key", owner, {})
        return await self._registry.show(vm_id)

    async def rotate_host_key(self, request: HostKeyRotate) -> HostKeyRotation:
        """A new host key for all VMs, which are left as they are."""
        keys = self._rooms.host_keys
        done = await rotate(keys, self._folders, request.to)
        current = (await keys.ring()).current
        await self._rooms.events.emit("host.key-rotated", "host", {"kind": current.kind, "key": current.id})
        return HostKeyRotation(
            kind=current.kind,
            id=current.id,
            words=current.words,
            rewrapped=done.rewrapped,
            unreadable=done.unreadable,
            earlier=await keys.earlier(),
        )

    async def _with_keys(self, name: str) -> tuple[VmOwner, str]:
        owner = await self._registry.named(name)
        owner.admits(Verb.KEYS)
        if records.tpm_identity(owner.record.spec, owner.record.id) is None:
            raise _no_vtpm(owner.record, "has no vTPM")
        return owner, owner.record.id

    def _firmware(self, owner: VmOwner) -> Path:
        return self._rooms.state.vm(owner.record.name) / "firmware"

    async def _folders(self) -> Iterable[VmFolder]:
        return [
            VmFolder(record.id, record.name, self._rooms.state.vm(record.name))
            for record in await self._rooms.records.all()
        ]

    async def _tell(self, event: str, owner: VmOwner, data: dict[str, Any]) -> None:
        await self._rooms.events.emit(event, owner.record.name, {"id": owner.record.id, **data})


class _PutState:
    title = "put the firmware state"
    weight = 1.0

    def __init__(self, firmware: VmFirmware) -> None:
        self._firmware = firmware

    async def do(self, job: Job) -> None:
        await self._firmware.put(job.params["vm"], job.params["handed"])

    async def undo(self, job: Job) -> None:
        """It was put whole or not at all; only the record may be ahead of that."""
        await self._firmware.settle(job.params["vm"])


def export_lock(request: StateExport) -> Lock:
    """For whom an export is encrypted. Raises OneProtection, PassphraseTooShort, BadRecipient."""
    if (request.passphrase is None) == (request.recipient is None):
        raise OneProtection(
            "an export is encrypted for a passphrase or for a recipient: exactly one of them",
            cure="Give --passphrase-file or --recipient.",
        )
    if request.recipient is not None:
        return RecipientLock.of_pem(request.recipient.encode())
    assert request.passphrase is not None  # noqa: S101  (one of the two is there)
    lock = PassphraseLock(request.passphrase.get_secret_value())
    lock.require_long()
    return lock


def state_opener(passphrase: SecretStr | None, content_key: SecretStr | None) -> Opener:
    """What opens an export. Raises OneProtection, BadContentKey."""
    if (passphrase is None) == (content_key is None):
        raise OneProtection(
            "an import is opened by a passphrase or by the recipient's private key: exactly one of them",
            cure="Give --passphrase-file or --private-key.",
        )
    if passphrase is not None:
        return PassphraseLock(passphrase.get_secret_value())
    assert content_key is not None  # noqa: S101  (one of the two is there)
    return ContentKey.of_hex(content_key.get_secret_value())


def _require_alike(record: records.VmRecord, has_tpm: bool) -> None:
    if not isinstance(record.spec.boot, UefiBoot):
        raise _no_vtpm(record, "starts a kernel directly and has no firmware state")
    if record.spec.boot.tpm is not has_tpm:
        one, other = ("has", "none") if record.spec.boot.tpm else ("has no", "one")
        raise FirmwareStateUnlike(
            f"VM {record.name!r} {one} vTPM, and the firmware state holds {other}",
            value=record.name,
            cure="Import it into a VM that was made with the same --tpm or --no-tpm.",
        )


def _no_vtpm(record: records.VmRecord, why: str) -> NoVtpm:
    return NoVtpm(f"VM {record.name!r} {why}", value=record.name, cure="Choose a VM with UEFI and a vTPM.")
