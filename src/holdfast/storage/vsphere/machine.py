"""One VM of a session: its settings, snapshots, changed areas, power. Everything here blocks."""

import contextlib
import hashlib
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim, vmodl

from holdfast.storage.remote_disk import Area
from holdfast.storage.vsphere.mapping import Described, capacity
from holdfast.storage.vsphere.refusals import (
    BUSY,
    ChangesUnknown,
    VsphereRefused,
    VsphereShutdownTimedOut,
    VsphereTimedOut,
)
from holdfast.storage.vsphere.session import Session

_SNAPSHOT_SECONDS = 1800.0
_EVERYTHING = "*"
"""Change id that stands for the areas that were ever written (vSphere API, QueryChangedDiskAreas)."""
_MOST_AREAS = 4_000_000


@dataclass(frozen=True)
class SnapshotDisk:
    """A disk as a snapshot, or a machine that is off, has it."""

    key: int
    """VirtualDevice.key."""
    file: str
    """`[DATASTORE] PATH` of its descriptor."""
    size: int
    """Bytes."""
    change_id: str | None
    """None where changes are not tracked."""
    plain: bool
    """One flat file behind the descriptor: nothing below it, not encrypted, no raw device."""


class Machine:
    def __init__(self, session: Session, moid: str, datacenter: str) -> None:
        self.session = session
        self.moid = moid
        self.datacenter = datacenter
        """Its path in the inventory, for the datastores' files."""
        self._vm: Any = session.object(vim.VirtualMachine, moid)

    def described(self) -> Described:
        """What is known of it, for the mapping. Raises as `Session.asking`."""
        found = self.session.properties(
            self._vm,
            "config",
            "runtime.powerState",
            "guest.toolsRunningStatus",
            "network",
            "snapshot",
            "layoutEx",
        )
        names, vlans = self._networks(found.get("network") or ())
        return Described(
            config=found["config"],
            running=found.get("runtime.powerState") != vim.VirtualMachine.PowerState.poweredOff,
            tools=found.get("guest.toolsRunningStatus") == "guestToolsRunning",
            networks=names,
            vlans=vlans,
            snapshots=found.get("snapshot") is not None,
            committed=_disk_usage(found.get("layoutEx")),
        )

    def _networks(self, networks: Any) -> tuple[dict[str, str], dict[str, int]]:
        """Names and VLANs by what a NIC's backing calls a network: a port group's key, an opaque one's id."""
        names: dict[str, str] = {}
        vlans: dict[str, int] = {}
        for network in networks:
            if isinstance(network, vim.dvs.DistributedVirtualPortgroup):
                found = self.session.properties(network, "key", "name", "config.defaultPortConfig")
                names[found["key"]] = str(found.get("name", ""))
                number = getattr(getattr(found.get("config.defaultPortConfig"), "vlan", None), "vlanId", 0)
                if isinstance(number, int) and 1 <= number <= 4094:
                    vlans[found["key"]] = number
            elif isinstance(network, vim.OpaqueNetwork):
                found = self.session.properties(network, "name", "summary")
                names[found["summary"].opaqueNetworkId] = str(found.get("name", ""))
        return names, vlans

    def running(self) -> bool:
        """Raises as `Session.asking`."""
        state = self.session.properties(self._vm, "runtime.powerState").get("runtime.powerState")
        return bool(state != vim.VirtualMachine.PowerState.poweredOff)

    def take_snapshot(self, name: str) -> str:
        """Managed object id of a new snapshot.

        Of a running guest its tools are asked to write everything out; where they cannot, it is as
        after a power failure. Raises VsphereTimedOut, and as `Session.asking`.
        """
        if self.running():
            try:
                return self._snapshot(name, quiesce=True)
            except VsphereRefused as refused:
                if refused.value == BUSY:
                    raise
                self.remove_snapshots(name)
        return self._snapshot(name, quiesce=False)

    def _snapshot(self, name: str, quiesce: bool) -> str:
        with self.session.asking():
            task = self._vm.CreateSnapshot(
                name=name, description="Removed by itself after the import", memory=False, quiesce=quiesce
            )
        return str(self.session.finish(task, _SNAPSHOT_SECONDS)._moId)

    def snapshots(self, prefix: str) -> list[str]:
        """Managed object ids of those whose name begins so. Raises as `Session.asking`."""
        tree = self.session.properties(self._vm, "snapshot").get("snapshot")
        pending = list(tree.rootSnapshotList or ()) if tree else []
        found: list[str] = []
        while pending:
            each = pending.pop()
            if str(each.name).startswith(prefix):
                found.append(str(each.snapshot._moId))
            pending += each.childSnapshotList or ()
        return found

    def remove_snapshots(self, prefix: str) -> None:
        """Those whose name begins so. Raises VsphereTimedOut, and as `Session.asking`."""
        for moid in self.snapshots(prefix):
            snapshot: Any = self.session.object(vim.vm.Snapshot, moid)
            with self.session.asking(), contextlib.suppress(vmodl.fault.ManagedObjectNotFound):
                self.session.finish(
                    snapshot.Remove(removeChildren=False, consolidate=True), _SNAPSHOT_SECONDS
                )

    def disks(self, snapshot: str | None) -> dict[int, SnapshotDisk]:
        """By key; of a snapshot, or None: as they are now. Raises as `Session.asking`."""
        return {
            device.key: _snapshot_disk(device)
            for device in self.devices(snapshot)
            if isinstance(device, vim.vm.device.VirtualDisk)
        }

    def devices(self, snapshot: str | None) -> list[Any]:
        """VirtualDevices of a snapshot, or None: as they are now. Raises as `Session.asking`."""
        owner: Any = self.session.object(vim.vm.Snapshot, snapshot) if snapshot else self._vm
        hardware = self.session.properties(owner, "config.hardware").get("config.hardware")
        return list(hardware.device or ()) if hardware else []

    def changed(self, snapshot: str, disk: SnapshotDisk, since: str | None) -> tuple[Area, ...]:
        """Areas written since a change id; None: ever. Raises ChangesUnknown, and as `Session.asking`."""
        areas: list[Area] = []
        at = 0
        if since is not None and disk.change_id is not None and _tracking(since) != _tracking(disk.change_id):
            raise _unknown(disk, "tracking began anew")
        moment = self.session.object(vim.vm.Snapshot, snapshot)
        while at < disk.size:
            with self.session.asking():
                try:
                    answer = self._vm.QueryChangedDiskAreas(
                        snapshot=moment, deviceKey=disk.key, startOffset=at, changeId=since or _EVERYTHING
                    )
                except (vim.fault.FileFault, vmodl.fault.InvalidArgument, vim.fault.NotFound) as fault:
                    raise _unknown(disk, str(getattr(fault, "msg", ""))) from None
            covered = answer.startOffset + answer.length
            for each in answer.changedArea or ():
                end = min(each.start + each.length, disk.size)
                if each.start < 0 or each.length < 0 or (areas and each.start < areas[-1].end):
                    raise _unknown(disk, "the server's list is out of order")
                if end > each.start:
                    areas.append(Area(each.start, end - each.start))
            if covered <= at or len(areas) > _MOST_AREAS:
                raise _unknown(disk, "the server's list does not end")
            at = covered
        return tuple(areas)

    def shut_down(self, limit: float) -> None:
        """By the guest's own tools; nothing happens where it is off.

        Raises VsphereShutdownTimedOut, and as `Session.asking`.
        """
        if not self.running():
            return
        with self.session.asking():
            self._vm.ShutdownGuest()
        off = vim.VirtualMachine.PowerState.poweredOff
        try:
            self.session.wait(self._vm, "runtime.powerState", lambda value: value == off, limit)
        except VsphereTimedOut:
            raise VsphereShutdownTimedOut(
                f"the guest did not shut down within {limit:g} s",
                value=limit,
                cure="Shut it down by hand, and import it again; nothing was changed there.",
            ) from None

    def power_on(self) -> None:
        """Nothing happens where it runs. Raises VsphereTimedOut, and as `Session.asking`."""
        if not self.running():
            with self.session.asking():
                task = self._vm.PowerOn()
            self.session.finish(task, _SNAPSHOT_SECONDS)

    def version(self) -> str:
        """Another one once the machine was started or its settings changed. Raises as `Session.asking`."""
        found = self.session.properties(self._vm, "config.changeVersion").get("config.changeVersion")
        marks = [f"{disk.key}:{disk.file}:{disk.change_id}" for disk in self.disks(None).values()]
        return hashlib.sha256("\n".join([str(found or ""), *sorted(marks)]).encode()).hexdigest()

    def export(self, snapshot: str | None) -> Any:
        """An HttpNfcLease on the disks of a snapshot, or of a machine that is off."""
        with self.session.asking():
            if snapshot is None:
                return self._vm.ExportVm()
            return self.session.object(vim.vm.Snapshot, snapshot).ExportSnapshot()


