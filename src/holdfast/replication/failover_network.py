"""A VM's network on the host that it fails over to. Pure: from what was sent along to what is made there.

Who makes the VM over there calls, in this order:

    mapped(spec, failover, switches)      the specification with the switches of that host
    failover_seed(id, name, spec, ...)    the NoCloud seed, where the VM has one: it sets addresses
    waiting(spec, failover)               NICs whose addresses are left to the guest's agent, see
                                          `guest_addresses`, once it has started
"""

from collections.abc import Collection

from holdfast.spec.errors import Conflict
from holdfast.spec.failover import FailoverAddress, FailoverNetwork
from holdfast.spec.vm import Nic, VmSpec
from holdfast.vm.cloud_init import readdressed_seed, seed_files
from holdfast.vm.nics import NicNotFound


class SwitchMissing(Conflict):
    """A switch that the VM is plugged into is not on the host that it fails over to."""

    id = "replica-switch-missing"


def require_nics(spec: VmSpec, failover: FailoverNetwork) -> None:
    """Pass where the VM has all NICs that are to get addresses. Raises NicNotFound."""
    present = [nic.id for nic in spec.nics]
    for each in failover.addresses:
        if each.nic not in present:
            raise NicNotFound(
                f"the VM has no NIC {each.nic!r}",
                value=each.nic,
                cure=f"Its NICs are {', '.join(present) or 'none'}.",
            )


def mapped(spec: VmSpec, failover: FailoverNetwork, switches: Collection[str]) -> VmSpec:
    """The specification with switches as they are called on this host.

    Args:
        switches: names of all switches here.

    Raises SwitchMissing.
    """
    here = {each.lower(): each for each in switches}
    nics: list[Nic] = []
    for nic in spec.nics:
        if nic.switch is None:
            nics.append(nic)
            continue
        wanted = failover.switch(nic.switch)
        if wanted.lower() not in here:
            raise SwitchMissing(
                f"{nic.id} is plugged into the switch {nic.switch!r}, and this host has no {wanted!r}",
                value=wanted,
                cure=f"Make it (`holdfast switch create {wanted!r}`), or say on the source what it is called "
                f"here: `holdfast replica set VM --map-switch {nic.switch!r}=NAME`.",
            )
        nics.append(nic.model_copy(update={"switch": here[wanted.lower()]}))
    return spec.model_copy(update={"nics": tuple(nics)})


def failover_seed(
    vm_id: str, name: str, spec: VmSpec, failover: FailoverNetwork, number: int
) -> dict[str, str] | None:
    """Names and texts of the files on the seed disc; None: the VM has none.

    Where a NIC gets other addresses the seed is of a new instance, so that cloud-init applies it, and does
    nothing but set addresses: user, keys, host name and what user data did once stay as they are.

    Args:
        vm_id: the VM's id on the source, which its guest knows as its instance.
        number: of this failover; rising, since an instance that the guest knows already changes nothing.

    Raises BadCloudInit.
    """
    if spec.cloud_init is None:
        return None
    wanted = {each.nic: each for each in _of_present(spec, failover)}
    if not wanted:
        return seed_files(spec.cloud_init, name, vm_id, spec.nics)
    return readdressed_seed(f"{vm_id}-failover-{number}", spec.nics, wanted)


def waiting(spec: VmSpec, failover: FailoverNetwork) -> tuple[tuple[Nic, FailoverAddress | None], ...]:
    """NICs whose addresses no seed can set: they are set through the guest's agent after the start.

    None: what an earlier failover set is taken away.
    """
    if spec.cloud_init is not None:
        return ()
    found: dict[str, FailoverAddress | None] = {each.nic: each for each in _of_present(spec, failover)}
    found |= dict.fromkeys(failover.own)
    return tuple((nic, found[nic.id]) for nic in spec.nics if nic.id in found)


def _of_present(spec: VmSpec, failover: FailoverNetwork) -> tuple[FailoverAddress, ...]:
    """A NIC may have been removed since its address was said."""
    present = {nic.id for nic in spec.nics}
    return tuple(each for each in failover.addresses if each.nic in present)
