"""Who asks, and what that role may do."""

from enum import StrEnum

from holdfast.spec.model import Frozen


class Role(StrEnum):
    """A role includes the ones below it: admin > operator > viewer."""

    ADMIN = "admin"
    """Everything: tokens, images, switches, creation and deletion."""
    OPERATOR = "operator"
    """Lifecycle and console of VMs that exist."""
    VIEWER = "viewer"
    """Reads."""

    def includes(self, other: "Role") -> bool:
        order = list(Role)
        return order.index(self) <= order.index(other)


class Principal(Frozen):
    """The authenticated caller of one request."""

    name: str
    """`uid 0`, `token ci`, ..."""
    role: Role
