"""Why a setting that could take effect while a VM runs has not done so. Pure."""

from holdfast.machine.layout import Waits, growth, removable
from holdfast.spec.vm import Acceleration
from holdfast.vm.records import VmRecord


def waits(record: VmRecord) -> dict[str, str]:
    """Why a size that is recorded for the next start is not there yet, by the setting's name."""
    running, wanted = record.running_spec, record.spec
    if running is None:
        return {}
    found: dict[str, str] = {}
    most = running.layout.max_cpus if running.layout else running.cpus
    if wanted.cpus > most:
        found["cpus"] = f"the machine was started with room for {most} CPUs"
    elif wanted.cpus < running.cpus:
        found["cpus"] = "the guest has not let go of its CPUs"
    elif wanted.cpus > running.cpus:
        found["cpus"] = "QEMU did not take more CPUs: see the daemon's log"
    verdict: object = None
    if wanted.memory > running.memory:
        verdict = growth(running, wanted.memory, record.acceleration or Acceleration.TCG)
    elif wanted.memory < running.memory:
        verdict = removable(running, wanted.memory)
    if isinstance(verdict, Waits):
        found["memory"] = verdict.why
    elif verdict is not None:
        found["memory"] = "the guest has not let go of its memory"
    return found
