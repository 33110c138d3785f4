"""States of a replication, and its health: rules as data over facts, each with its cause and its cure. Pure.

The states are those that Hyper-V's users know. Health is derived from facts whenever it is asked for; the
worst finding decides. To add a rule is to add a line to `RULES`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum


class ReplicationState(StrEnum):
    NOT_ENABLED = "not-enabled"
    READY_FOR_INITIAL = "ready-for-initial-replication"
    INITIAL_IN_PROGRESS = "initial-replication-in-progress"
    REPLICATING = "replicating"
    SYNCED = "synced"
    """Prepared for a planned failover: nothing is missing."""
    FAILOVER_WAITING = "failover-waiting-completion"
    FAILED_OVER = "failed-over"
    SUSPENDED = "suspended"
    ERROR = "error"
    WAITING_FOR_RESYNC = "waiting-for-resync"
    RESYNCHRONISING = "resynchronising"
    RESYNC_SUSPENDED = "resync-suspended"


class Health(IntEnum):
    """Ordered: the larger is the worse."""

    NORMAL = 0
    WARNING = 1
    CRITICAL = 2


class Side(StrEnum):
    SOURCE = "source"
    REPLICA = "replica"
    LINK = "link"


@dataclass(frozen=True)
class Facts:
    """What is known of one replication now."""

    state: ReplicationState
    target: float
    """Seconds of the RPO that is wanted."""
    rpo: float | None
    """Seconds; None: no point arrived yet."""
    missed: float = 0.0
    """Part of the window, 0 to 1, in which the RPO was above its target."""
    since_enabled: float = 0.0
    """Seconds."""
    cannot_send: str = ""
    """Why the source cannot send now; empty: it can."""
    cannot_send_for: float = 0.0
    """Seconds since that began."""
    cannot_send_cure: str = "See that the receiving host runs and can be reached; then it goes on by itself."
    catches_up: bool = True
    """False: churn exceeds what the link takes."""
    fenced: bool = False
    """The VM has failed over to another host."""
    moved_to: str = "the other host"
    """That host."""
    both_run: bool = False
    """It has, and still runs here."""
    replica_paused: bool = False
    reverse_enabled: bool = True
    """After a failover: whether changes flow back."""
    lost_points: int = 0
    replica_room_left: int | None = None
    """Bytes; None: there is no limit."""
    not_consistent: str = ""
    """Why the guest's file systems could not be brought to rest for a point; empty: they could."""
    bytes_a_day: float = 0.0
    """That the replica grows by."""
    ahead: float = 0.0
    """Seconds by which the newest point is later than this host's clock."""
    machine_failed: bool = False
    """QEMU ended by itself."""
    rests_unsent: bool = False
    """The VM does not run, and not all that it changed is over there."""
    churn: float = 0.0
    """Bytes a second that the guest changes."""
    throughput: float = 0.0
    """Bytes a second of changes that arrive."""
    undecided: bool = False
    """Of a replica that is sent on: its VM runs on this host by a failover that is not final."""
    silent: float = 0.0
    """Of a replica that is sent on, all of which is over there: seconds since its newest instant."""


@dataclass(frozen=True)
class Rule:
    id: str
    health: Health
    side: Side
    holds: Callable[[Facts], bool]
    cause: str
    """For people, as the cure; `format` is given the facts' fields."""
    cure: str


@dataclass(frozen=True)
class Finding:
    rule: str
    health: Health
    side: Side
    cause: str
    cure: str


_RESYNC = (ReplicationState.WAITING_FOR_RESYNC, ReplicationState.RESYNC_SUSPENDED)
_INITIAL = (ReplicationState.READY_FOR_INITIAL, ReplicationState.INITIAL_IN_PROGRESS)
_FAILED_OVER = (ReplicationState.FAILED_OVER, ReplicationState.FAILOVER_WAITING)
_LATE = 3600.0
"""Seconds without a point that are always worth a warning, whatever the target."""
_DAY = 86400.0
_SKEW = 5.0
"""Seconds that clocks may be apart."""
_SILENT = 60.0
"""Seconds that the source of a replica which is sent on may have nothing to send."""
_RETRIED = 30.0
"""Seconds for which a link that is cut is only a link that is being retried."""

