"""VMs as a vCenter has them, in the SDK's own types: settings, disks with a log of their writes, exports."""

import datetime
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

from pyVmomi import vim
from pyVmomi.VmomiSupport import F_OPTIONAL, DataObject, ManagedObject

BLOCK = 64 * 1024
SECTOR = 512


@dataclass
class FakeDisk:
    """Content, and who wrote where: change ids count the writes."""

    key: int
    content: bytearray
    writes: list[tuple[int, int]] = field(default_factory=list)
    """Start and length of each write, in order."""

    def write(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data
        self.writes.append((offset, len(data)))

    def changed(self, since: int, until: int) -> list[tuple[int, int]]:
        """Blocks of the writes after `since` up to `until`, as start and length."""
        blocks = {
            block
            for start, length in self.writes[since:until]
            for block in range(start // BLOCK, -(-(start + length) // BLOCK))
        }
        return [(block * BLOCK, BLOCK) for block in sorted(blocks)]


@dataclass
class FakeSnapshot:
    moid: str
    name: str
    content: dict[int, bytes]
    writes: dict[int, int]


@dataclass
class FakeVm:
    moid: str
    name: str
    disks: list[FakeDisk]
    running: bool = True
    tracked: bool = True
    tools: bool = True
    firmware: str = "efi"
    below: bool = False
    """It had a snapshot before: its disks are chains, which no flat file shows."""
    snapshots: list[FakeSnapshot] = field(default_factory=list)
    version: str = "1"
    """Of its settings; another one after each start."""
    tracking: str = "52 de ad be ef"
    config: Any = None
    """Settings to show instead of the usual ones."""

    def settings(self, snapshot: FakeSnapshot | None = None) -> Any:
        """VirtualMachineConfigInfo, now or of a snapshot."""
        if self.config is not None:
            return self.config
        config = usual_config(self.name, self.firmware)
        config.changeTrackingEnabled = self.tracked
        config.changeVersion = self.version
        config.hardware.device += [self._disk(index, disk, snapshot) for index, disk in enumerate(self.disks)]
        return config

    def _disk(self, index: int, disk: FakeDisk, snapshot: FakeSnapshot | None) -> Any:
        writes = snapshot.writes[disk.key] if snapshot else len(disk.writes)
        backing = flat(f"[datastore1] {self.name}/{self.name}{f'_{index}' if index else ''}.vmdk")
        if self.tracked:
            backing.changeId = f"{self.tracking}/{writes}"
        if self.below:
            backing.parent = flat(f"[datastore1] {self.name}/below.vmdk")
        return virtual_disk(disk.key, 1000, index, len(disk.content), backing)


def usual_config(name: str, firmware: str = "efi") -> Any:
    """Debian with a SCSI controller, one NIC and a TPM, without disks."""
    return vim.vm.ConfigInfo(
        name=name,
        uuid="4230c1a5-0f4e-7c6b-9a21-55d0c3b7e9f4",
        guestId="debian12_64Guest",
        guestFullName="Debian GNU/Linux 12 (64-bit)",
        firmware=firmware,
        annotation="Made by the fake",
        template=False,
        bootOptions=vim.vm.BootOptions(efiSecureBootEnabled=firmware == "efi"),
        hardware=vim.vm.VirtualHardware(
            numCPU=2,
            memoryMB=512,
            device=[
                vim.vm.device.ParaVirtualSCSIController(key=1000, busNumber=0, sharedBus="noSharing"),
                vim.vm.device.VirtualTPM(key=11000),
                nic(4000, "VM Network", "00:50:56:be:ef:01"),
            ],
        ),
    )


def nic(key: int, network: str, mac: str) -> Any:
    return vim.vm.device.VirtualVmxnet3(
        key=key,
        macAddress=mac,
        deviceInfo=vim.Description(label=f"Network adapter {key - 3999}", summary=network),
        backing=vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName=network),
    )


def flat(file: str, **more: Any) -> Any:
    return vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=file, diskMode="persistent", **more)


def virtual_disk(key: int, controller: int, unit: int, size: int, backing: Any) -> Any:
    return vim.vm.device.VirtualDisk(
        key=key,
        controllerKey=controller,
        unitNumber=unit,
        capacityInKB=size // 1024,
        capacityInBytes=size,
        backing=backing,
    )


def stream_optimized(content: bytes) -> bytes:
    """A VMDK as an export sends it (VMware, Virtual Disk Format 5.0), grains of 64 KiB; zeros left out."""
    grain, per_table = 128, 512
    capacity = -(-len(content) // SECTOR)
    tables: dict[int, list[int]] = {}
    descriptor = (
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n"
        f'createType="streamOptimized"\nRW {capacity} SPARSE "x.vmdk"\nddb.adapterType = "lsilogic"\n'
    ).encode()
    overhead = 128
    made = bytearray(overhead * SECTOR)
    made[SECTOR : SECTOR + len(descriptor)] = descriptor
    for start in range(0, len(content), grain * SECTOR):
        data = content[start : start + grain * SECTOR].ljust(grain * SECTOR, b"\0")
        if not any(data):
            continue
        number = start // (grain * SECTOR)
        tables.setdefault(number // per_table, [0] * per_table)[number % per_table] = len(made) // SECTOR
        packed = zlib.compress(data)
        made += _padded(struct.pack("<QI", start // SECTOR, len(packed)) + packed)
    directory = [0] * -(-capacity // (grain * per_table))
    for index, entries in sorted(tables.items()):
        made += _marker(4, 1)
        directory[index] = len(made) // SECTOR
        made += struct.pack(f"<{per_table}I", *entries)
    table = _padded(struct.pack(f"<{len(directory)}I", *directory))
    made += _marker(len(table) // SECTOR, 2)
    at = len(made) // SECTOR
    made += table

    def header(directory_at: int) -> bytes:
        fields = struct.pack(
            "<4sIIQQQQIQQQB4sH",
            b"KDMV", 3, 0x30001, capacity, grain, 1, 1, per_table, 0, directory_at, overhead,
            0, b"\n \r\n", 1,
        )  # fmt: skip
        return fields.ljust(SECTOR, b"\0")

    made[:SECTOR] = header(0xFFFFFFFFFFFFFFFF)
    return bytes(made + _marker(1, 3) + header(at) + _marker(0, 0))


def _marker(sectors: int, kind: int) -> bytes:
    return struct.pack("<QII", sectors, 0, kind).ljust(SECTOR, b"\0")


def _padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // SECTOR) * SECTOR, b"\0")


def complete(value: Any) -> Any:
    """With something in every field that the interface requires and a test does not care about."""
    if isinstance(value, list):
        for each in value:
            complete(each)
    elif isinstance(value, DataObject):
        for field_ in value._GetPropertyList():
            held = getattr(value, field_.name)
            if held is not None:
                complete(held)
            elif not field_.flags & F_OPTIONAL:
                setattr(value, field_.name, _anything(field_.type))
    return value


def _anything(kind: Any) -> Any:
    if kind is datetime.datetime:
        return datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    if isinstance(kind, type) and issubclass(kind, ManagedObject):
        return kind("anything-1")
    if isinstance(kind, type) and issubclass(kind, str) and hasattr(kind, "values"):
        return kind(kind.values[0])  # an enumeration
    return complete(kind())