def _snapshot_disk(device: Any) -> SnapshotDisk:
    backing = device.backing
    flat = isinstance(backing, vim.vm.device.VirtualDisk.FlatVer2BackingInfo)
    plain = flat and backing.parent is None and getattr(backing, "keyId", None) is None
    return SnapshotDisk(
        key=device.key,
        file=str(getattr(backing, "fileName", "") or ""),
        size=capacity(device),
        change_id=getattr(backing, "changeId", None) or None,
        plain=plain,
    )


def _tracking(change_id: str) -> str:
    """Of `UUID/NUMBER`: the UUID is another one once tracking was off or lost."""
    return change_id.rpartition("/")[0]


def _unknown(disk: SnapshotDisk, why: str) -> ChangesUnknown:
    return ChangesUnknown(
        f"the server does not say what changed on disk {disk.key}: {why[:200]}",
        value=disk.key,
        cure="Turn changed block tracking off and on again there.",
    )


def _disk_usage(layout: Any) -> dict[int, int]:
    """Bytes that each disk takes on its datastore, by its key (VirtualMachineFileLayoutEx)."""
    if layout is None:
        return {}
    sizes = {each.key: each.uniqueSize or each.size for each in layout.file or ()}
    return {
        int(disk.key): sum(sizes.get(key, 0) for unit in disk.chain or () for key in unit.fileKey or ())
        for disk in layout.disk or ()
    }
