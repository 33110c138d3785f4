"""`vm show`: what the VM is, what its guest says, and what it is made of."""

from collections.abc import Mapping
from typing import Any

from holdfast.cli.sheets.sheet import Sheet
from holdfast.cli.sheets.words import duration, moment, pairs, short_digest, size

_ACCELERATION = {"kvm": "KVM", "tcg": "TCG (emulation)"}
_AGENT = {"connected": "connected", "waiting": "has not answered yet", "absent": "not in use", "off": None}
_SECURE_BOOT = {True: "enabled (read in the guest)", False: "disabled (read in the guest)"}


def image_digests(vm: dict[str, Any]) -> set[str]:
    """Every image that the VM refers to."""
    spec = vm["spec"]
    found = {part["image"] for part in (*spec["disks"], *spec["cd_drives"])}
    return {digest for digest in (*found, spec["boot"].get("kernel"), spec["boot"].get("initrd")) if digest}


def vm_sheet(
    vm: dict[str, Any], images: Mapping[str, str] | None = None, operation: dict[str, Any] | None = None
) -> str:
    """`vm` in wire form; `images` gives names of digests; `operation` is the one under way."""
    names = images or {}
    sheet = Sheet()
    _what_it_is(sheet, vm, names)
    if operation:
        sheet.line("Operation", f"{operation['kind']} {operation['progress']:.0%} {operation['phase']}")
    _guest(sheet, vm["guest"], has_firmware=vm["spec"]["boot"]["kind"] == "uefi")
    sheet.line("Folder", vm["folder"])
    _parts(sheet, vm["spec"], names)
    sheet.list("After the next start", (_pending(key, each) for key, each in vm["pending"].items()))
    sheet.list("Notices", vm["notices"])
    if vm["failure"]:
        sheet.list("Last lines of its log", vm["failure"]["log_tail"])
    return sheet.text()


def _what_it_is(sheet: Sheet, vm: dict[str, Any], names: Mapping[str, str]) -> None:
    sheet.line("Name", vm["name"])
    sheet.line("State", vm["state"])
    if vm["failure"]:
        sheet.line("Failure", f"{vm['failure']['text']} ({moment(vm['failure']['time'])})")
    sheet.line("CPUs", vm["cpus"])
    sheet.line("Memory", size(vm["memory"]))
    sheet.line("Acceleration", _ACCELERATION.get(vm["acceleration"]))
    sheet.line("Addresses", ", ".join(vm["addresses"]))
    sheet.line("Start", _boot(vm["spec"]["boot"], names))
    sheet.line("Boot time", duration(vm["boot_seconds"]))
    sheet.line("Uptime", duration(vm["uptime_seconds"]))
    sheet.line("Created", moment(vm["created"]))


def _boot(boot: dict[str, Any], names: Mapping[str, str]) -> str:
    if boot["kind"] != "uefi":
        initrd = boot["initrd"]
        text = f"kernel {_image(boot['kernel'], names)}"
        return text + (f", initrd {_image(initrd, names)}" if initrd else "")
    secure = "Secure Boot on" if boot["secure_boot"] else "Secure Boot off"
    tpm = "vTPM" if boot["tpm"] else "no vTPM"
    return f"UEFI, {secure}, {tpm}" + (" of another VM" if boot.get("tpm_identity") else "")


def _guest(sheet: Sheet, guest: dict[str, Any], has_firmware: bool) -> None:
    sheet.line("Guest agent", _AGENT.get(guest["agent"], guest["agent"]))
    if guest["agent"] != "connected":
        return
    if has_firmware:
        sheet.line("Secure Boot", _SECURE_BOOT.get(guest["secure_boot"]))
        sheet.line("TPM", guest["tpm_version"])
    sheet.line("Guest OS", guest["os_name"])
    sheet.line("Kernel", guest["kernel"])
    sheet.line("Host name", guest["host_name"])


def _parts(sheet: Sheet, spec: dict[str, Any], names: Mapping[str, str]) -> None:
    disks = (
        (disk["id"], size(disk["size"]), disk["bus"], disk.get("pool"), _image(disk["image"], names))
        for disk in spec["disks"]
    )
    sheet.rows("Disks", ("disk", "size", "bus", "pool", "image"), disks)
    drives = ((drive["id"], _image(drive["image"], names) or "empty") for drive in spec["cd_drives"])
    sheet.rows("CD drives", ("drive", "image"), drives)
    nics = (
        (nic["id"], nic["switch"] or "user-mode network", nic["vlan"], nic["mac"]) for nic in spec["nics"]
    )
    sheet.rows("Network", ("nic", "switch", "vlan", "mac"), nics)


def _image(digest: str | None, names: Mapping[str, str]) -> str | None:
    return names.get(digest, short_digest(digest)) if digest else None


def _pending(key: str, value: Any) -> str:
    if key == "memory":
        return f"memory: {size(value)}"
    if isinstance(value, dict):
        return f"{key}: {pairs(value)}"
    if isinstance(value, list):
        return f"{key}: " + "; ".join(pairs(each) if isinstance(each, dict) else str(each) for each in value)
    return f"{key}: {value}"
