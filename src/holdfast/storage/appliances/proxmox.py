"""Proxmox VE's `qemu-server/<ID>.conf` (Proxmox VE, qm.conf(5)). Disks are files beside it.

Only the part before the first `[section]` is the machine; what follows are its snapshots.
"""

import re

from holdfast.spec.appliance import Appliance, ApplianceDisk, ApplianceNic, Finding, FirmwareKind, SourceKind
from holdfast.spec.units import KIB
from holdfast.storage.appliances.bounded_xml import damaged, too_large
from holdfast.storage.appliances.reading import (
    MAX_CPUS,
    MAX_MEMORY,
    amount,
    base_name,
    count,
    disk_size,
    guest_os,
    mac_address,
    machine_uuid,
    short,
    warning,
)

LARGEST = 256 * KIB
_LINE = re.compile(r"([a-z][a-z0-9_-]{0,40}):\s*(.*)", re.ASCII)
_DISK = re.compile(r"(scsi|virtio|sata|ide)(\d{1,2})", re.ASCII)
_NIC = re.compile(r"net(\d{1,2})", re.ASCII)
_SIZE = re.compile(r"(\d{1,12})([KMGT]?)", re.ASCII)


def is_proxmox(data: bytes) -> bool:
    """It has lines that no other kind of text here has."""
    head = data[:LARGEST].decode(errors="replace")
    return bool(re.search(r"^(scsi|virtio|sata|ide)\d+: ", head, re.MULTILINE)) and bool(
        re.search(r"^(memory|cores|boot|ostype|scsihw|vmgenid|smbios1): ", head, re.MULTILINE)
    )


def read_proxmox(data: bytes, name: str) -> Appliance:
    """Raises DescriptorTooLarge, DescriptorDamaged, AmountAbsurd."""
    if len(data) > LARGEST:
        raise too_large(name, f"has {len(data)} bytes; {LARGEST} are read")
    settings, comments, snapshots = _lines(data, name)
    findings: list[Finding] = []
    if snapshots:
        findings.append(
            warning("snapshots-not-kept", "snapshots are not brought along, only the present state")
        )
    disks = _disks(settings, findings)
    ostype = settings.get("ostype", "")
    cores = count(settings.get("cores", "1"), MAX_CPUS, "the number of cores")
    sockets = count(settings.get("sockets", "1"), 64, "the number of sockets")
    efi = _options(settings.get("efidisk0", ""))
    uuid = _options(settings.get("smbios1", "")).get("uuid", "")
    uefi = settings.get("bios", "seabios") == "ovmf"
    for key in settings:
        if re.fullmatch(r"(hostpci|usb|mp|virtiofs)\d+", key):
            findings.append(
                warning(
                    "device-not-kept",
                    f"a device of the host ({short(key, 20)}) stays there: it has no counterpart",
                )
            )
    # 512 is what Proxmox takes where nothing is said; newer versions write `current=...`.
    memory = _options(settings.get("memory", "512")).get("", "") or _options(settings["memory"]).get(
        "current", ""
    )
    return Appliance(
        kind=SourceKind.PROXMOX,
        dialect="qemu-server",
        name=short(settings.get("name", ""), 255),
        id=machine_uuid(uuid),
        description=short(comments, 2000),
        os=guest_os(ostype),
        os_name=short(ostype, 40),
        cpus=count(str(cores * sockets), MAX_CPUS, "the number of CPUs"),
        memory=amount(memory, "MiB", MAX_MEMORY, "the memory"),
        firmware=FirmwareKind.UEFI if uefi else FirmwareKind.BIOS,
        secure_boot=uefi and efi.get("pre-enrolled-keys") == "1",
        tpm="tpmstate0" in settings,
        nvram=short(base_name(_volume(efi.get("", "")))) if efi.get("") else None,
        disks=disks,
        nics=_nics(settings, findings),
        files=tuple(each.file for each in disks if each.file),
        findings=tuple(findings),
    )


