"""What the store refuses."""

from holdfast.spec.errors import Conflict, Failed, Insufficient, InvalidInput, NotFound, Unsupported


class ReplicaExists(Conflict):
    id = "replica-exists"


class ReplicaNotFound(NotFound):
    id = "replica-not-found"


class PointNotFound(NotFound):
    id = "replica-point-not-found"


class PointLost(Conflict):
    """Something that the point is made of is damaged; the detail says what."""

    id = "replica-point-lost"


class ReplicaDamaged(Failed):
    """Found while working on it; the work was not done."""

    id = "replica-damaged"


class CycleRefused(InvalidInput):
    """What came from the source does not fit the replica."""

    id = "replica-cycle-refused"


class ReplicaBusy(Conflict):
    """A cycle is arriving already."""

    id = "replica-busy"


class ReplicaInUse(Conflict):
    """A VM stands on one of its points."""

    id = "replica-in-use"


class ReplicaFull(Insufficient):
    """More than the receiver allows this replica."""

    id = "replica-space-limit"


class DiskTooLarge(Unsupported):
    id = "replica-disk-too-large"


class TooManyOpenPoints(Conflict):
    id = "replica-too-many-open-points"
