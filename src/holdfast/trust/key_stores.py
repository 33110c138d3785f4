"""Changes the keys in the variable stores of VMs that do not run, and keeps what was there before.

    <VM folder>/firmware/
    ├── variables.fd            the store; of the VM's user
    ├── variables.previous.fd   as it was before the last change of its keys; ours
    └── keys.pending            changes that were asked for and are not made yet (JSON); ours

First the change is recorded, then the present store is kept, then the new one put in its place by a
rename, then the record removed. After a crash the same is done again: a change that was made already
changes nothing, so what is kept stays what it was. `virt-fw-vars` writes stores (it is run, never
imported); what it wrote is read back and must differ in the keys alone.
"""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from holdfast.host.files import own, remove_tree, sync_folder, write_atomic
from holdfast.host.folders import StateFolder
from holdfast.host.processes import Limits, Processes
from holdfast.spec.errors import Conflict, Failed, InvalidInput
from holdfast.spec.ids import new_id
from holdfast.spec.units import GIB, MIB
from holdfast.trust import key_changes
from holdfast.trust.bounded import read_bounded
from holdfast.trust.enrollment import VariableStores, fw_vars_program
from holdfast.trust.firmware import choose_firmware
from holdfast.trust.key_changes import KeyChange, Recorded
from holdfast.trust.microsoft import CERTIFICATES
from holdfast.trust.signature_lists import KeyDatabase, encode_lists
from holdfast.trust.variables import (
    SECURE_BOOT_ENABLE,
    VENDORS,
    KeyInventory,
    Variable,
    inventory,
    parse,
    read_store,
)

_LARGEST_VALUE = 0x8400 - 256
"""Bytes: OVMF's PcdMaxAuthVariableSize, less room for its header and name."""
_ATTRIBUTES = 0x27
"""NON_VOLATILE, BOOTSERVICE_ACCESS, RUNTIME_ACCESS, TIME_BASED_AUTHENTICATED_WRITE_ACCESS."""
_RECORD = "keys.pending"
_LARGEST_RECORD = 16 * MIB
_PATIENCE = 120.0  # seconds
_TAIL = 2048


class KeysTooLarge(InvalidInput):
    id = "keys-too-large"


class KeyChangeFailed(Failed):
    id = "key-change-failed"


class KeyRecordDamaged(Failed):
    id = "key-record-damaged"


class NothingToRollBack(Conflict):
    id = "nothing-to-roll-back"


@dataclass(frozen=True)
class Store:
    """A VM's store as it was read."""

    path: Path
    data: bytes
    variables: tuple[Variable, ...]
    keys: KeyInventory


