"""What an initial copy of a replica can begin with instead of sending everything."""

from typing import Annotated

from pydantic import Field, StringConstraints

from holdfast.spec.model import Frozen
from holdfast.spec.names import Name

Folder = Annotated[str, StringConstraints(pattern=r"^/[^\x00]*$", max_length=4000)]
"""Absolute, on the daemon's host."""


class SeedExport(Frozen):
    peer: Name
    """The receiver that it is for; nobody else can read it."""
    folder: Folder
    """Empty, or to be made."""


class SeedImport(Frozen):
    folder: Folder


class SeedFromVm(Frozen):
    from_vm: Name
    """A VM of this host, which is off."""
    peer: Name
    """The source."""
    vm: str = Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
    """Id of the VM over there."""
    name: Name | None = None
    """What it is called over there; None: as the one here."""
