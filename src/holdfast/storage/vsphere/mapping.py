"""From a VM's settings in vSphere to an appliance. Pure: what the server said is handed in.

The types are those of the vSphere Web Services API (VirtualMachineConfigInfo, VirtualDevice).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyVmomi import vim

from holdfast.spec.appliance import (
    Appliance,
    ApplianceDisk,
    ApplianceNic,
    Finding,
    FirmwareKind,
    SourceKind,
)
from holdfast.spec.units import KIB, MIB
from holdfast.storage.appliances.reading import (
    error,
    guest_os,
    info,
    mac_address,
    short,
    warning,
)
from holdfast.storage.formats.reading import MAX_DISK

_MOST_DEVICES = 256
_BUSES: tuple[tuple[str, str], ...] = (
    ("VirtualSCSIController", "scsi"),
    ("VirtualIDEController", "ide"),
    ("VirtualAHCIController", "sata"),
    ("VirtualSATAController", "sata"),
    ("VirtualNVMEController", "nvme"),
)
_BUS_ORDER = ("ide", "scsi", "sata", "nvme", "")
_LOST: tuple[tuple[str, str], ...] = (
    ("VirtualPCIPassthrough", "a passed-through device"),
    ("VirtualSriovEthernetCard", "an SR-IOV network interface"),
    ("VirtualUSB", "a USB device"),
    ("VirtualSerialPort", "a serial port"),
    ("VirtualParallelPort", "a parallel port"),
    ("VirtualFloppy", "a floppy drive"),
    ("VirtualSoundCard", "a sound card"),
    ("VirtualPrecisionClock", "a precision clock"),
)


@dataclass(frozen=True)
class Described:
    """What is known of a VM."""

    config: Any
    """VirtualMachineConfigInfo."""
    running: bool
    tools: bool
    """VMware Tools run in the guest."""
    networks: Mapping[str, str] = field(default_factory=dict)
    """Names by the key of a distributed port group or the id of an opaque network."""
    vlans: Mapping[str, int] = field(default_factory=dict)
    """By the key of a distributed port group."""
    snapshots: bool = False
    committed: Mapping[int, int] = field(default_factory=dict)
    """Bytes on its datastore, by the key of a disk."""


def disk_id(key: int) -> str:
    """How the appliance names the disk of a device key."""
    return f"disk-{key}"


def capacity(device: Any) -> int:
    """Bytes of a VirtualDisk."""
    size = int(device.capacityInBytes or (device.capacityInKB or 0) * KIB)
    return max(0, min(size, MAX_DISK))


def to_appliance(vm: Described, warm: bool) -> Appliance:
    """`warm`: it is to be copied while it runs."""
    config = vm.config
    devices = list(config.hardware.device or ())[:_MOST_DEVICES]
    boot = config.bootOptions
    return Appliance(
        kind=SourceKind.VSPHERE,
        dialect="vsphere",
        name=short(config.name or "", 255),
        id=_uuid(config.uuid),
        description=short(config.annotation or "", 1000),
        os=guest_os(f"{config.guestId or ''} {config.guestFullName or ''}"),
        os_name=short(config.guestFullName or config.guestId or "", 128),
        cpus=config.hardware.numCPU or None,
        memory=(config.hardware.memoryMB or 0) * MIB or None,
        firmware=_firmware(config.firmware),
        secure_boot=bool(boot.efiSecureBootEnabled) if boot else None,
        tpm=any(_is(device, "VirtualTPM") for device in devices),
        disks=tuple(_disks(devices, vm)),
        nics=tuple(_nic(device, vm) for device in devices if _is(device, "VirtualEthernetCard")),
        findings=(*_power(vm, warm), *_disk_findings(devices, vm, warm), *_devices(devices, config)),
    )


def _is(device: Any, name: str) -> bool:
    """Whether a device is of a kind, or one derived from it."""
    return any(each.__name__.endswith(f".{name}") for each in type(device).__mro__)


def _uuid(text: str | None) -> str | None:
    plain = (text or "").lower()
    digits = plain.replace("-", "")
    fits = len(digits) == 32 and all(each in "0123456789abcdef" for each in digits)
    return plain if fits and len(plain) == 36 else None


def _firmware(word: str | None) -> FirmwareKind | None:
    return {"efi": FirmwareKind.UEFI, "bios": FirmwareKind.BIOS}.get(word or "")


def _bus_of(controller: Any) -> str:
    return next((bus for name, bus in _BUSES if _is(controller, name)), "")


def _virtual_disks(devices: list[Any]) -> list[Any]:
    return [device for device in devices if isinstance(device, vim.vm.device.VirtualDisk)]


def _disks(devices: list[Any], vm: Described) -> list[ApplianceDisk]:
    """In the order in which vSphere's firmware counts them: by bus, controller and unit."""
    controllers = {device.key: device for device in devices}

    def place(disk: Any) -> tuple[int, int, int]:
        controller = controllers.get(disk.controllerKey)
        bus = _BUS_ORDER.index(_bus_of(controller))
        return bus, getattr(controller, "busNumber", 0) or 0, disk.unitNumber or 0

    return [
        ApplianceDisk(
            id=disk_id(disk.key),
            file=short(str(getattr(disk.backing, "fileName", "") or disk_id(disk.key)), 512),
            capacity=capacity(disk),
            populated=min(vm.committed.get(disk.key, 0), capacity(disk)) or None,
            bus=_bus_of(controllers.get(disk.controllerKey)),
        )
        for disk in sorted(_virtual_disks(devices), key=place)
    ]