class KeyStores:
    """`folder` is everywhere a VM's folder, whose owner says when."""

    def __init__(self, processes: Processes, state: StateFolder, new_stores: VariableStores) -> None:
        self._processes = processes
        self._state = state
        self._new_stores = new_stores
        self._authorities: dict[str, bytes] = {}

    async def authorities(self) -> Mapping[str, bytes]:
        """DER of Microsoft's certificates by id, out of the store that new VMs are given.

        Raises:
            FirmwareMissing, EnrollmentFailed: there is no such store on this host.
            KeyChangeFailed: the store lacks some of them.
        """
        if not self._authorities:
            template = (await asyncio.to_thread(choose_firmware, True)).template
            data = await self._new_stores.enrolled(template)
            keys = await asyncio.to_thread(lambda: inventory(parse(data, template)))
            found = {
                held.fingerprint: held.der for each in keys.databases.values() for held in each.certificates
            }
            missing = [each.name for each in CERTIFICATES if each.fingerprint not in found]
            if missing:
                raise KeyChangeFailed(
                    "virt-firmware carries not all of Microsoft's certificates",
                    value=missing,
                    cure="Check that the Python package `virt-firmware` is whole.",
                )
            self._authorities = {each.id: found[each.fingerprint] for each in CERTIFICATES}
        return self._authorities

    @staticmethod
    def read(folder: Path) -> Store:
        """Blocks for about a millisecond.

        Raises:
            VariablesDamaged: it is no variable store.
            FileNotFoundError: it is not there.
        """
        path = folder / "firmware" / "variables.fd"
        data = read_store(path)
        variables = parse(data, path)
        return Store(path, data, variables, inventory(variables))

    @staticmethod
    def previous(folder: Path) -> KeyInventory | None:
        """The keys from before the last change; None where there was none."""
        path = _previous(folder)
        try:
            return inventory(parse(read_store(path), path))
        except FileNotFoundError:
            return None

    @staticmethod
    def has_previous(folder: Path) -> bool:
        return _previous(folder).exists()

    @classmethod
    def pending(cls, folder: Path) -> tuple[KeyChange, ...]:
        """What was asked for and is not made yet, in order.

        Raises:
            KeyRecordDamaged: the record cannot be read.
        """
        return tuple(each.change for each in cls._recorded(folder))

    @staticmethod
    def _recorded(folder: Path) -> tuple[Recorded, ...]:
        path = _record(folder)
        try:
            with path.open("rb") as file:
                return key_changes.load(file.read(_LARGEST_RECORD))
        except FileNotFoundError:
            return ()
        except ValueError as error:
            raise KeyRecordDamaged(
                f"the record of changes to be made cannot be read: {path}",
                value=str(path),
                cure="Ask for the change again after `holdfast certs rollback` has removed the record.",
            ) from error

    @staticmethod
    def is_pending(folder: Path) -> bool:
        return _record(folder).exists()

    @classmethod
    def record(cls, folder: Path, change: KeyChange, operation: str) -> None:
        """Durably; what an operation has recorded already is not recorded again.

        Raises:
            KeysTooLarge: more waits already than is kept.
        """
        there = [*cls._recorded(folder)]
        if any(operation in each.operations for each in there):
            return
        if there and there[-1].change == change:
            there[-1] = replace(there[-1], operations=(*(there[-1].operations or ("",)), operation))
        else:
            there.append(Recorded(change, (operation,)))
        data = key_changes.dump(there)
        if len(data) > _LARGEST_RECORD:
            raise KeysTooLarge(
                f"the changes that wait would take {len(data)} bytes; {_LARGEST_RECORD} are kept at most",
                value=len(data),
                cure="Start the VM, which makes what waits, or drop it with `holdfast certs rollback`.",
            )
        write_atomic(_record(folder), data)

    @classmethod
    def withdraw(cls, folder: Path, operation: str) -> None:
        """Drop what an operation recorded, unless another one asked for the same after it or before."""
        there = cls._recorded(folder)
        left = []
        for each in there:
            others = tuple(id_ for id_ in each.operations if id_ != operation)
            if others or not each.operations:
                left.append(replace(each, operations=others))
        if left == [*there]:
            return
        if left:
            write_atomic(_record(folder), key_changes.dump(left))
        else:
            cls.forget(folder)

    @staticmethod
    def forget(folder: Path) -> None:
        """Drop all that is recorded."""
        path = _record(folder)
        path.unlink(missing_ok=True)
        sync_folder(path.parent)

    async def make(self, folder: Path, store: Store, databases: Mapping[str, KeyDatabase]) -> None:
        """Put these databases into the store as it was read; the VM must not run. Atomic, durable.

        Raises:
            KeysTooLarge: a database is larger than firmware takes.
            KeyChangeFailed: the new store could not be written, or is not as meant.
        """
        if not databases:
            return
        values = {name: encode_lists(each.signatures) for name, each in databases.items()}
        require_size(values)
        data = await self._written(store, values)
        await asyncio.to_thread(_put, folder, store, data)

    async def _written(self, store: Store, values: Mapping[str, bytes]) -> bytes:
        if any(store.data[:16]):
            # The zero vector of a firmware volume: a store that begins like an image of another
            # kind would make virt-fw-vars open what that image names.
            raise _failed(store.path, "the store does not begin as a firmware volume")
        scratch = self._state.scratch / f"keys-{new_id()}"
        try:
            await asyncio.to_thread(_prepare, scratch, store, values)
            done = await self._processes.run(
                [
                    *(fw_vars_program(), "--input", str(scratch / "old.fd")),
                    *(part for name, value in values.items() if not value for part in ("--delete", name)),
                    *("--set-json", str(scratch / "keys.json"), "--output", str(scratch / "new.fd")),
                ],
                owner="host",
                timeout=_PATIENCE,
                limits=Limits(address_space=GIB, cpu_seconds=60, file_size=16 * MIB, open_files=64),
            )
            if done.returncode or not (scratch / "new.fd").exists():
                said = (done.stdout + done.stderr)[-_TAIL:].decode(errors="replace")
                raise _failed(store.path, f"virt-fw-vars ended with code {done.returncode}", said)
            return await asyncio.to_thread(_verified, scratch / "new.fd", store, values)
        finally:
            remove_tree(scratch)


