"""From an appliance and what is known of this host to a plan: what maps, what changes, what is lost. Pure.

Nothing is refused here: whatever stands in the way is a finding of severity `error`, so that a person
sees all of it at once.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast.spec.appliance import (
    Appliance,
    ApplianceDisk,
    ApplianceNic,
    Finding,
    FirmwareKind,
    ImportChoices,
    ImportPlan,
    PlannedDisk,
    PlannedNic,
    PlannedState,
    Severity,
    Signature,
)
from holdfast.spec.names import MAX_NAME, BadName, check_name
from holdfast.spec.units import GIB, MIB, format_size
from holdfast.spec.vm import MIN_MEMORY, DiskBus, GuestOs
from holdfast.storage.appliances.boot_look import BootLook
from holdfast.storage.appliances.driver_look import Drivers
from holdfast.storage.ovf_writer import USER_NETWORK
from holdfast.vm.import_room import PoolChoice, PoolFacts, judge_room, room_needed, room_of

_DEFAULT_CPUS = 1
_DEFAULT_MEMORY = 2 * GIB
_READ_RATE = 150 * MIB
"""Bytes of a source a second: what one core unpacks of a VMDK stream."""
_ALL = "*"


@dataclass(frozen=True)
class DiskFacts:
    """What is known of a disk's file."""

    file_size: int
    format: str = ""
    """Empty where it cannot be told before it is unpacked."""
    size: int | None = None
    """Bytes the guest sees, by the file itself."""
    boot: BootLook | None = None
    problem: Finding | None = None
    """Why it cannot be taken."""
    data: int | None = None
    """Bytes that its volume takes for data, counted by the file's own tables."""


@dataclass(frozen=True)
class StateFacts:
    """What the container of firmware state in a source says of itself, and whether it is to be taken."""

    file: str
    """Empty where something that opens it was given, and there is none."""
    wanted: bool
    """Something that opens it was given."""
    same_tpm: bool = False
    """It may be the TPM of a VM of this host."""
    problem: Finding | None = None
    """Why it cannot be taken."""
    identity: str | None = None
    """Id of the VM that its TPM was made for; None: it holds no TPM."""
    slot: Mapping[str, Any] = field(default_factory=dict)
    bound: bytes = b""


@dataclass(frozen=True)
class SourceFacts:
    """What is known of the files beside their description."""

    disks: Mapping[str, DiskFacts]
    """By the appliance's id of the disk; a file that is missing is not in it."""
    findings: tuple[Finding, ...] = ()
    manifest: str | None = None
    signature: Signature | None = None
    state: StateFacts | None = None


@dataclass(frozen=True)
class HostFacts:
    switches: tuple[str, ...]
    max_cpus: int
    memory: int
    """Bytes in all."""
    space_free: int
    """Bytes where VMs lie."""
    macs: Mapping[str, str]
    """MAC address to the VM that has it."""
    names: frozenset[str]
    """Of VMs, in lower case."""
    ids: frozenset[str]
    """Of VMs."""
    tpms: Mapping[str, str] = field(default_factory=dict)
    """Identity of a TPM to the VM that has it."""
    pools: Mapping[str, PoolFacts] = field(default_factory=dict)
    """Those that were asked for, by their names in lower case."""


class _Notes:
    """Findings as they come up."""

    def __init__(self) -> None:
        self.found: list[Finding] = []

    def info(self, id_: str, text: str) -> None:
        self.found.append(Finding(id=id_, severity=Severity.INFO, text=text))

    def warning(self, id_: str, text: str) -> None:
        self.found.append(Finding(id=id_, severity=Severity.WARNING, text=text))

    def error(self, id_: str, text: str) -> None:
        self.found.append(Finding(id=id_, severity=Severity.ERROR, text=text))


