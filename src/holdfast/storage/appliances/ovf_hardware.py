"""The VirtualHardwareSection of an OVF descriptor: items of CIM_ResourceAllocationSettingData.

DMTF DSP0243, 8; the resource types are those of CIM_ResourceAllocationSettingData.ResourceType (DSP1041).
"""

from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

from holdfast.spec.appliance import Finding
from holdfast.storage.appliances.bounded_xml import attribute, child, children, local, text
from holdfast.storage.appliances.reading import error, info, short, warning

_CPU, _MEMORY, _IDE, _SCSI, _NIC = "3", "4", "5", "6", "10"
_FLOPPY, _CD, _DVD, _DISK, _OTHER_STORAGE = "14", "15", "16", "17", "20"
_BUSES = {_IDE: "ide", _SCSI: "scsi", _OTHER_STORAGE: "sata"}
_SILENT = {_IDE, _SCSI, _OTHER_STORAGE, "1", "13", "21", "22", "23", "24", _FLOPPY}
"""Controllers, video, USB, keyboard, and what every VM has here or nobody misses."""


@dataclass(frozen=True)
class DiskItem:
    name: str
    disk: str | None
    """Id of a disk of the DiskSection."""
    bus: str


@dataclass(frozen=True)
class NicItem:
    network: str | None
    mac: str
    model: str


@dataclass
class Hardware:
    cpus: str = ""
    memory: str = ""
    memory_units: str = ""
    identifier: str = ""
    disks: list[DiskItem] = field(default_factory=list)
    nics: list[NicItem] = field(default_factory=list)
    tpm: bool = False
    findings: list[Finding] = field(default_factory=list)


def hardware(envelope: Element, system: Element) -> Hardware:
    """What the first hardware section of a system describes, in its default configuration."""
    made = Hardware()
    sections = children(system, "VirtualHardwareSection")
    if not sections:
        made.findings.append(error("no-hardware", "the machine has no description of its hardware"))
        return made
    if len(sections) > 1:
        made.findings.append(
            info("hardware-alternatives", "of several hardware descriptions the first is taken")
        )
    about = child(sections[0], "System")
    made.identifier = text(about, "VirtualSystemIdentifier") if about is not None else ""
    items = _items(sections[0], _configuration(envelope, made))
    controllers = {text(each, "InstanceID"): each for each in items if text(each, "ResourceType") in _BUSES}
    order = {key: at for at, key in enumerate(controllers)}
    disks = [each for each in items if text(each, "ResourceType") == _DISK]
    disks.sort(
        key=lambda each: (order.get(text(each, "Parent"), len(order)), _number(text(each, "AddressOnParent")))
    )
    made.disks = [_disk(item, controllers.get(text(item, "Parent"))) for item in disks]
    for item in items:
        _other(item, made)
    return made


def _configuration(envelope: Element, made: Hardware) -> str | None:
    """The deployment option that counts where nobody chooses (DSP0243, 9.8)."""
    section = child(envelope, "DeploymentOptionSection")
    options = children(section, "Configuration") if section is not None else []
    if not options:
        return None
    chosen = next((each for each in options if attribute(each, "default") in ("true", "1")), options[0])
    name = attribute(chosen, "id") or ""
    made.findings.append(
        info(
            "configuration-chosen",
            f"of {len(options)} configurations the default {short(name, 60)!r} is taken",
        )
    )
    return name


def _items(section: Element, configuration: str | None) -> list[Element]:
    """Those of a configuration; one of its own stands for the general one of the same instance."""
    chosen: dict[str, Element] = {}
    for index, each in enumerate(section):
        if local(each.tag) not in ("Item", "StorageItem", "EthernetPortItem"):
            continue
        if attribute(each, "bound") in ("min", "max"):
            continue
        wanted = (attribute(each, "configuration") or "").split()
        key = text(each, "InstanceID") or f"#{index}"
        if not wanted:
            chosen.setdefault(key, each)
        elif configuration in wanted:
            chosen[key] = each
    return list(chosen.values())


def _disk(item: Element, controller: Element | None) -> DiskItem:
    resource = next((each.text or "" for each in children(item, "HostResource")), "").strip()
    _, found, disk = resource.partition("/disk/")
    if not found and resource.startswith("disk/"):
        disk = resource.removeprefix("disk/")
    bus = ""
    if controller is not None:
        bus = _BUSES[text(controller, "ResourceType")]
        subtype = text(controller, "ResourceSubType").lower()
        if "nvme" in subtype or "nvme" in text(controller, "ElementName").lower():
            bus = "nvme"
        elif "virtio" in subtype:
            bus = "virtio"
    return DiskItem(short(text(item, "ElementName"), 60), disk or None, bus)


def _other(item: Element, made: Hardware) -> None:
    kind, name = text(item, "ResourceType"), short(text(item, "ElementName"), 60)
    subtype = text(item, "ResourceSubType")
    if kind == _CPU:
        made.cpus = made.cpus or text(item, "VirtualQuantity")
    elif kind == _MEMORY:
        made.memory = made.memory or text(item, "VirtualQuantity")
        # 1.0 wrote it in megabytes where nothing is said (DSP0243 1.0, 7.1).
        made.memory_units = made.memory_units or text(item, "AllocationUnits") or "MB"
    elif kind == _NIC:
        network = next((each.text for each in children(item, "Connection") if each.text), None)
        made.nics.append(
            NicItem(
                short(network.strip(), 255) if network else None, text(item, "Address"), short(subtype, 60)
            )
        )
    elif kind in (_CD, _DVD):
        if any("/file/" in (each.text or "") for each in children(item, "HostResource")):
            made.findings.append(
                warning("disc-not-kept", f"the disc in {name!r} is not brought along: import it as an image")
            )
    elif "vtpm" in subtype.lower() or "tpm" in subtype.lower().split("."):
        made.tpm = True
    elif kind == _DISK or kind in _SILENT:
        return
    elif attribute(item, "required") != "false":
        made.findings.append(
            warning("device-not-kept", f"the device {name!r} (type {short(kind, 10)}) has no counterpart")
        )


def _number(digits: str) -> int:
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else 0
