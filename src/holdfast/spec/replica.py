"""Hosts that replicate to each other, the VMs that they send, and those that they hold."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from holdfast.spec.failover import FailoverNetwork
from holdfast.spec.model import Frozen
from holdfast.spec.names import Name
from holdfast.spec.replica_figures import ReplicaProgress
from holdfast.spec.units import Size


class PeerRole(StrEnum):
    SOURCE = "source"
    """It sends replicas to this host."""
    RECEIVER = "receiver"
    """It holds replicas of this host's VMs."""


class ReplicaLimits(Frozen):
    """What a source may have on this host."""

    vms: int = Field(default=100, ge=1, le=10_000)
    space: Size | None = Field(default=None, ge=1)
    """Bytes of all its replicas together; None: all there is."""


class ReplicaPeer(Frozen):
    """A host that was paired with this one. One host may be both, each under a name of its own."""

    name: Name
    role: PeerRole
    certificate: str = Field(max_length=16384)
    """PEM; nothing else is let in, or sent to, under this name."""
    fingerprint: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    host: str | None = None
    """Name or address of a receiver."""
    port: int | None = Field(default=None, ge=1, le=65535)
    paired: datetime
    limits: ReplicaLimits = ReplicaLimits()
    """Of a source."""


class ReplicaAccept(Frozen):
    limits: ReplicaLimits = ReplicaLimits()
    minutes: int = Field(default=60, ge=1, le=7 * 24 * 60)
    """How long the token is of use."""


class ReplicaAccepted(Frozen):
    token: str
    """It can be had this once, and is of use once."""
    expires: datetime


class PeerAdd(Frozen):
    name: Name
    """What the receiver is to be called here."""
    address: str = Field(max_length=300)
    """`https://HOST:PORT`; an IPv6 address in brackets."""
    token: str = Field(max_length=256)
    """What `accept` made over there."""
    own_name: Name | None = None
    """What this host is to be called over there; None: its host name."""


class PeerView(Frozen):
    name: str
    role: PeerRole
    address: str | None
    """`https://HOST:PORT` of a receiver."""
    fingerprint: str
    paired: datetime
    limits: ReplicaLimits | None
    """Of a source."""
    vms: int
    """That are replicated to it, or held for it."""
    limit: str = "none"
    """Of all that is sent to it."""


class Priority(StrEnum):
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class Consistency(StrEnum):
    """What a point is like for the guest that is started from it."""

    CRASH = "crash"
    """As after a power failure."""
    APPLICATION = "application"
    """Its file systems, and what its agent tells, were brought to rest for the instant."""


class ReplicaTerms(Frozen):
    """How something is sent, whether a VM or a replica that is sent on."""

    rpo_seconds: float = Field(default=1.0, ge=1.0, le=86400.0)
    """How old the newest point may be."""
    points: str = Field(default="all:10m,1m:1h,1h:1d,1d:30d", max_length=500)
    """Which points are kept; see docs/guide/replica.md."""
    priority: Priority = Priority.NORMAL
    limit: str = Field(default="none", max_length=1000)
    """What may be sent, such as `200Mbit/s`; also by time of day."""
    exclude: tuple[Annotated[str, Field(max_length=63)], ...] = Field(default=(), max_length=256)
    """Disks that are not replicated."""
    failover: FailoverNetwork = FailoverNetwork()
    """The VM's network on the host that it fails over to."""
    schedule: str = Field(default="always", max_length=1000)
    """When cycles are sent: `always`, or windows such as `22:00-06:00,sat 00:00-24:00`, by local time."""
    initial: str = Field(default="now", max_length=20)
    """When the initial copy begins: `now`, or `at 22:00`."""


class ReplicaSettings(ReplicaTerms):
    """What is agreed of a replication. All of it holds on the way back, too, after a failover."""

    consistent_seconds: float = Field(default=0.0, ge=0.0, le=30 * 86400.0)
    """After how long a point is application-consistent again; 0: none is."""


class ReplicaEnable(ReplicaSettings):
    peer: Name

    @property
    def agreed(self) -> ReplicaSettings:
        """All of it but where to."""
        return ReplicaSettings(**{each: getattr(self, each) for each in ReplicaSettings.model_fields})


class ReplicaExtend(ReplicaTerms):
    """A replica that this host holds, to be sent on; switches by their names on the VM's own host."""

    peer: Name
    rpo_seconds: float = Field(default=15.0, ge=1.0, le=86400.0)
    """How old the newest point may be, counted from its instant on the VM's own host."""