def _nic(device: Any, vm: Described) -> ApplianceNic:
    backing = device.backing
    port = getattr(backing, "port", None)
    key = getattr(port, "portgroupKey", None) or getattr(backing, "opaqueNetworkId", None) or ""
    network = vm.networks.get(key) or getattr(backing, "deviceName", None) or key or None
    label = device.deviceInfo.label if device.deviceInfo else f"device {device.key}"
    return ApplianceNic(
        id=short(label, 64),
        network=short(network, 80) if network else None,
        mac=mac_address(device.macAddress or ""),
        model=type(device).__name__.rpartition(".")[2].removeprefix("Virtual"),
        vlan=vm.vlans.get(key),
    )


def _power(vm: Described, warm: bool) -> list[Finding]:
    found: list[Finding] = []
    tracked = bool(vm.config.changeTrackingEnabled)
    if vm.running and not warm:
        found.append(
            error(
                "vsphere-vm-on",
                "the VM runs there: shut it down, or import it while it runs with --warm",
            )
        )
    if warm and not tracked:
        found.append(
            error(
                "change-tracking-off",
                "changed block tracking is off, so later rounds could not tell what to bring: set ctkEnabled"
                " for the VM and each disk (scsiX:Y.ctkEnabled) there, then stop and start it",
            )
        )
    elif not warm:
        found.append(
            info(
                "change-tracking-on" if tracked else "change-tracking-off",
                "changed block tracking is on: with --warm the VM could run on while it is copied"
                if tracked
                else "changed block tracking is off: the VM is copied while it is off",
            )
        )
    if warm and vm.running and not vm.tools:
        found.append(
            error(
                "tools-not-running",
                "VMware Tools do not run in the guest, so it could not be shut down for the last round",
            )
        )
    if vm.snapshots:
        found.append(
            warning(
                "snapshots-not-kept",
                "the VM has snapshots; only its present state is brought over"
                + (", and each round reads the disks whole: remove them for a fast one" if warm else ""),
            )
        )
    if vm.config.template:
        found.append(info("is-template", "it is a template there; here it becomes a VM"))
    return found


def _disk_findings(devices: list[Any], vm: Described, warm: bool) -> list[Finding]:
    found: list[Finding] = []
    for disk in _virtual_disks(devices):
        name, backing = disk_id(disk.key), disk.backing
        mode = str(getattr(backing, "diskMode", "") or "")
        if getattr(backing, "keyId", None) is not None:
            found.append(error("disk-encrypted", f"{name} is encrypted there: decrypt it first"))
        if int(disk.capacityInBytes or 0) > MAX_DISK:
            found.append(error("disk-size-absurd", f"{name} is said to have {disk.capacityInBytes} bytes"))
        if getattr(backing, "compatibilityMode", None) == "physicalMode":
            found.append(error("disk-raw-device", f"{name} is a raw device in physical mode; it has no file"))
        if mode.startswith("independent") and warm:
            found.append(
                error(
                    "disk-independent", f"{name} is independent ({mode}): no snapshot holds it, --warm cannot"
                )
            )
        if mode in ("nonpersistent", "independent_nonpersistent"):
            found.append(
                warning("disk-not-persistent", f"{name} forgets changes at power-off; here it keeps them")
            )
        if str(getattr(backing, "sharing", "") or "sharingNone") not in ("sharingNone", "None"):
            found.append(
                warning("disk-shared", f"{name} is shared with other VMs; here it is this one's alone")
            )
    return found


def _devices(devices: list[Any], config: Any) -> list[Finding]:
    lost: list[str] = []
    for device in devices:
        for name, words in _LOST:
            if _is(device, name) and words not in lost and not _is(device, "VirtualUSBController"):
                lost.append(words)
    found = [warning("device-lost", f"{words} is not brought over") for words in lost]
    if getattr(config, "keyId", None) is not None and not any(_is(each, "VirtualTPM") for each in devices):
        found.append(
            warning("configuration-encrypted", "the VM's settings are encrypted there; here they are not")
        )
    return found
