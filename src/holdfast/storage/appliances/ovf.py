"""OVF descriptors (DMTF DSP0243, 1.0 to 2.1) of vSphere, Workstation, ovftool, VirtualBox, Xen and others.

Elements are found by their local names: writers differ in prefixes, in the namespace of attributes and
in the version of the envelope. Nothing that a descriptor names is opened here.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from holdfast.spec.appliance import (
    Appliance,
    ApplianceDisk,
    ApplianceNic,
    Finding,
    Product,
    SourceKind,
)
from holdfast.storage.appliances import ovf_vendors
from holdfast.storage.appliances.bounded_xml import (
    attribute,
    child,
    children,
    damaged,
    local,
    parse_xml,
    text,
)
from holdfast.storage.appliances.ovf_hardware import Hardware, hardware
from holdfast.storage.appliances.reading import (
    MAX_CPUS,
    MAX_MEMORY,
    amount,
    count,
    disk_size,
    error,
    guest_os,
    info,
    mac_address,
    machine_uuid,
    short,
    warning,
)
from holdfast.storage.appliances.refusals import DescriptorAmbiguous, MachineNotThere

_EULA = 256 * 1024  # characters of one licence that are kept
_MOST_EULAS = 16
_KNOWN_SECTIONS = {
    "Info", "Name", "References", "DiskSection", "NetworkSection", "DeploymentOptionSection",
    "VirtualSystem", "VirtualSystemCollection", "Strings", "SharedDiskSection", "OperatingSystemSection",
    "VirtualHardwareSection", "ProductSection", "EulaSection", "AnnotationSection", "StartupSection",
    "ResourceAllocationSection", "InstallSection", "Machine", "BootOrderSection", "IpAssignmentSection",
    "PlacementGroupSection", "PlacementSection", "ScaleOutSection", "EncryptionSection",
}  # fmt: skip


@dataclass(frozen=True)
class _File:
    href: str
    size: int | None
    """Bytes, as it says."""
    gzip: bool
    chunked: bool


@dataclass(frozen=True)
class _Disk:
    id: str
    file: str | None
    """Id of a file."""
    capacity: int
    populated: int | None
    parent: str | None


def read_ovf(data: bytes, name: str, machine: str | None = None) -> Appliance:
    """The machine that a descriptor describes; of several the one that `machine` names, by id or name.

    Raises:
        DescriptorTooLarge, DescriptorUnsafe, DescriptorDamaged: it cannot be read.
        DescriptorAmbiguous, MachineNotThere: which of its machines is not said, or is wrong.
        AmountAbsurd: a size or number in it cannot be.
    """
    envelope = parse_xml(data, name)
    if local(envelope.tag) != "Envelope":
        raise damaged(name, f"it is a document of {local(envelope.tag)!r}, not an OVF envelope")
    system = _choose(envelope, name, machine)
    files, disks = _files(envelope, name), _disks(envelope, name)
    parts = hardware(envelope, system)
    vendor = ovf_vendors.read(envelope, system, data[:4096])
    found, disk_findings = _attached(parts, files, disks)
    nics, nic_findings = _nics(parts, vendor)
    name_text = text(system, "Name") or attribute(system, "id") or ""
    os_name, os_words = _operating_system(system)
    strings = _strings(envelope)
    return Appliance(
        kind=SourceKind.OVF,
        dialect=vendor.dialect,
        name=short(name_text, 255),
        id=machine_uuid(vendor.uuid or parts.identifier or attribute(system, "id") or ""),
        description=_annotation(system),
        os=guest_os(os_words),
        os_name=short(os_name),
        cpus=count(parts.cpus, MAX_CPUS, "the number of CPUs") if parts.cpus else None,
        memory=amount(parts.memory, parts.memory_units, MAX_MEMORY, "the memory") if parts.memory else None,
        firmware=vendor.firmware,
        secure_boot=vendor.secure_boot,
        tpm=vendor.tpm or parts.tpm or None,
        nvram=_nvram(vendor, files),
        firmware_state=vendor.firmware_state,
        disks=found,
        nics=nics,
        eulas=_eulas(envelope, system, strings),
        product=_product(system),
        files=tuple(each.href for each in files.values()),
        findings=(
            *_version(envelope),
            *parts.findings,
            *vendor.findings,
            *disk_findings,
            *nic_findings,
            *_section_findings(envelope, system),
            *_properties(envelope, system),
        ),
    )


def _choose(envelope: Element, name: str, machine: str | None) -> Element:
    systems = list(_systems(envelope))
    names = [short(text(each, "Name") or attribute(each, "id") or "?", 60) for each in systems]
    if not systems:
        raise damaged(name, "it describes no virtual system")
    if machine is not None:
        fitting = [each for each in systems if machine in (attribute(each, "id"), text(each, "Name"))]
        if len(fitting) != 1:
            raise MachineNotThere(
                f"{name!r} has no single machine {machine!r}; it has {', '.join(map(repr, names[:10]))}",
                value=machine,
                cure="Name one of them.",
            )
        return fitting[0]
    if len(systems) > 1:
        raise DescriptorAmbiguous(
            f"{name!r} describes {len(systems)} machines: {', '.join(map(repr, names[:10]))}",
            value=names[:50],
            cure="Say which with --machine NAME, and import them one after the other.",
        )
    return systems[0]


def _systems(element: Element) -> Iterator[Element]:
    for each in element:
        if local(each.tag) == "VirtualSystem":
            yield each
        elif local(each.tag) == "VirtualSystemCollection":
            yield from _systems(each)


def _files(envelope: Element, name: str) -> dict[str, _File]:
    found: dict[str, _File] = {}
    references = child(envelope, "References")
    for each in children(references, "File") if references is not None else []:
        key, href = attribute(each, "id"), attribute(each, "href")
        if not key or not href:
            raise damaged(name, "a File without id or href")
        if key in found:
            raise damaged(name, f"two files with the id {short(key, 60)!r}")
        size = attribute(each, "size") or ""
        found[key] = _File(
            href=short(href),
            size=int(size) if size.isascii() and size.isdigit() and len(size) <= 18 else None,
            gzip=(attribute(each, "compression") or "").lower() == "gzip",
            chunked=bool(attribute(each, "chunkSize")),
        )
    return found


def _disks(envelope: Element, name: str) -> dict[str, _Disk]:
    found: dict[str, _Disk] = {}
    # A capacity may name a property: DSP0243, 9.1.
    properties = {f"${{{key}}}": value for key, value in _property_defaults(envelope).items()}
    for section in (*children(envelope, "DiskSection"), *children(envelope, "SharedDiskSection")):
        for each in (*children(section, "Disk"), *children(section, "SharedDisk")):
            key = attribute(each, "diskId")
            if not key or key in found:
                raise damaged(name, f"two disks with the id {key!r}" if key else "a Disk without an id")
            units = attribute(each, "capacityAllocationUnits") or "byte"
            populated = attribute(each, "populatedSize") or ""
            capacity = attribute(each, "capacity") or ""
            found[key] = _Disk(
                id=key,
                file=attribute(each, "fileRef"),
                capacity=disk_size(properties.get(capacity, capacity), units, key),
                populated=int(populated)
                if populated.isascii() and populated.isdigit() and len(populated) <= 18
                else None,
                parent=attribute(each, "parentRef"),
            )
    return found


def _property_defaults(envelope: Element) -> dict[str, str]:
    """By `class.key.instance`, of which class and instance may be missing (DSP0243, 9.5.1)."""
    found: dict[str, str] = {}
    for section in (each for each in envelope.iter() if local(each.tag) == "ProductSection"):
        class_, instance = attribute(section, "class"), attribute(section, "instance")
        for each in children(section, "Property"):
            parts = (class_, attribute(each, "key"), instance)
            found[".".join(part for part in parts if part)] = attribute(each, "value") or ""
    return found


def _attached(
    parts: Hardware, files: dict[str, _File], disks: dict[str, _Disk]
) -> tuple[tuple[ApplianceDisk, ...], list[Finding]]:
    found: list[ApplianceDisk] = []
    findings: list[Finding] = []
    for item in parts.disks:
        disk = disks.get(item.disk or "")
        if disk is None:
            findings.append(
                error("disk-not-described", f"disk drive {item.name!r} names a disk that is not described")
            )
            continue
        file = files.get(disk.file or "")
        if disk.file is not None and file is None:
            findings.append(
                error("disk-file-unknown", f"disk {short(disk.id, 60)!r} names a file that is not listed")
            )
            continue
        if disk.parent is not None:
            findings.append(
                error(
                    "disk-has-parent",
                    f"disk {short(disk.id, 60)!r} is only the changes to another disk of the archive",
                )
            )
        if file is not None and file.chunked:
            findings.append(
                error(
                    "disk-in-chunks",
                    f"the file {file.href!r} was cut into pieces; join them before the import",
                )
            )
        found.append(
            ApplianceDisk(
                id=short(disk.id, 255),
                file=file.href if file else None,
                file_size=file.size if file else None,
                capacity=disk.capacity,
                populated=disk.populated,
                bus=item.bus,
                gzip=bool(file and file.gzip),
            )
        )
    for left in disks.keys() - {item.disk for item in parts.disks}:
        findings.append(
            warning("disk-not-attached", f"disk {short(left, 60)!r} is attached to no machine here")
        )
    return tuple(found), sorted(findings, key=lambda each: each.text)


def _nics(parts: Hardware, vendor: ovf_vendors.Vendor) -> tuple[tuple[ApplianceNic, ...], list[Finding]]:
    found, findings = [], []
    for index, item in enumerate(parts.nics):
        written = item.mac or (vendor.macs[index] if index < len(vendor.macs) else "")
        mac = mac_address(written) if written else None
        if written and mac is None:
            findings.append(
                warning(
                    "mac-not-usable", f"{short(written, 40)!r} is no MAC address of one network interface"
                )
            )
        found.append(ApplianceNic(id=f"nic{index}", network=item.network, mac=mac, model=item.model))
    return tuple(found), findings


def _nvram(vendor: ovf_vendors.Vendor, files: dict[str, _File]) -> str | None:
    if vendor.nvram and vendor.nvram.startswith("ovf:/file/"):
        named = files.get(vendor.nvram.removeprefix("ovf:/file/"))
        return named.href if named else None
    return vendor.nvram or next(
        (each.href for each in files.values() if each.href.lower().endswith(".nvram")), None
    )


def _operating_system(system: Element) -> tuple[str, str]:
    """How people call it, and all the words that tell its family (CIM_OperatingSystem.OsType is a number)."""
    section = child(system, "OperatingSystemSection")
    if section is None:
        return "", ""
    description, kind = text(section, "Description"), attribute(section, "osType") or ""
    vbox = text(section, "OSType")
    return description or kind or vbox, f"{description} {kind} {vbox}"


def _annotation(system: Element) -> str:
    section = child(system, "AnnotationSection")
    return short(text(section, "Annotation"), 2000) if section is not None else ""


def _strings(envelope: Element) -> dict[str, str]:
    return {
        attribute(each, "msgid") or "": each.text or ""
        for bundle in reversed(children(envelope, "Strings"))
        for each in children(bundle, "Msg")
    }


def _eulas(envelope: Element, system: Element, strings: dict[str, str]) -> tuple[str, ...]:
    found = []
    for owner in (envelope, *children(envelope, "VirtualSystemCollection"), system):
        for section in children(owner, "EulaSection"):
            licence = child(section, "License")
            if licence is None:
                continue
            words = strings.get(attribute(licence, "msgid") or "", "") or licence.text or ""
            if words.strip():
                found.append(words.strip()[:_EULA])
    return tuple(found[:_MOST_EULAS])


def _product(system: Element) -> Product | None:
    for section in children(system, "ProductSection"):
        made = Product(
            name=short(text(section, "Product")),
            vendor=short(text(section, "Vendor")),
            version=short(text(section, "FullVersion") or text(section, "Version")),
        )
        if made != Product():
            return made
    return None


def _version(envelope: Element) -> list[Finding]:
    namespace = envelope.tag.partition("}")[0].lstrip("{")
    if re.search(r"/ovf/envelope/[12]$|/schema/ovf/1/envelope$", namespace):
        return []
    return [
        warning(
            "ovf-version-unknown", f"the namespace {short(namespace, 100)!r} is of no known version of OVF"
        )
    ]


def _section_findings(envelope: Element, system: Element) -> list[Finding]:
    findings = []
    for section in (*envelope, *system):
        what = local(section.tag)
        if what == "EncryptionSection":
            findings.append(
                error("encrypted", "files of the archive are encrypted (OVF 2, EncryptionSection)")
            )
        elif what == "InstallSection":
            findings.append(
                warning("install-not-finished", "the machine finishes its installation at its first start")
            )
        elif what not in _KNOWN_SECTIONS and attribute(section, "required") != "false":
            findings.append(
                warning("section-not-read", f"the section {short(what, 60)!r} is not known and was not read")
            )
    return findings


def _properties(envelope: Element, system: Element) -> list[Finding]:
    """Values for the guest that other platforms hand over in an environment file (DSP0243, 9.5)."""
    keys = [
        short(attribute(each, "key") or "?", 60)
        for section in children(system, "ProductSection")
        for each in children(section, "Property")
    ]
    findings = []
    if keys:
        shown = ", ".join(keys[:12]) + (", ..." if len(keys) > 12 else "")
        findings.append(
            warning(
                "properties-not-kept",
                f"the guest is configured by {len(keys)} properties ({shown}), which are not handed over:"
                " set addresses, names and passwords in the guest",
            )
        )
    assignment = child(system, "IpAssignmentSection")
    if assignment is None:
        assignment = child(envelope, "IpAssignmentSection")
    if assignment is not None:
        schemes = short(attribute(assignment, "schemes") or "", 60)
        findings.append(
            info("ip-assignment", f"the appliance can have its addresses by {schemes or 'any way'}")
        )
    return findings
