"""What each vendor adds to OVF: firmware, Secure Boot, TPM and addresses stand in no common place.

VMware       vmw:Config and vmw:ExtraConfig of the hardware section, by key
VirtualBox   vbox:Machine, the machine's own settings (VirtualBox, VirtualBox-settings.xsd)
Xen          VirtualSystemOtherConfigurationData: HVM_boot_params, platform; Xen Orchestra: nothing
"""

import re
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

from holdfast.spec.appliance import Finding, FirmwareKind
from holdfast.storage.appliances.bounded_xml import attribute, child, children, local, text
from holdfast.storage.appliances.reading import error, short, warning
from holdfast.storage.ovf_writer import STATE_KEY

_VBOX = "virtualbox.org/ovf/machine"
_VMWARE = "vmware.com/schema/ovf"
_YES = ("true", "1", "yes")


@dataclass
class Vendor:
    dialect: str = ""
    firmware: FirmwareKind | None = None
    secure_boot: bool | None = None
    tpm: bool = False
    nvram: str | None = None
    """A file's name, or `ovf:/file/ID`."""
    firmware_state: str | None = None
    """A file's name; ours."""
    uuid: str = ""
    macs: list[str] = field(default_factory=list)
    """Of the network interfaces in their order, where items have none."""
    findings: list[Finding] = field(default_factory=list)


def read(envelope: Element, system: Element, head: bytes) -> Vendor:
    """`head`: the first bytes of the file, where writers sign with a comment."""
    made = Vendor()
    machine = next((each for each in system if local(each.tag) == "Machine" and _VBOX in each.tag), None)
    section = child(system, "VirtualHardwareSection")
    about = child(section, "System") if section is not None else None
    type_ = text(about, "VirtualSystemType").lower() if about is not None else ""
    if machine is not None:
        made.dialect = "virtualbox"
        _virtualbox(machine, made)
    elif (
        "xen" in type_
        or "citrix" in " ".join(each.tag for each in envelope).lower()
        or b"citrix" in head.lower()
    ):
        made.dialect = "xen"
        _xen(section, made)
    elif b"xen orchestra" in head.lower():
        made.dialect = "xen"  # it writes a type of VMware's, and nothing of the firmware
    elif "virtualbox" in type_:
        made.dialect, made.firmware = "virtualbox", FirmwareKind.BIOS
    elif type_.startswith("vmx-") or b"vmware" in head.lower() or _has_vmware(section):
        _vmware(section, head, made)
    return made


def _has_vmware(section: Element | None) -> bool:
    return section is not None and any(_VMWARE in each.tag for each in section)


def _settings(section: Element | None) -> dict[str, str]:
    if section is None:
        return {}
    return {
        (attribute(each, "key") or "").lower(): (attribute(each, "value") or "").strip()
        for each in section
        if local(each.tag) in ("Config", "ExtraConfig")
    }


def _vmware(section: Element | None, head: bytes, made: Vendor) -> None:
    settings = _settings(section)
    made.dialect = "vsphere"
    if b"ovftool" in head.lower():
        made.dialect = "ovftool"
    if settings.get("virtualhw.productcompatibility", "").lower() == "hosted":
        made.dialect = "workstation"
    made.firmware = FirmwareKind.UEFI if settings.get("firmware", "").lower() == "efi" else FirmwareKind.BIOS
    secure = settings.get("bootoptions.efisecurebootenabled", settings.get("uefi.secureboot.enabled", ""))
    made.secure_boot = secure.lower() in _YES
    made.tpm = settings.get("vtpm.present", "").lower() in _YES
    made.nvram = settings.get("nvram") or None
    made.firmware_state = settings.get(STATE_KEY.lower()) or None
    made.uuid = re.sub(r"[^0-9a-f]", "", settings.get("uuid.bios", "").lower())
    if len(made.uuid) == 32:
        at = made.uuid
        made.uuid = f"{at[:8]}-{at[8:12]}-{at[12:16]}-{at[16:20]}-{at[20:]}"
    if any(key.startswith(("pcipassthru", "sriov")) for key in settings):
        made.findings.append(
            warning("device-not-kept", "a device of the other host that was passed through stays there")
        )


def _virtualbox(machine: Element, made: Vendor) -> None:
    made.uuid = attribute(machine, "uuid") or ""
    parts = child(machine, "Hardware")
    made.firmware = FirmwareKind.BIOS
    if parts is None:
        return
    firmware = child(parts, "Firmware")
    if firmware is not None and (attribute(firmware, "type") or "").upper().startswith("EFI"):
        made.firmware = FirmwareKind.UEFI
    for each in (parts, *(child(parts, name) for name in ("BIOS", "Firmware"))):
        if each is None:
            continue
        store, tpm, secure = (
            child(each, "NVRAM"),
            child(each, "TrustedPlatformModule"),
            child(each, "SecureBoot"),
        )
        if tpm is not None and (attribute(tpm, "type") or "").lower() not in ("", "none"):
            made.tpm = True
        if store is not None:
            made.nvram = attribute(store, "path") or made.nvram
            secure = secure if secure is not None else child(store, "SecureBoot")
        if secure is not None:
            made.secure_boot = (attribute(secure, "enabled") or "").lower() in _YES
    network = child(parts, "Network")
    adapters = children(network, "Adapter") if network is not None else []
    made.macs = [
        attribute(each, "MACAddress") or ""
        for each in adapters
        if (attribute(each, "enabled") or "").lower() in _YES
    ]
    if child(machine, "Snapshot") is not None:
        made.findings.append(
            warning("snapshots-not-kept", "snapshots are not brought along, only the present state")
        )
    if "encrypt" in " ".join(local(each.tag).lower() for each in machine.iter()):
        made.findings.append(
            error("encrypted", "the machine is encrypted by VirtualBox: decrypt it before the export")
        )


def _xen(section: Element | None, made: Vendor) -> None:
    """XenCenter and its successors write the VM's record as named values (Xen API, class VM)."""
    made.firmware = FirmwareKind.BIOS
    if section is None:
        return
    values = {}
    for each in section:
        if local(each.tag) == "VirtualSystemOtherConfigurationData":
            values[(attribute(each, "Name") or "").lower()] = text(each, "Value").lower()
    if "firmware=uefi" in values.get("hvm_boot_params", "").replace(" ", ""):
        made.firmware = FirmwareKind.UEFI
    platform = values.get("platform", "").replace(" ", "")
    made.secure_boot = "secureboot=true" in platform or "secureboot=auto" in platform
    made.tpm = "vtpm=true" in platform
    if values.get("pv_bootloader"):
        made.firmware = None
        made.findings.append(
            error(
                "paravirtual-boot",
                f"the guest starts by {short(values['pv_bootloader'], 40)!r} of Xen and not by firmware:"
                " convert it to HVM where it runs",
            )
        )