def plan_import(
    appliance: Appliance,
    source: SourceFacts,
    host: HostFacts,
    request: ImportChoices,
) -> ImportPlan:
    """What an import would do."""
    notes = _Notes()
    name = _name(appliance, host, request, notes)
    cpus, memory = _size(appliance, host, notes)
    os = _guest_os(appliance, source, notes)
    choice = PoolChoice(request.pools, host.pools, notes.found)
    disks = _disks(appliance, source, os, choice, notes)
    nics = _nics(appliance.nics, host, request, notes)
    state = _state(source.state, host, request, notes)
    secure_boot, tpm = _firmware(appliance, source, request, notes)
    _guest(appliance, os, notes)
    _drivers(source, os, disks, notes)
    _identity(appliance, host, notes)
    if appliance.eulas and not request.accept_eulas:
        notes.info("eula", f"{len(appliance.eulas)} licence agreements are to be accepted before the import")
    space = room_needed(disks, {disk.id: disk.populated for disk in appliance.disks})
    rooms = room_of(space, host.space_free, host.pools)
    notes.found += judge_room(disks, rooms)
    needed = sum(space.values())
    findings = (*source.findings, *appliance.findings, *notes.found)
    return ImportPlan(
        importable=not any(each.severity is Severity.ERROR for each in findings),
        name=name,
        kind=appliance.kind,
        dialect=appliance.dialect,
        product=appliance.product,
        cpus=cpus,
        memory=memory,
        os=os,
        firmware=appliance.firmware,
        secure_boot=secure_boot,
        tpm=tpm,
        disks=disks,
        nics=nics,
        eulas=appliance.eulas,
        manifest=source.manifest,
        signature=source.signature,
        firmware_state=state,
        findings=tuple(sorted(findings, key=_weight)),
        space_needed=needed,
        space_free=host.space_free,
        space=rooms,
        seconds=_seconds(source, needed),
    )


def _weight(finding: Finding) -> int:
    return (Severity.ERROR, Severity.WARNING, Severity.INFO).index(finding.severity)


def _name(appliance: Appliance, host: HostFacts, request: ImportChoices, notes: _Notes) -> str:
    wanted = request.name or appliance.name
    name = usable_name(wanted)
    if name != wanted:
        notes.info("name-changed", f"the name {wanted[:80]!r} becomes {name!r}")
    if name.lower() in host.names:
        notes.error("name-taken", f"there is already a VM named {name!r}: choose another name with --name")
    return name


def usable_name(wanted: str) -> str:
    """`wanted` with everything that a name here cannot have as a dash; `imported` where nothing is left."""
    plain = re.sub(r"[^A-Za-z0-9 ._-]+", "-", wanted)
    plain = re.sub(r"\.{2,}", ".", plain)[:MAX_NAME].strip(" .-_")
    try:
        return check_name(plain)
    except BadName:
        return "imported"


def _size(appliance: Appliance, host: HostFacts, notes: _Notes) -> tuple[int, int]:
    cpus, memory = appliance.cpus or _DEFAULT_CPUS, appliance.memory or _DEFAULT_MEMORY
    if appliance.cpus is None:
        notes.warning("cpus-not-said", f"the source does not say how many CPUs it has; it gets {cpus}")
    if appliance.memory is None:
        notes.warning(
            "memory-not-said",
            f"the source does not say how much memory it has; it gets {format_size(memory)}",
        )
    if cpus > host.max_cpus:
        notes.error(
            "too-many-cpus", f"{cpus} CPUs are more than the {host.max_cpus} that this host can give a VM"
        )
    if memory > host.memory:
        notes.error(
            "not-enough-memory",
            f"{format_size(memory)} of memory are more than the {format_size(host.memory)} of this host",
        )
    if memory < MIN_MEMORY:
        notes.error(
            "memory-too-small",
            f"{memory} bytes of memory are less than the {format_size(MIN_MEMORY)} of any VM",
        )
    return cpus, memory


def _guest_os(appliance: Appliance, source: SourceFacts, notes: _Notes) -> GuestOs:
    if appliance.os is not None:
        return appliance.os
    if any(facts.boot and facts.boot.windows for facts in source.disks.values()):
        return GuestOs.WINDOWS
    notes.info("os-not-known", "the guest's system is not known; the hardware is tuned for Linux")
    return GuestOs.LINUX


