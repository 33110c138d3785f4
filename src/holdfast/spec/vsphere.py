"""VMs of a vCenter or an ESXi host: how they are named, reached and listed.

    vsphere://[USER@]HOST[:PORT]/[DATACENTER/]VM

A password is never part of an address.
"""

from datetime import datetime
from typing import Self
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, model_validator

from holdfast.spec.appliance import ImportChoices
from holdfast.spec.errors import InvalidInput
from holdfast.spec.model import Frozen

SCHEME = "vsphere://"
DEFAULT_PORT = 443


class BadVsphereAddress(InvalidInput):
    id = "bad-vsphere-address"


class VsphereAddress(Frozen):
    """What an address says."""

    host: str
    port: int
    user: str | None
    datacenter: str | None
    vm: str | None
    """None: all of them."""

    @property
    def server(self) -> str:
        """`HOST:PORT`, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> VsphereAddress:
    """The parts of an address, percent-decoded. Raises BadVsphereAddress."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise _bad("is no address", "") from None
    if parts.password is not None:
        raise _bad("holds a password", "Leave it out: it is asked for, or read by --password-file.")
    if not text.startswith(SCHEME) or not parts.hostname or parts.query or parts.fragment:
        raise _bad("names no host of VMware", "")
    names = [unquote(each) for each in parts.path.split("/") if each]
    if len(names) > 2:
        raise _bad("has too many parts", "Write a / that is part of a name as %2F.")
    return VsphereAddress(
        host=parts.hostname,
        port=port or DEFAULT_PORT,
        user=unquote(parts.username) if parts.username else None,
        datacenter=names[0] if len(names) == 2 else None,
        vm=names[-1] if names else None,
    )


def _bad(why: str, cure: str) -> BadVsphereAddress:
    # The address itself is not repeated: it may hold the password.
    return BadVsphereAddress(
        f"the address {why}",
        value=SCHEME,
        cure=cure or "Write vsphere://[USER@]HOST[:PORT]/[DATACENTER/]VM.",
    )


class VsphereAccess(Frozen):
    """A server, and who asks it."""

    address: str = Field(max_length=1024)
    user: str = Field(min_length=1, max_length=256)
    password: SecretStr = Field(max_length=4096)
    thumbprint: str | None = Field(default=None, max_length=128)
    """SHA-256 of the server's certificate in hex, to be trusted from now on; None: as it is known already."""


class VsphereImport(ImportChoices):
    """A VM of a server, and how it is brought over."""

    source: VsphereAccess
    warm: bool = False
    """While it runs there: copied, brought up to date, and only then shut down."""
    cut_over_at: datetime | None = None
    """Of a warm import, when it is shut down there; None: as soon as little changes."""
    interval: int = Field(default=900, ge=60, le=86400)
    """Seconds between two rounds while a warm import waits for that time."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.cut_over_at is not None and not self.warm:
            raise ValueError("only a warm import has a time at which it cuts over")
        return self


class VsphereVm(Frozen):
    """One line of a server's inventory."""

    name: str
    datacenter: str
    id: str
    """Managed object id there."""
    running: bool
    cpus: int
    memory: int
    """Bytes."""
    firmware: str
    guest: str
    """As VMware calls the guest's system."""
    storage: int
    """Bytes of the datastores that it takes."""
    change_tracking: bool
    snapshots: bool
    template: bool
