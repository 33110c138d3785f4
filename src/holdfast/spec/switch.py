"""Switches: what a VM's network interface is plugged into."""

from enum import StrEnum
from typing import Self

from pydantic import model_validator

from holdfast.spec.model import Frozen
from holdfast.spec.names import Name


class SwitchType(StrEnum):
    """Hyper-V's three words, and one for hosts where nothing else is allowed."""

    PRIVATE = "private"
    """VMs among themselves; the host is not on it."""
    INTERNAL = "internal"
    """VMs and the host: DHCP, names and NAT to the outside."""
    EXTERNAL = "external"
    """Joined to a physical interface of the host."""
    USER = "user"
    """User-mode network of a single VM: outgoing connections only, needs no privilege."""


class SwitchSpec(Frozen):
    name: Name
    type: SwitchType
    subnet: str | None = None
    """IPv4 network of an internal switch in CIDR form; chosen free where it is not given."""
    interface: str | None = None
    """Physical interface of an external switch."""

    @model_validator(mode="after")
    def _fits_type(self) -> Self:
        if self.type is SwitchType.EXTERNAL and not self.interface:
            raise ValueError("an external switch needs the interface that it joins")
        if self.type is not SwitchType.EXTERNAL and self.interface:
            raise ValueError(f"a switch of type {self.type} joins no interface")
        if self.type is not SwitchType.INTERNAL and self.subnet:
            raise ValueError(f"a switch of type {self.type} has no subnet of its own")
        return self
