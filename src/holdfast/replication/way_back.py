"""How a VM is replicated back after a failover: as it was agreed on the host that it came from. Pure.

What was agreed came with OPEN, the network is that by which the VM was made here, so that what its guest has
been given is what is taken back.
"""

from collections.abc import Collection

from holdfast.replication.attachments import SentVm
from holdfast.replication.pace import parse_limit
from holdfast.replication.replica_records import HeldVm
from holdfast.replication.retention import parse_plan
from holdfast.replication.schedule import parse_schedule
from holdfast.spec.failover import FailoverAddress, FailoverNetwork
from holdfast.spec.replica import ReplicaEnable, ReplicaSettings
from holdfast.spec.vm import VmSpec


def require_usable(agreed: ReplicaSettings) -> None:
    """Whether settings can be read. Raises BadRetention, BadLimit, BadSchedule."""
    parse_plan(agreed.points)
    parse_limit(agreed.limit)
    parse_schedule(agreed.schedule)


def back(held: HeldVm, sent: SentVm) -> ReplicaSettings:
    """What holds on the way back of a VM that is made here.

    Args:
        sent: what came with the point that it is made of.
    """
    agreed = held.agreed or ReplicaSettings()
    points = {"points": held.points} if held.points else {}
    return agreed.model_copy(update={**points, "failover": sent.failover.back(), "initial": "now"})


def enabling(settings: ReplicaSettings, peer: str, spec: VmSpec) -> ReplicaEnable:
    """The request by which a VM is replicated back, without what it does not have here."""
    disks, nics = {each.id for each in spec.disks}, {each.id for each in spec.nics}
    changed = {
        "exclude": tuple(each for each in settings.exclude if each in disks),
        "failover": _of_nics(settings.failover, nics),
    }
    known = {each: getattr(settings, each) for each in ReplicaSettings.model_fields}
    return ReplicaEnable(peer=peer, **{**known, **changed})


def _of_nics(failover: FailoverNetwork, nics: Collection[str]) -> FailoverNetwork:
    def present(of: tuple[FailoverAddress, ...]) -> tuple[FailoverAddress, ...]:
        return tuple(each for each in of if each.nic in nics)

    return failover.model_copy(
        update={
            "addresses": present(failover.addresses),
            "home": present(failover.home),
            "own": tuple(each for each in failover.own if each in nics),
        }
    )