def carry_pending(old: Path, new: Path) -> None:
    """Let what waits in one folder `firmware` wait in another one too; durable.

    Changes are asked of a VM and not of a store, so they outlive the store that they were asked about.
    What was kept for a rollback (`variables.previous.fd`) belongs to that store and stays with it.
    """
    with contextlib.suppress(FileNotFoundError):
        write_atomic(new / _RECORD, read_bounded(old / _RECORD, _LARGEST_RECORD))


def require_size(values: Mapping[str, bytes]) -> None:
    """Raises KeysTooLarge where firmware takes no variable of that size."""
    for name, value in values.items():
        if len(value) > _LARGEST_VALUE:
            raise KeysTooLarge(
                f"{name} would have {len(value)} bytes; the firmware takes {_LARGEST_VALUE} at most",
                value=len(value),
                cure="Give fewer entries: for revocations, those that concern x86-64 alone.",
            )


def _prepare(scratch: Path, store: Store, values: Mapping[str, bytes]) -> None:
    scratch.mkdir(mode=0o700)
    (scratch / "old.fd").write_bytes(store.data)
    times = {(each.name, each.vendor): each.time for each in store.variables}
    described = [
        {
            "name": name,
            "guid": str(VENDORS[name]),
            "attr": _ATTRIBUTES,
            "data": value.hex(),
            # The time of the last signed update stays: the next one has only to be later than that.
            **({"time": time.hex()} if any(time := times.get((name, VENDORS[name]), b"")) else {}),
        }
        for name, value in values.items()
        if value
    ]
    if values.get("PK"):
        enable = {"name": "SecureBootEnable", "guid": str(SECURE_BOOT_ENABLE), "attr": 3, "data": "01"}
        described.append(enable)
    (scratch / "keys.json").write_text(json.dumps({"version": 2, "variables": described}), encoding="ascii")


def _verified(path: Path, store: Store, values: Mapping[str, bytes]) -> bytes:
    data = read_store(path)
    new = {(each.name, each.vendor): (each.attributes, each.value) for each in parse(data, path)}
    old = {(each.name, each.vendor): (each.attributes, each.value) for each in store.variables}
    wanted = {(name, VENDORS[name]): value for name, value in values.items()}
    if values.get("PK"):
        wanted["SecureBootEnable", SECURE_BOOT_ENABLE] = b"\x01"
    got = {key: new.pop(key, (0, b""))[1] for key in wanted}
    if got != wanted or new != {key: each for key, each in old.items() if key not in wanted}:
        raise _failed(store.path, "the new store does not read back as meant")
    if len(data) != len(store.data):
        raise _failed(store.path, "the new store has another size")
    return data


def _put(folder: Path, store: Store, data: bytes) -> None:
    owner = store.path.stat()
    write_atomic(_previous(folder), store.data)
    # Given away under another name: the name is never that of a file its user cannot open.
    fresh = store.path.with_name("variables.new.fd")
    write_atomic(fresh, data)
    own(fresh, owner.st_uid, owner.st_gid)
    fresh.replace(store.path)
    sync_folder(store.path.parent)


def _previous(folder: Path) -> Path:
    return folder / "firmware" / "variables.previous.fd"


def _record(folder: Path) -> Path:
    return folder / "firmware" / _RECORD


def _failed(path: Path, why: str, said: str = "") -> KeyChangeFailed:
    return KeyChangeFailed(
        f"the keys in {path} could not be changed: {why}",
        value=str(path),
        cure="The store is as it was. Start and stop the VM once, then try again.",
        detail={"log": said} if said else None,
    )


def rollback(previous: KeyInventory) -> KeyChange:
    """All four databases as they were; what else the guest has written since then stays."""
    return KeyChange(
        replaced={name: each.signatures for name, each in previous.databases.items()}, force=True
    )
