"""libvirt's domain XML (libvirt, formatdomain), as `virsh dumpxml` writes it. Disks are files beside it."""

from xml.etree.ElementTree import Element

from holdfast.spec.appliance import Appliance, ApplianceDisk, ApplianceNic, Finding, FirmwareKind, SourceKind
from holdfast.storage.appliances.bounded_xml import (
    attribute,
    child,
    children,
    damaged,
    local,
    parse_xml,
    text,
)
from holdfast.storage.appliances.reading import (
    MAX_CPUS,
    MAX_MEMORY,
    amount,
    base_name,
    count,
    error,
    guest_os,
    mac_address,
    machine_uuid,
    short,
    warning,
)

_UNITS = {
    "": "KiB", "b": "byte", "bytes": "byte", "k": "KiB", "KiB": "KiB", "M": "MiB", "MiB": "MiB",
    "G": "GiB", "GiB": "GiB", "T": "TiB", "TiB": "TiB",
    "KB": "byte * 10^3", "MB": "byte * 10^6", "GB": "byte * 10^9", "TB": "byte * 10^12",
}  # fmt: skip
_PASSED = ("hostdev", "filesystem", "shmem")


def read_libvirt(data: bytes, name: str) -> Appliance:
    """Raises DescriptorTooLarge, DescriptorUnsafe, DescriptorDamaged, AmountAbsurd."""
    root = parse_xml(data, name)
    if local(root.tag) != "domain":
        raise damaged(name, f"it is a document of {local(root.tag)!r}, not a domain of libvirt")
    devices = child(root, "devices")
    parts = list(devices) if devices is not None else []
    start, findings = child(root, "os"), list[Finding]()
    firmware, secure, nvram = _firmware(start)
    if attribute(root, "type") in ("xen", "lxc"):
        findings.append(
            error("not-a-machine", f"a domain of type {attribute(root, 'type')!r} does not start by firmware")
        )
    disks = _disks(parts, findings)
    os_words = " ".join(
        value for each in root.iter() if local(each.tag) == "os" for value in each.attrib.values()
    )
    for each in parts:
        if local(each.tag) in _PASSED:
            findings.append(
                warning(
                    "device-not-kept",
                    f"a device of the host ({local(each.tag)}) stays there: it has no counterpart",
                )
            )
    memory = child(root, "memory")
    units = _UNITS.get(attribute(memory, "unit") or "", "?") if memory is not None else ""
    cpus = text(root, "vcpu")
    return Appliance(
        kind=SourceKind.LIBVIRT,
        dialect=short(attribute(root, "type") or "", 20),
        name=short(text(root, "name"), 255),
        id=machine_uuid(text(root, "uuid")),
        description=short(text(root, "description"), 2000),
        os=guest_os(os_words),
        os_name=short(os_words, 100),
        cpus=count(cpus, MAX_CPUS, "the number of CPUs") if cpus else None,
        memory=amount(memory.text or "", units, MAX_MEMORY, "the memory") if memory is not None else None,
        firmware=firmware,
        secure_boot=secure,
        tpm=any(local(each.tag) == "tpm" for each in parts),
        nvram=nvram,
        disks=disks,
        nics=_nics(parts, findings),
        files=tuple(each.file for each in disks if each.file),
        findings=tuple(findings),
    )


def _firmware(start: Element | None) -> tuple[FirmwareKind, bool, str | None]:
    if start is None:
        return FirmwareKind.BIOS, False, None
    loader, store = child(start, "loader"), child(start, "nvram")
    uefi = attribute(start, "firmware") == "efi" or (
        loader is not None and (attribute(loader, "type") == "pflash" or store is not None)
    )
    secure = loader is not None and attribute(loader, "secure") == "yes"
    features = child(start, "firmware")
    for each in children(features, "feature") if features is not None else []:
        if attribute(each, "name") == "secure-boot":
            secure = attribute(each, "enabled") == "yes"
    nvram = (
        base_name((store.text or "").strip()) if store is not None and (store.text or "").strip() else None
    )
    kind = FirmwareKind.UEFI if uefi else FirmwareKind.BIOS
    return kind, secure, short(nvram) if nvram else None


def _disks(parts: list[Element], findings: list[Finding]) -> tuple[ApplianceDisk, ...]:
    found: list[tuple[int, ApplianceDisk]] = []
    for each in (part for part in parts if local(part.tag) == "disk"):
        source, target = child(each, "source"), child(each, "target")
        name = attribute(target, "dev") if target is not None else None
        device = attribute(each, "device") or "disk"
        where = ""
        if source is not None:
            where = next(
                (value for key in ("file", "dev", "name", "volume") if (value := attribute(source, key))), ""
            )
        if device in ("cdrom", "floppy"):
            if where and device == "cdrom":
                findings.append(
                    warning("disc-not-kept", f"the disc {short(base_name(where), 60)!r} is not brought along")
                )
            continue
        if not where:
            findings.append(error("disk-not-described", f"the disk {name!r} names no file"))
            continue
        if child(each, "encryption") is not None or (
            source is not None and child(source, "encryption") is not None
        ):
            findings.append(error("encrypted", f"the disk {name!r} is encrypted by libvirt"))
        boot = child(each, "boot")
        order = attribute(boot, "order") if boot is not None else None
        rank = int(order) if order and order.isascii() and order.isdigit() and len(order) < 6 else 1_000_000
        disk = ApplianceDisk(
            id=short(name or f"disk{len(found)}", 60),
            file=short(base_name(where)),
            bus=short((attribute(target, "bus") or "") if target is not None else "", 20),
        )
        found.append((rank, disk))
    # Sorting is stable: without a boot order it is the order in which they stand.
    return tuple(disk for _, disk in sorted(found, key=lambda pair: pair[0]))


def _nics(parts: list[Element], findings: list[Finding]) -> tuple[ApplianceNic, ...]:
    nics: list[ApplianceNic] = []
    for each in (part for part in parts if local(part.tag) == "interface"):
        source, mac, model, vlan = (child(each, name) for name in ("source", "mac", "model", "vlan"))
        network = None
        if source is not None:
            network = next(
                (
                    value
                    for key in ("network", "bridge", "dev", "portgroup")
                    if (value := attribute(source, key))
                ),
                None,
            )
        written = (attribute(mac, "address") or "") if mac is not None else ""
        address = mac_address(written) if written else None
        if written and address is None:
            findings.append(
                warning("mac-not-usable", f"{short(written, 40)!r} is no MAC address of one interface")
            )
        tag = child(vlan, "tag") if vlan is not None else None
        number = (attribute(tag, "id") or "") if tag is not None else ""
        nics.append(
            ApplianceNic(
                id=f"nic{len(nics)}",
                network=short(network, 255) if network else None,
                mac=address,
                model=short((attribute(model, "type") or "") if model is not None else "", 40),
                vlan=_vlan(number),
            )
        )
    return tuple(nics)


def _vlan(number: str) -> int | None:
    fits = number.isascii() and number.isdigit() and len(number) <= 4 and 1 <= int(number) <= 4094
    return int(number) if fits else None
