"""What errors of a replication mean: on which side to look, in words, and what to do. Data.

An error's own words stand beside these as evidence. To know one more is to add a line to `FAULTS`.
"""

from dataclasses import dataclass

from holdfast.replication.health import Health, Side
from holdfast.replication.progress import Fault


@dataclass(frozen=True)
class Cause:
    side: Side
    health: Health
    cause: str
    cure: str
    """Empty: the error's own."""


_SOURCE, _LINK, _REPLICA = Side.SOURCE, Side.LINK, Side.REPLICA
_WARNING, _CRITICAL = Health.WARNING, Health.CRITICAL
_ITSELF = "Nothing: the next try goes on."

FAULTS: dict[str, Cause] = {
    "replica-host-unknown": Cause(
        *(_LINK, _CRITICAL, "The name of the receiving host cannot be resolved here"),
        "Mend this host's resolver, or remove the peer and pair with the host's address.",
    ),
    "replica-host-unreachable": Cause(
        *(_LINK, _CRITICAL, "The receiving host's address cannot be reached from here"),
        "See that the host is on, and that routes and firewalls between the two let it through.",
    ),
    "replica-nobody-listens": Cause(
        *(_REPLICA, _CRITICAL, "The receiving host is there, but nobody listens for replicas"),
        "Start its daemon with --replica-listen for the address and port of `holdfast replica peer list`.",
    ),
    "replica-link-lost": Cause(
        *(_LINK, _CRITICAL, "The link to the receiving host was lost"),
        "See that its daemon runs, and that the network between the two holds connections.",
    ),
    "replica-not-that-peer": Cause(
        *(
            _REPLICA,
            _CRITICAL,
            "Another host answers at the peer's address, or the peer has a new certificate",
        ),
        "Find out which. If that host was set up anew, remove the peer and pair again; if not, somebody is "
        "in between.",
    ),
    "replica-not-let-in": Cause(
        *(_REPLICA, _CRITICAL, "The receiving host does not know this one any more: they are paired no more"),
        "Pair again: `holdfast replica accept` there, `holdfast replica peer add` here.",
    ),
    "no-space": Cause(
        *(_REPLICA, _CRITICAL, "The receiving host's disk is full"),
        "Make room there: remove replicas or files, or keep fewer points (`--points`).",
    ),
    "no-space-for-records": Cause(
        *(_REPLICA, _CRITICAL, "The receiving host has no room left for its records"), "Make room there."
    ),
    "replica-space-limit": Cause(
        *(_REPLICA, _CRITICAL, "This host's replicas take all the room that the receiving host allows them"),
        "Allow more there: pair anew with `holdfast replica accept --space`; or keep fewer points, or remove "
        "replicas.",
    ),
    "replica-too-many-vms": Cause(
        *(_REPLICA, _CRITICAL, "The receiving host takes no more VMs of this host"),
        "Pair anew with `holdfast replica accept --vms`, or remove a replica there.",
    ),
    "replica-of-another-source": Cause(
        *(_REPLICA, _CRITICAL, "Another host sends this VM to the receiving host"), ""
    ),
    "replica-moved": Cause(
        *(_REPLICA, _CRITICAL, "The VM failed over to another host, which sends it to the receiving host"), ""
    ),
    "replica-disk-too-large": Cause(
        *(_SOURCE, _CRITICAL, "A disk is larger than a replica can hold"),
        "Exclude that disk (`--exclude`), or split it up in the guest.",
    ),
    "replica-no-common-version": Cause(
        *(_LINK, _CRITICAL, "The two hosts speak no common version of the protocol"),
        "Bring both hosts to the same version of Holdfast.",
    ),
    "replica-frame-refused": Cause(
        *(_LINK, _CRITICAL, "What came over the link is not the protocol of this version"),
        "Bring both hosts to the same version of Holdfast, and see that nothing in between "
        "answers for the peer.",
    ),
    "replica-wrong-digests": Cause(
        *(_REPLICA, _CRITICAL, "The receiving host does not keep to the protocol while both are compared"),
        "Bring both hosts to the same version of Holdfast.",
    ),
    "replica-damaged": Cause(
        *(_REPLICA, _CRITICAL, "What the receiving host holds of this VM is damaged"),
        "Look for a failing disk there. Both sides are compared by themselves; if that fails time and again, "
        "remove the replica there, and it is copied anew.",
    ),
    "replica-cycle-refused": Cause(
        *(_REPLICA, _WARNING, "The receiving host holds something else than the source took for granted"),
        _ITSELF + " Both sides find out first what is held.",
    ),
    "replica-cycle-out-of-order": Cause(
        *(_REPLICA, _WARNING, "The receiving host holds another cycle than the source took for granted"),
        _ITSELF + " Both sides find out first what is held.",
    ),
    "replica-busy": Cause(
        *(_REPLICA, _WARNING, "An earlier link about this VM has not ended there yet"), _ITSELF
    ),
    "replica-source-lost": Cause(
        *(_SOURCE, _WARNING, "The VM's disks could not be read as they were at the instant of a cycle"),
        "See that the VM's folder has room for what the guest overwrites during a cycle; the changes are the "
        "next cycle's.",
    ),
    "vm-died": Cause(
        *(_SOURCE, _WARNING, "QEMU ended in the middle of a cycle"),
        "Start the VM. Its maps of changes are lost with QEMU: both sides are compared then, by themselves.",
    ),
    "replica-firmware-changing": Cause(
        *(_SOURCE, _WARNING, "The guest wrote firmware variables or its TPM at the instant of a cycle"),
        _ITSELF,
    ),
    "replica-no-disks": Cause(
        *(_SOURCE, _CRITICAL, "The VM has no disk left to replicate"), "Add a disk, or disable replication."
    ),
    "replica-peer-not-found": Cause(
        *(_SOURCE, _CRITICAL, "The peer was forgotten on this host"), "Pair again under the same name."
    ),
    "os-error": Cause(*(_SOURCE, _CRITICAL, "A file or socket of this host could not be used"), ""),
}


def cause_of(fault: Fault) -> Cause:
    """Of an error that is not known: the side that said it, and its own words."""
    if fault.refused and fault.id == "replica-not-that-peer":  # said by the receiver of this host
        return FAULTS["replica-not-let-in"]
    if not fault.refused and fault.id in ("replica-damaged", "replica-point-lost"):  # of one that is sent on
        return Cause(_SOURCE, _CRITICAL, "What this host holds of this VM is damaged", fault.cure)
    known = FAULTS.get(fault.id)
    if known is None:
        return Cause(_REPLICA if fault.refused else _SOURCE, _CRITICAL, fault.message, fault.cure)
    if not fault.refused and fault.id in ("no-space", "no-space-for-records"):
        return Cause(_SOURCE, _CRITICAL, "This host's disk is full", "Make room on this host.")
    return known if known.cure else Cause(known.side, known.health, known.cause, fault.cure)
