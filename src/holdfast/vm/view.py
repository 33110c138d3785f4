"""A VM as people see it, made from its record. Pure."""

from datetime import UTC, datetime
from typing import Any

from holdfast.spec.host import AccelerationVerdict
from holdfast.spec.vm import Acceleration, GuestOs, Nic, UefiBoot, VmSpec, VmState
from holdfast.spec.vm_view import GuestView, VmView
from holdfast.vm.disk_specs import disk_notices
from holdfast.vm.records import VmRecord
from holdfast.vm.waiting import waits

_HAS_MACHINE = frozenset({VmState.RUNNING, VmState.PAUSED, VmState.STOPPING, VmState.SAVING})
_NEXT_START = ("cpus", "memory", "os", "boot", "nics", "disks", "cd_drives", "usb", "guest_agent")


def show(
    record: VmRecord, folder: str, verdict: AccelerationVerdict | None, more_notices: list[str]
) -> VmView:
    """`verdict` is the host's; `more_notices` is what others say of it."""
    alive = record.state in _HAS_MACHINE
    return VmView(
        id=record.id,
        name=record.name,
        state=record.state,
        cpus=record.spec.cpus,
        memory=record.spec.memory,
        acceleration=record.acceleration if alive else (verdict.acceleration if verdict else None),
        addresses=record.addresses if alive else (),
        created=record.created,
        operation=record.operation,
        spec=record.spec,
        guest=guest_view(record),
        boot_seconds=record.boot_seconds,
        uptime_seconds=_seconds_since(record.started) if alive else None,
        folder=folder,
        failure=record.failure if record.state is VmState.FAILED else None,
        notices=tuple(_notices(record, verdict) + more_notices),
        running=record.running_spec if alive else None,
        pending=pending(record.running_spec, record.spec) if alive else {},
        waits=waits(record) if alive else {},
    )


def in_user_mode(nic: Nic) -> bool:
    return nic.switch is None and not nic.unplugged


def guest_view(record: VmRecord) -> GuestView:
    """What the guest said, as far as it still holds."""
    if record.state not in _HAS_MACHINE:
        return GuestView(agent="off")
    if not record.spec.guest_agent:
        return GuestView(agent="absent")
    return record.guest or GuestView(agent="waiting")


def pending(running: VmSpec | None, wanted: VmSpec) -> dict[str, Any]:
    """Settings that differ between the running machine and the next start."""
    if running is None:
        return {}
    now, then = running.model_dump(mode="json"), wanted.model_dump(mode="json")
    return {key: then[key] for key in _NEXT_START if now[key] != then[key]}


def _seconds_since(started: datetime | None) -> float | None:
    return round((datetime.now(UTC) - started).total_seconds(), 1) if started else None


def _notices(record: VmRecord, verdict: AccelerationVerdict | None) -> list[str]:
    notices = []
    emulated = record.acceleration is Acceleration.TCG if record.acceleration else False
    if emulated or (verdict is not None and verdict.acceleration is Acceleration.TCG):
        reason = f": {verdict.reason}" if verdict and verdict.reason else ""
        notices.append(f"Runs by emulation (TCG), many times slower than KVM{reason}")
    boot = record.spec.boot
    if not isinstance(boot, UefiBoot):
        notices.append("Starts a kernel directly: no firmware, no Secure Boot, no vTPM")
    elif not boot.secure_boot:
        notices.append("Secure Boot is off")
    if isinstance(boot, UefiBoot) and not boot.tpm:
        notices.append("Has no vTPM")
    if isinstance(boot, UefiBoot) and boot.tpm_identity not in (None, record.id):
        notices.append(f"Took over the TPM identity of VM {boot.tpm_identity}: never run both")
    for disk in (record.running_spec or record.spec).disks:
        notices += disk_notices(disk)
    if (record.running_spec or record.spec).usb:
        notices.append("Has USB devices of the host: while it runs it cannot be saved or migrated")
    if record.spec.require_attested_host:
        notices.append("Starts only while this host's verifier trusts it")
    if record.spec.template:
        notices.append("Is a template: it is cloned, and never started")
    if record.spec.os is GuestOs.WINDOWS and not any(each.image for each in record.spec.cd_drives[1:]):
        notices.append(
            "Has no disc with Windows' drivers: run `holdfast image pull virtio-win`, then create the VM"
        )
    return notices
