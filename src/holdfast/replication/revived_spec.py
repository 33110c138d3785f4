"""The specification that a VM is made by from a point: what was sent along, as far as this host has it. Pure.

What was sent is another host's: nothing in it that names a file, a device or a network of this host is
taken over unseen. What is left out is told as findings.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError

from holdfast.replication.attachments import SentVm
from holdfast.spec.appliance import Finding, Severity
from holdfast.spec.errors import Conflict, Unsupported
from holdfast.spec.names import MAX_NAME
from holdfast.spec.vm import CdDrive, Disk, Nic, ReplicaOrigin, UefiBoot, VmSpec

_LONGEST = 4 * 1024 * 1024
_DISK = re.compile(r"disk[0-9]{1,4}", re.ASCII)
_NIC = re.compile(r"nic[0-9]{1,3}", re.ASCII)
_DRIVE = re.compile(r"cd[0-9]{1,2}", re.ASCII)
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


class ReplicaSpecDamaged(Conflict):
    """What was sent beside the disks is no VM's specification."""

    id = "replica-spec-damaged"


class RevivedNeedsAttestedHost(Unsupported):
    id = "replica-vm-needs-attested-host"


@dataclass(frozen=True)
class Here:
    """What this host has that a specification may name."""

    switches: frozenset[str]
    images: frozenset[str]
    """Digests of those of the VM's drives that are here."""
    max_cpus: int


@dataclass(frozen=True)
class RevivedSpec:
    spec: VmSpec
    findings: tuple[Finding, ...] = field(default=())


def read_sent(attachment: bytes | None, vm: str) -> SentVm:
    """What came as `spec`. `vm`: id of the VM that it must be of. Raises ReplicaSpecDamaged."""
    if attachment is None or len(attachment) > _LONGEST:
        raise _damaged("none came with that point" if attachment is None else "it is too long")
    try:
        sent = SentVm.model_validate_json(attachment)
    except ValidationError as error:
        raise _damaged(f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}"[:200]) from error
    if sent.id != vm or not _UUID.fullmatch(vm):
        raise _damaged("it is that of another VM")
    spec = sent.spec
    _require_ids(_DISK, [disk.id for disk in spec.disks])
    _require_ids(_NIC, [nic.id for nic in spec.nics])
    _require_ids(_DRIVE, [drive.id for drive in spec.cd_drives])
    if bad := [nic.mac for nic in spec.nics if not _MAC.fullmatch(nic.mac)]:
        raise _damaged(f"{bad[0][:40]!r} is no MAC address")
    if isinstance(spec.boot, UefiBoot) and not _UUID.fullmatch(spec.boot.tpm_identity or vm):
        raise _damaged("it names no VM as that of its TPM")
    return sent


def revived(
    sent: SentVm, disks: Mapping[str, int], origin: tuple[str, str], here: Here, *, isolated: bool
) -> RevivedSpec:
    """The VM that stands on a point.

    Args:
        disks: bytes of each disk of the point.
        origin: the replica's name and the token of the opened point.
        isolated: its NICs are in no network.

    Raises RevivedNeedsAttestedHost.
    """
    spec = sent.spec
    if spec.require_attested_host:
        raise RevivedNeedsAttestedHost(
            f"VM {sent.name!r} runs on attested hosts only, and the keys to it are its own host's",
            value=sent.name,
            cure="Take that demand back on the source (`holdfast vm set`) before it is replicated.",
        )
    found: list[Finding] = []
    made = spec.model_copy(
        update={
            "cpus": _cpus(spec, here, found),
            "disks": _disks(spec, disks, origin, found),
            "cd_drives": _drives(spec, here, found),
            "nics": _nics(sent, here, found, isolated=isolated),
            "usb": (),
            "template": False,
            "layout": None,
        }
    )
    if spec.usb:
        _tell(found, "replica-usb-left-out", f"{len(spec.usb)} USB devices of the source host are left out")
    return RevivedSpec(made, tuple(found))


def isolated_name(name: str) -> str:
    """What the isolated VM of a replica of this name is called."""
    end = " - Test"
    return name[: MAX_NAME - len(end)].rstrip(" .") + end


def _cpus(spec: VmSpec, here: Here, found: list[Finding]) -> int:
    if spec.cpus > here.max_cpus:
        text = f"it has {here.max_cpus} CPUs instead of {spec.cpus}, which is as many as a VM has here"
        _tell(found, "replica-fewer-cpus", text)
    return min(spec.cpus, here.max_cpus)


def _disks(
    spec: VmSpec, sizes: Mapping[str, int], origin: tuple[str, str], found: list[Finding]
) -> tuple[Disk, ...]:
    replica, token = origin
    made = []
    for disk in spec.disks:
        if disk.id not in sizes:
            _tell(found, "replica-disk-not-held", f"{disk.id} is not replicated, and is left out")
            continue
        stands_on = ReplicaOrigin(replica=replica, token=token, disk=disk.id)
        made.append(
            Disk(
                id=disk.id,
                volume=disk.id,
                size=sizes[disk.id],
                bus=disk.bus,
                limits=disk.limits,
                origin=stands_on,
            )
        )
    return tuple(made)


def _drives(spec: VmSpec, here: Here, found: list[Finding]) -> tuple[CdDrive, ...]:
    made = []
    for drive in spec.cd_drives:
        there = drive.image is None or drive.image in here.images
        if not there:
            _tell(found, "replica-disc-missing", f"{drive.id} is empty: this host lacks the image in it")
        made.append(drive if there else CdDrive(id=drive.id))
    return tuple(made)


def _nics(sent: SentVm, here: Here, found: list[Finding], *, isolated: bool) -> tuple[Nic, ...]:
    known = {name.lower(): name for name in here.switches}
    made = []
    for nic in sent.spec.nics:
        plain = Nic(id=nic.id, mac=nic.mac)
        wanted = sent.failover.switch(nic.switch) if nic.switch is not None else None
        if isolated or nic.unplugged:
            made.append(plain.model_copy(update={"unplugged": True}))
        elif wanted is None:
            made.append(plain)
        elif wanted.lower() in known:
            made.append(plain.model_copy(update={"switch": known[wanted.lower()], "vlan": nic.vlan}))
        else:
            # A VM that runs without network can be given one; one that was refused cannot.
            text = f"{nic.id} is in no network: this host has no switch {wanted[:MAX_NAME]!r}"
            _tell(found, "replica-nic-unplugged", text)
            made.append(plain.model_copy(update={"unplugged": True}))
    return tuple(made)


def _require_ids(pattern: re.Pattern[str], ids: Collection[str]) -> None:
    bad = [each for each in ids if not pattern.fullmatch(each)]
    if bad or len(set(ids)) != len(ids):
        raise _damaged(f"{bad[0][:40]!r} names no device" if bad else "two devices have one name")


def _tell(found: list[Finding], id: str, text: str) -> None:
    found.append(Finding(id=id, severity=Severity.WARNING, text=text[:1000]))


def _damaged(why: str) -> ReplicaSpecDamaged:
    return ReplicaSpecDamaged(
        f"no VM can be made of what was sent beside the disks: {why}",
        value=why[:200],
        cure="Choose another point.",
    )
