"""Hyper-V exports: `Virtual Machines/<GUID>.vmcx` (2016 and later) or `.xml` (before), and their VHDX files.

Both hold one tree of keys; what it holds is documented for neither, so what cannot be found is said.
"""

import re
from collections.abc import Mapping
from xml.etree.ElementTree import Element

from holdfast.spec.appliance import Appliance, ApplianceDisk, ApplianceNic, Finding, FirmwareKind, SourceKind
from holdfast.storage.appliances.bounded_xml import attribute, damaged, local, parse_xml
from holdfast.storage.appliances.reading import (
    MAX_CPUS,
    MAX_MEMORY,
    amount,
    base_name,
    count,
    error,
    mac_address,
    machine_uuid,
    short,
    warning,
)
from holdfast.storage.appliances.vmcx import Value, read_vmcx

_DRIVE = re.compile(r"(.*/)?controller(\d+)/drive(\d+)/(pathname|type)$", re.ASCII)
_NIC_MAC = re.compile(r"(.*/)?([^/]+)/macaddress$", re.ASCII)
_DISKS = (".vhdx", ".vhd", ".avhdx", ".avhd", ".vhds")
_GUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


def read_hyperv(data: bytes, name: str) -> Appliance:
    """The machine of a `.vmcx` file. Raises DescriptorTooLarge, DescriptorDamaged, AmountAbsurd."""
    found = read_vmcx(data, name)
    partly = []
    if found.partly:
        partly.append(
            warning("settings-read-partly", "some settings of the VMCX file stand where they cannot be read")
        )
    return _appliance(found.values, name, "vmcx", tuple(partly))


def read_hyperv_xml(data: bytes, name: str) -> Appliance:
    """The machine of an `.xml` file (Windows Server 2008 to 2012 R2). Raises as `parse_xml`, AmountAbsurd."""
    root = parse_xml(data, name)
    if local(root.tag).lower() != "configuration":
        raise damaged(name, f"it is a document of {local(root.tag)!r}, not a configuration of Hyper-V")
    values: dict[str, Value] = {}
    _collect(root, "configuration", values)
    return _appliance(values, name, "xml", ())


def _collect(element: Element, path: str, values: dict[str, Value]) -> None:
    for each in element:
        here = f"{path}/{local(each.tag).lower()}"
        kind, words = attribute(each, "type") or "", (each.text or "").strip()
        if kind == "bool":
            values[here] = words.lower() in ("true", "1")
        elif kind == "integer":
            values[here] = int(words) if re.fullmatch(r"-?\d{1,18}", words, re.ASCII) else 0
        elif kind == "string":
            values[here] = words
        _collect(each, here, values)


def _appliance(
    values: Mapping[str, Value], name: str, dialect: str, findings: tuple[Finding, ...]
) -> Appliance:
    disks, disk_findings = _disks(values)
    nics = _nics(values)
    cpus = _named(values, "settings/processors/count") or _named(values, "processors/count")
    memory = _named(values, "memory/bank/size") or _named(values, "memory/bank/limit")
    secure, tpm = _by_word(values, "securebootenabled"), _by_word(values, "tpmenabled", "vtpmenabled")
    generation = _named(values, "properties/subtype")
    firmware = None
    if generation is not None:
        firmware = FirmwareKind.UEFI if generation == 1 else FirmwareKind.BIOS
    unread = [
        what
        for what, value in (
            ("CPUs", cpus),
            ("memory", memory),
            ("generation", generation),
            ("Secure Boot", secure),
        )
        if value is None
    ]
    more = [
        warning(
            "settings-not-found",
            f"the configuration does not say, or not where it is known: {', '.join(unread)}",
        )
    ]
    guid = _GUID.search(name.lower())
    return Appliance(
        kind=SourceKind.HYPER_V,
        dialect=dialect,
        name=short(str(_named(values, "properties/name") or ""), 255),
        id=machine_uuid(guid[0]) if guid else None,
        cpus=count(str(cpus), MAX_CPUS, "the number of CPUs") if cpus is not None else None,
        memory=amount(str(memory), "byte * 2^20", MAX_MEMORY, "the memory") if memory is not None else None,
        firmware=firmware,
        secure_boot=bool(secure) if secure is not None else None,
        tpm=bool(tpm) if tpm is not None else None,
        disks=disks,
        nics=nics,
        files=tuple(each.file for each in disks if each.file),
        findings=(*findings, *(more if unread else ()), *disk_findings),
    )


def _named(values: Mapping[str, Value], ending: str) -> Value | None:
    return next((values[path] for path in sorted(values) if path.endswith(ending)), None)


def _by_word(values: Mapping[str, Value], *words: str) -> Value | None:
    """By the last part of a path, however it is spelled."""
    for path in sorted(values):
        if re.sub(r"[^a-z]", "", path.rpartition("/")[2]) in words:
            return values[path]
    return None


def _disks(values: Mapping[str, Value]) -> tuple[tuple[ApplianceDisk, ...], list[Finding]]:
    found: dict[tuple[int, str, int], str] = {}
    findings = []
    for path, value in values.items():
        match = _DRIVE.fullmatch(path)
        if match and match[4] == "pathname" and isinstance(value, str) and value.strip():
            file = base_name(value.strip())
            if file.lower().endswith(_DISKS):
                found[int(match[2][:6]), match[1] or "", int(match[3][:6])] = short(file)
            elif file.lower().endswith(".iso"):
                findings.append(
                    warning("disc-not-kept", f"the disc {short(file, 60)!r} is not brought along")
                )
    disks = tuple(
        ApplianceDisk(id=f"controller{key[0]}/drive{key[2]}", file=found[key], bus="scsi")
        for key in sorted(found)
    )
    findings += [
        error(
            "disk-has-parent",
            f"{disk.file!r} holds only changes to another disk: merge its checkpoints first",
        )
        for disk in disks
        if disk.file and disk.file.lower().endswith((".avhdx", ".avhd"))
    ]
    return disks, findings


def _nics(values: Mapping[str, Value]) -> tuple[ApplianceNic, ...]:
    nics: list[ApplianceNic] = []
    for path in sorted(values):
        match = _NIC_MAC.fullmatch(path)
        if not match:
            continue
        folder = f"{match[1] or ''}{match[2]}/"
        fixed = values.get(f"{folder}ismacaddressstatic")
        written = mac_address(str(values[path]))
        network = values.get(f"{folder}altswitchname") or values.get(f"{folder}switchname") or None
        nics.append(
            ApplianceNic(
                id=f"nic{len(nics)}",
                network=short(str(network), 255) if network else None,
                mac=written,
                model="dynamic address" if fixed is False else "",
            )
        )
    return tuple(nics)
