"""User-mode network: a NIC that is on no switch. Outgoing connections only, needs no privilege.

QEMU's built-in network (SLIRP) is what is used: it lives and ends with QEMU, survives the daemon's
death, starts where the host has no default route and brings no second process that could die and
leave the guest cut off.
"""

from holdfast.spec.attachment import SlirpAttachment
from holdfast.spec.names import host_name


def attach_user_mode(vm_name: str) -> SlirpAttachment:
    return SlirpAttachment(host_name=host_name(vm_name))


def notice(vm_name: str) -> str:
    """What a person should know about it, in one sentence."""
    return (
        f"VM {vm_name!r} is on the user-mode network: it reaches out, but neither the host nor other VMs "
        "reach it, and it is slower than a switch."
    )