RULES: tuple[Rule, ...] = (
    Rule(
        *("both-run", Health.CRITICAL, Side.SOURCE),
        lambda facts: facts.both_run,
        "The VM has failed over and runs on {moved_to}, and it runs here too",
        "Decide which of the two is kept: stop this one, or cancel the failover over there.",
    ),
    Rule(
        *("failed-over", Health.WARNING, Side.SOURCE),
        lambda facts: facts.fenced and not facts.both_run,
        "The VM has failed over to {moved_to}: it does not start here, and nothing of it is sent from here",
        "Nothing; once that is committed this host becomes its replica. Others that it was sent to are told "
        "that {moved_to} may send it: `holdfast replica enable` there goes on with what they hold.",
    ),
    Rule(
        *("cannot-send", Health.CRITICAL, Side.LINK),
        lambda facts: bool(facts.cannot_send) and facts.cannot_send_for > _RETRIED,
        "The source cannot send for {cannot_send_for:.0f} s: {cannot_send}",
        "{cannot_send_cure}",
    ),
    Rule(
        *("retrying", Health.WARNING, Side.LINK),
        lambda facts: bool(facts.cannot_send) and facts.cannot_send_for <= _RETRIED,
        "The last try to send failed: {cannot_send}",
        "Nothing; it is tried again.",
    ),
    Rule(
        *("resync-required", Health.CRITICAL, Side.SOURCE),
        lambda facts: facts.state in _RESYNC,
        "Both sides have to be compared before replication goes on, and that waits",
        "Resume replication; only what differs is sent, and recovery points stay.",
    ),
    Rule(
        *("replica-paused", Health.CRITICAL, Side.REPLICA),
        lambda facts: facts.replica_paused,
        "The receiving host has paused this replica",
        "Resume it there.",
    ),
    Rule(
        *("replication-error", Health.CRITICAL, Side.SOURCE),
        lambda facts: facts.state is ReplicationState.ERROR,
        "Replication stopped with an error",
        "Read its last error and what it says to do, then resume.",
    ),
    Rule(
        *("replica-full", Health.CRITICAL, Side.REPLICA),
        lambda facts: facts.replica_room_left is not None and facts.replica_room_left <= 0,
        "The replica has used all the room that it is allowed",
        "Allow it more room on the receiving host, or keep fewer points.",
    ),
    Rule(
        *("points-lost", Health.WARNING, Side.REPLICA),
        lambda facts: facts.lost_points > 0,
        "{lost_points} recovery points are damaged on the replica",
        "Look for a failing disk on the receiving host; other points can be used.",
    ),
    Rule(
        *("replica-filling", Health.WARNING, Side.REPLICA),
        lambda facts: facts.replica_room_left is not None and 0 < facts.replica_room_left < facts.bytes_a_day,
        "The room that the replica is allowed is used up within a day",
        "Allow it more room on the receiving host, or keep fewer points.",
    ),
    Rule(
        *("targets-missed", Health.WARNING, Side.LINK),
        lambda facts: facts.missed > 0.2,
        "The RPO was above its target of {target:g} s in {missed:.0%} of the window",
        "Give the replication more bandwidth or a higher priority, or ask for a longer RPO.",
    ),
    Rule(
        *("falling-behind", Health.WARNING, Side.LINK),
        lambda facts: not facts.catches_up,
        "The guest changes more than arrives at the replica: {churn:,.0f} bytes a second, of which "
        "{throughput:,.0f} arrive",
        "Raise the limit, or wait: the RPO recovers once the guest writes less.",
    ),
    Rule(
        *("late", Health.WARNING, Side.LINK),
        lambda facts: facts.rpo is not None and facts.rpo > max(_LATE, 2 * facts.target),
        "The newest recovery point is {rpo:.0f} s old",
        "See the other findings for why.",
    ),
    Rule(
        *("initial-incomplete", Health.WARNING, Side.SOURCE),
        lambda facts: facts.state in _INITIAL and facts.since_enabled > _DAY,
        "The initial copy is not complete since {since_enabled:.0f} s",
        "Start it, raise its limit, or bring it on a removable medium.",
    ),
    Rule(
        *("no-reverse", Health.WARNING, Side.REPLICA),
        lambda facts: facts.state in _FAILED_OVER and not facts.reverse_enabled,
        "The VM runs on the replica, and nothing is replicated back",
        "Reverse the replication once the old primary can be reached.",
    ),
    Rule(
        *("not-consistent", Health.WARNING, Side.SOURCE),
        lambda facts: bool(facts.not_consistent),
        "The last point that was to be application-consistent is not: {not_consistent}",
        "See that qemu-guest-agent runs in the guest; it is tried again by itself.",
    ),
    Rule(
        *("source-paused", Health.WARNING, Side.SOURCE),
        lambda facts: facts.state is ReplicationState.SUSPENDED,
        "Replication is paused on the source",
        "Resume it.",
    ),
    Rule(
        *("clock-behind", Health.WARNING, Side.SOURCE),
        lambda facts: facts.ahead > _SKEW,
        "The newest point is {ahead:.0f} s later than the clock of this host, which was set back",
        "See that both hosts' clocks are kept (NTP). Points keep their order, but their times mislead.",
    ),
    Rule(
        *("machine-failed", Health.WARNING, Side.SOURCE),
        lambda facts: facts.machine_failed and facts.rests_unsent,
        "QEMU ended by itself: what the VM changed last was not sent, and what it changed is not known",
        "See `holdfast vm log` for why. Its disks are compared with the replica, by themselves.",
    ),
    Rule(
        *("failover-undecided", Health.WARNING, Side.SOURCE),
        lambda facts: facts.undecided,
        "The VM failed over to this host, and that is not final: nothing newer is sent on",
        "Commit the failover: then the VM is replicated from here. Or cancel it: then the chain goes on.",
    ),
    Rule(
        *("nothing-to-send-on", Health.WARNING, Side.SOURCE),
        lambda facts: facts.silent > max(_SILENT, 2 * facts.target),
        "All that this host holds is over there, and nothing newer came for {silent:.0f} s from the host "
        "that sends it here",
        "See why there (`holdfast replica explain`, on both). Of a VM that is off nothing needs to come; "
        "where its replication to this host was disabled, or that host is lost, points stay as they are.",
    ),
    Rule(
        *("unsent", Health.WARNING, Side.SOURCE),
        lambda facts: facts.rests_unsent and not facts.machine_failed,
        "The VM does not run, and what it changed last was not sent",
        "It is read and sent by itself; disks that are devices of the host's once it runs.",
    ),
)


def findings(facts: Facts, rules: Sequence[Rule] = RULES) -> tuple[Finding, ...]:
    """What is not as it should be, the worst first; nothing of a VM that is not replicated."""
    if facts.state is ReplicationState.NOT_ENABLED:
        return ()
    told = vars(facts)
    found = [
        Finding(rule.id, rule.health, rule.side, rule.cause.format(**told), rule.cure.format(**told))
        for rule in rules
        if rule.holds(facts)
    ]
    return tuple(sorted(found, key=lambda each: -each.health))


def health(found: Sequence[Finding]) -> Health:
    return max((each.health for each in found), default=Health.NORMAL)