class ReplicaChange(Frozen):
    """What is to be different; None: as it is. The words are those of `ReplicaEnable`."""

    rpo_seconds: float | None = Field(default=None, ge=1.0, le=86400.0)
    points: str | None = Field(default=None, max_length=500)
    priority: Priority | None = None
    limit: str | None = Field(default=None, max_length=1000)
    exclude: tuple[Annotated[str, Field(max_length=63)], ...] | None = Field(default=None, max_length=256)
    failover: FailoverNetwork | None = None
    schedule: str | None = Field(default=None, max_length=1000)
    consistent_seconds: float | None = Field(default=None, ge=0.0, le=30 * 86400.0)
    initial: Literal["now"] | None = None
    """One that waits begins at once."""


class ReplicaStatus(Frozen):
    """One replicated VM."""

    vm: str
    peer: str
    state: str
    health: str
    """`normal`, `warning` or `critical`."""
    rpo_seconds: float | None
    """Age of the newest point that is whole over there; None: there is none yet."""
    rpo_p50_seconds: float | None
    rpo_p99_seconds: float | None
    lag_bytes: int
    """Changed here, and not whole over there."""
    full_copies: int
    """Since it was enabled, the initial one not counted."""
    points: int
    """Over there."""
    target_seconds: float
    """The RPO that is wanted."""
    throughput: float
    """Bytes of changes a second that arrive."""
    cycles: int
    """That arrived within the last twelve hours, of which also errors and averages are."""
    last_error: str
    """Why the last try failed; empty: it did not."""
    findings: tuple[str, ...]
    """What is not as it should be, the worst first."""
    lag_seconds: float | None = None
    """The RPO while something waits, else 0; None: there is no point yet."""
    churn: float = 0.0
    """Bytes a second that the guest changes."""
    wire_rate: float = 0.0
    """Bytes a second that went over the link within the last minute."""
    next_cycle_seconds: float | None = None
    """None: one is under way, or waits for something to happen."""
    catch_up_seconds: float | None = None
    """Until nothing waits, as things go; None: it falls behind further."""
    progress: ReplicaProgress | None = None
    """Of a cycle that takes longer than a moment."""
    errors: int = 0
    average_bytes: float = 0.0
    largest_bytes: int = 0
    average_latency: float = 0.0
    """Seconds from a cycle's instant until it is whole over there."""
    missed_ratio: float = 0.0
    """Part of the time, 0 to 1, in which the RPO was above its target."""
    last_sync: datetime | None = None
    last_test: datetime | None = None
    """When the replica was tested last, by the receiver's clock."""
    last_error_id: str = ""
    failing_seconds: float = 0.0
    """Since tries fail; 0: they do not."""
    attempts: int = 0
    """That failed, one after another."""
    priority: Priority = Priority.NORMAL
    limit: str = "none"
    """Of the VM."""
    counted_cycles: int = 0
    """That arrived since this daemon runs, of which also the following are."""
    counted_failures: int = 0
    counted_changed_bytes: int = 0
    counted_sent_bytes: int = 0
    """On the link."""
    peer_limit: str = "none"
    host_limit: str = "none"
    sent_on: bool = False
    """It is a replica that this host holds for another one, not a VM of its own."""
    moved_to: str = ""
    """Name of the host that the VM failed over to, which sends it now; empty: it did not."""


class ReplicaLimit(Frozen):
    """Of what is sent: `200Mbit/s`, `none`, also by time of day."""

    limit: str = Field(max_length=1000)


class ReplicaSharedLimits(Frozen):
    host: str
    """Of all that this host sends together."""
    peers: dict[str, str]
    """Of all that is sent to a peer, by its name; to others as much as there is."""


class HeldReplica(Frozen):
    """A VM of another host that is held here."""

    name: str
    source: str
    """Name of the peer that sends it; empty: it is paired no more."""
    connected: bool
    points: int
    newest: datetime | None
    """The instant of the newest point, by the source's clock."""
    oldest: datetime | None
    used: int
    """Bytes that it takes here."""
    lost: int = 0
    """Points that are lost by damage."""
    last_test: datetime | None = None
    """When one of them was tested last."""
    accepted_from: str = ""
    """Name of a peer that may send it in the source's place, since the VM failed over to it."""


class ReplicaSender(Frozen):
    """Who may send a replica that is held here, from now on."""

    peer: Name
    replace: bool = False
    """Also where the host that sends it is connected."""