def _disks(
    appliance: Appliance, source: SourceFacts, os: GuestOs, choice: PoolChoice, notes: _Notes
) -> tuple[PlannedDisk, ...]:
    # Windows starts from NVMe with what it brings along; from virtio only with drivers put in before.
    bus = DiskBus.NVME if os is GuestOs.WINDOWS else DiskBus.VIRTIO
    planned = []
    for index, disk in enumerate(appliance.disks):
        facts = source.disks.get(disk.id)
        if facts is not None and facts.problem is not None:
            notes.found.append(facts.problem)
        size = (facts.size if facts else None) or disk.capacity or 0
        if facts and facts.size and disk.capacity and facts.size != disk.capacity:
            notes.warning(
                "disk-size-differs",
                f"disk {disk.id!r} is described with {disk.capacity} bytes, and its file shows {facts.size}:"
                " the file is believed",
            )
        if disk.file is None and not size:
            notes.error("disk-without-size", f"disk {disk.id!r} has neither a file nor a size")
        planned.append(
            PlannedDisk(
                id=f"disk{index}",
                source=disk.id,
                file=disk.file,
                format=(facts.format if facts else "") or ("blank" if disk.file is None else "unknown"),
                size=size,
                file_size=facts.file_size if facts else 0,
                data=facts.data if facts else None,
                bus=bus,
                gzip=disk.gzip,
                pool=choice.of(f"disk{index}", disk.id),
            )
        )
    choice.check({name for disk in planned for name in (disk.id, disk.source)})
    if not planned:
        notes.error("no-disks", "the machine has no disks")
    _bus_changes(appliance.disks, bus, notes)
    return tuple(planned)


def _bus_changes(disks: tuple[ApplianceDisk, ...], bus: DiskBus, notes: _Notes) -> None:
    before = sorted({disk.bus or "an unknown bus" for disk in disks} - {bus.value})
    if before:
        notes.info("disk-bus-changed", f"disks move from {', '.join(before)} to {bus.value}")
    if disks and bus is DiskBus.NVME:
        notes.info("not-migratable", "QEMU's NVMe disks keep a running VM from being moved to another host")


def _nics(
    nics: tuple[ApplianceNic, ...], host: HostFacts, request: ImportChoices, notes: _Notes
) -> tuple[PlannedNic, ...]:
    planned: list[PlannedNic] = []
    switches = {name.lower(): name for name in host.switches}
    for network, named in request.switches.items():
        if named.lower() not in switches:
            notes.error(
                "switch-not-found",
                f"there is no switch {named[:64]!r} (`holdfast switch list` shows them,"
                " `holdfast switch create` makes one)",
            )
        if network != _ALL and network not in {nic.network for nic in nics}:
            notes.warning("network-not-in-source", f"the source has no network {network[:64]!r}")
    taken = dict(host.macs)
    for nic in nics:
        wanted = request.switches.get(nic.network or "") or request.switches.get(_ALL) or nic.network or ""
        switch = switches.get(wanted.lower())
        if switch is None and wanted == USER_NETWORK:
            notes.info("network-mapped", f"{nic.id} is on the user-mode network again")
        elif switch is None and not request.switches.get(nic.network or ""):
            notes.warning(
                "network-not-mapped",
                f"no switch is named for the network {nic.network!r}: {nic.id} gets the user-mode network"
                " (outgoing connections only); name one with --switch NETWORK=SWITCH",
            )
        elif switch is not None:
            notes.info("network-mapped", f"the network {nic.network!r} of {nic.id} is the switch {switch!r}")
        mac = nic.mac
        if mac is not None and mac in taken:
            notes.warning("mac-not-kept", f"{nic.id} gets a new MAC address: {mac} is that of {taken[mac]}")
            mac = None
        if mac is not None:
            taken[mac] = "another interface of this machine"
        vlan = nic.vlan if switch is not None else None
        if nic.vlan is not None and vlan is None:
            notes.warning("vlan-not-kept", f"{nic.id} was on VLAN {nic.vlan}; the user-mode network has none")
        planned.append(
            PlannedNic(
                id=f"nic{len(planned)}",
                network=nic.network,
                switch=switch,
                mac=mac,
                mac_kept=mac is not None,
                vlan=vlan,
            )
        )
    models = sorted({nic.model for nic in nics if nic.model and nic.model.lower() != "virtio"})
    if models:
        notes.info("nic-model-changed", f"network interfaces become virtio (before: {', '.join(models)})")
    return tuple(planned)