def _lines(data: bytes, name: str) -> tuple[dict[str, str], str, bool]:
    """Settings, comments, and whether snapshots follow."""
    settings: dict[str, str] = {}
    comments: list[str] = []
    for line in data.decode(errors="replace").splitlines():
        if line.startswith("["):
            return settings, "\n".join(comments), True
        if line.startswith("#"):
            comments.append(line[1:].strip())
        elif line.strip():
            match = _LINE.fullmatch(line.strip())
            if not match:
                raise damaged(name, f"the line {short(line, 60)!r} is no setting")
            settings[match[1]] = match[2].strip()
    if not settings:
        raise damaged(name, "it has no settings")
    return settings, "\n".join(comments), False


def _options(value: str) -> dict[str, str]:
    """`local:100/x.qcow2,size=8G` as `{"": "local:100/x.qcow2", "size": "8G"}`."""
    found: dict[str, str] = {}
    for part in value.split(","):
        key, equals, rest = part.partition("=")
        if equals:
            found[key.strip()] = rest.strip()
        elif part.strip():
            found.setdefault("", part.strip())
    return found


def _volume(text: str) -> str:
    """What stands behind the storage's name."""
    return text.partition(":")[2] or text


def _disks(settings: dict[str, str], findings: list[Finding]) -> tuple[ApplianceDisk, ...]:
    found: dict[str, ApplianceDisk] = {}
    for key, value in settings.items():
        match = _DISK.fullmatch(key)
        if not match:
            continue
        options = _options(value)
        volume = options.get("", "") or options.get("file", "")
        if options.get("media") == "cdrom":
            if volume not in ("none", "cdrom") and "cloudinit" not in volume:
                findings.append(
                    warning(
                        "disc-not-kept", f"the disc {short(base_name(volume), 60)!r} is not brought along"
                    )
                )
            elif "cloudinit" in volume:
                findings.append(
                    warning(
                        "cloud-init-not-kept",
                        "the settings of Proxmox's cloud-init drive are not brought along",
                    )
                )
            continue
        if not volume or volume == "none":
            continue
        size = _SIZE.fullmatch(options.get("size", ""))
        found[key] = ApplianceDisk(
            id=key,
            file=short(base_name(_volume(volume))),
            capacity=disk_size(size[1], size[2] or "byte", key) if size else None,
            bus=match[1],
        )
    first = [key for key in _options(settings.get("boot", "")).get("order", "").split(";") if key in found]
    first += [settings["bootdisk"]] if settings.get("bootdisk") in found and not first else []
    rest = sorted(
        (key for key in found if key not in first), key=lambda key: (key.rstrip("0123456789"), len(key), key)
    )
    return tuple(found[key] for key in dict.fromkeys((*first, *rest)))


def _nics(settings: dict[str, str], findings: list[Finding]) -> tuple[ApplianceNic, ...]:
    nics: list[ApplianceNic] = []
    for key in sorted((key for key in settings if _NIC.fullmatch(key)), key=lambda key: int(key[3:])):
        options = _options(settings[key])
        model = next(
            (name for name in options if mac_address(options[name]) and name not in ("bridge", "tag")), ""
        )
        tag = options.get("tag", "")
        nics.append(
            ApplianceNic(
                id=key,
                network=short(options["bridge"], 255) if options.get("bridge") else None,
                mac=mac_address(options[model]) if model else None,
                model=short(model, 40),
                vlan=int(tag)
                if tag.isascii() and tag.isdigit() and len(tag) < 5 and 1 <= int(tag) <= 4094
                else None,
            )
        )
        address = settings.get(f"ipconfig{key[3:]}")
        if address and "dhcp" not in address:
            findings.append(
                warning(
                    "address-not-kept",
                    f"{key} has the address {short(address, 80)!r} by cloud-init: set it in the guest",
                )
            )
    return tuple(nics)