def _state(
    state: StateFacts | None, host: HostFacts, request: ImportChoices, notes: _Notes
) -> PlannedState | None:
    """The firmware state that came along: taken where something opens it, else said to stay behind."""
    if state is None:
        return None
    if not state.file:
        notes.error("no-firmware-state", "the source brings no firmware state along that could be opened")
        return None
    other = host.tpms.get(state.identity) if state.identity else None
    if not state.wanted:
        why = (
            f"it cannot be read: {state.problem.text}"
            if state.problem
            else "nothing was given that opens it (--passphrase-file or --private-key)"
        )
        notes.warning(
            "firmware-state-not-taken",
            f"the firmware state in {state.file[:120]!r} (UEFI variables and TPM) stays behind: {why}",
        )
    elif state.problem is not None:
        notes.found.append(state.problem)
    elif request.tpm is not None and request.tpm is not (state.identity is not None):
        holds = "holds a TPM" if state.identity else "holds no TPM"
        notes.error("firmware-state-unlike", f"the firmware state {holds}: leave out --tpm and --no-tpm")
    elif other is not None and not state.same_tpm:
        notes.error(
            "firmware-state-of-another-vm",
            f"VM {other!r} of this host has the TPM that the firmware state holds; add --same-tpm if this one"
            " takes its place: the two must never both run",
        )
    else:
        notes.info(
            "firmware-state-taken",
            "UEFI variables and TPM come along: the machine that they are of must never run again"
            if state.identity
            else "the UEFI variables come along",
        )
    return PlannedState(file=state.file, taken=state.wanted, slot=dict(state.slot), bound=state.bound.hex())


def _firmware(
    appliance: Appliance, source: SourceFacts, request: ImportChoices, notes: _Notes
) -> tuple[bool, bool]:
    """Secure Boot and TPM; how the machine will start goes into the notes."""
    looks = [facts.boot for disk in appliance.disks if (facts := source.disks.get(disk.id)) and facts.boot]
    unseen = [
        disk for disk in appliance.disks if disk.file and not (source.disks.get(disk.id) or DiskFacts(0)).boot
    ]
    _starts(appliance, looks, bool(unseen), notes)
    was = bool(appliance.secure_boot)
    secure_boot = was if request.secure_boot is None else request.secure_boot
    if was and secure_boot:
        notes.info("secure-boot-kept", "Secure Boot stays on, with Microsoft's certificates")
    elif was:
        notes.warning("secure-boot-dropped", "Secure Boot is turned off, as was asked for")
    elif not secure_boot:
        notes.info("secure-boot-off", "Secure Boot is off, as it was; --secure-boot turns it on")
    tpm = bool(appliance.tpm) if request.tpm is None else request.tpm
    if source.state is not None and source.state.file and source.state.wanted:
        return secure_boot, source.state.identity is not None
    if appliance.tpm:
        notes.warning(
            "tpm-new" if tpm else "tpm-dropped",
            "the vTPM is a new one: what the guest sealed in the old one does not open;"
            " have its recovery keys ready"
            if tpm
            else "the machine had a TPM and gets none, as was asked for",
        )
    if appliance.nvram:
        notes.warning(
            "nvram-not-kept",
            "the firmware's variables (boot entries, own keys) are not brought along;"
            " the guest makes its entries anew",
        )
    return secure_boot, tpm


def _starts(appliance: Appliance, looks: list[BootLook], unseen: bool, notes: _Notes) -> None:
    """How the machine will start here: by UEFI, whatever it did before."""
    bios, known = appliance.firmware is FirmwareKind.BIOS, appliance.firmware is not None
    vendor = next((look.vendor for look in looks if look.vendor), None)
    if any(look.fallback for look in looks):
        if bios:
            notes.warning(
                "bios-to-uefi",
                "the machine starts by BIOS; its disk has a UEFI loader too, and here it starts by that",
            )
        elif not known:
            notes.info("starts-by-uefi", "the disk has a UEFI loader")
    elif vendor:
        notes.warning(
            "no-fallback-loader",
            f"the loader {vendor} starts by a boot entry, which is not brought along: start it once by hand"
            " (firmware menu, Boot From File) and let the guest make its entry anew",
        )
    elif bios or (not known and any(look.partitioned for look in looks)):
        notes.error(
            "bios-only",
            f"the machine starts by BIOS, and no {'disk' if looks else 'disk that can be looked into'} has"
            " a UEFI loader; VMs here are Generation 2 (UEFI). Convert it where it runs (Windows: mbr2gpt"
            " /convert; Linux: an EFI system partition, and grub-install --removable --target=x86_64-efi),"
            " or install it anew",
        )
    elif not known:
        notes.warning("firmware-not-known", "how the machine starts is not said; VMs here start by UEFI only")
    elif looks and not unseen:
        notes.warning("no-loader-found", "no disk has a UEFI loader that is known: the machine may not start")


def _guest(appliance: Appliance, os: GuestOs, notes: _Notes) -> None:
    if os is GuestOs.WINDOWS and appliance.nics:
        notes.warning(
            "drivers-needed",
            "Windows has no driver for virtio network interfaces: put the disc virtio-win in and install it",
        )


def _drivers(source: SourceFacts, os: GuestOs, disks: tuple[PlannedDisk, ...], notes: _Notes) -> None:
    """Whether the guest will find its disks, as far as could be seen without starting it."""
    looks = [facts.boot.drivers for facts in source.disks.values() if facts.boot and facts.boot.drivers]
    told = {look.drivers: look.text for look in reversed(looks)}
    if all(disk.bus is not DiskBus.VIRTIO for disk in disks):
        if os is GuestOs.WINDOWS and disks:
            notes.info(
                "virtio-drivers-unknown",
                "whether virtio drivers are in Windows was not looked for (NTFS is not read);"
                " its disks do not need them",
            )
    elif Drivers.PRESENT in told:
        notes.info("virtio-drivers-present", told[Drivers.PRESENT])
    elif Drivers.MISSING in told:
        notes.warning(
            "virtio-drivers-missing",
            f"{told[Drivers.MISSING]}: the guest may not find its disks. Make it anew with them where it runs"
            " (`dracut --force --no-hostonly`; `update-initramfs -u` with MODULES=most), or put the disks on"
            " a bus that it has drivers for (`holdfast vm move-disk NAME disk0 --bus nvme`)",
        )
    else:
        why = told.get(Drivers.UNKNOWN, "no disk could be looked into")
        notes.info(
            "virtio-drivers-unknown", f"whether the guest has drivers of virtio disks is unknown: {why}"
        )


def _identity(appliance: Appliance, host: HostFacts, notes: _Notes) -> None:
    if appliance.id is None:
        return
    if appliance.id in host.ids:
        notes.warning("uuid-not-kept", f"the machine gets a new UUID: {appliance.id} is that of a VM here")
    else:
        notes.info("uuid-kept", f"the machine keeps its UUID {appliance.id}")


def _seconds(source: SourceFacts, needed: int) -> int:
    return 1 + (sum(facts.file_size for facts in source.disks.values()) + needed) // (2 * _READ_RATE)
