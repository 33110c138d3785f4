"""A VM's trust as it crosses the wire: verdicts with their moment, what is enrolled, what is asked for."""

from datetime import datetime

from pydantic import Field

from holdfast.spec.model import Frozen
from holdfast.spec.trust import PolicyChange, TrustPolicy, Verdict

LEAST_INTERVAL = 30
MOST_INTERVAL = 30 * 24 * 3600


class VmVerdict(Verdict):
    """A verdict of the history."""

    number: int
    """Rises with every verdict of this host; 0 for one that is not kept."""
    vm: str
    """The VM's name when it was given."""
    time: datetime


class Enrolment(Frozen):
    """Whose word counts for a VM: its TPM's identity, proven by credential activation."""

    time: datetime
    endorsement: str
    """SHA-256 over the endorsement key (SubjectPublicKeyInfo), hexadecimal."""
    attestation_key: str
    """Name of the attestation key (Trusted Platform Module Library, part 1, section 16), hexadecimal."""


class TrustView(Frozen):
    """All that is known of a VM's trust."""

    vm: str
    enrolment: Enrolment | None
    policy: TrustPolicy
    interval_seconds: int | None
    """Attested again and again while it runs; None: only when asked."""
    verdict: VmVerdict | None
    """The last one; of a running VM that has none yet, one that was made to show and is not kept."""


class Schedule(Frozen):
    interval_seconds: int | None = Field(default=None, ge=LEAST_INTERVAL, le=MOST_INTERVAL)
    """Seconds between two attestations; None ends them."""


class PolicyAnswer(Frozen):
    """What became of a change of policy."""

    policy: TrustPolicy
    stored: bool
    """False for a dry run."""
    change: PolicyChange | None
    """What it makes of the VM as it runs now, beside the policy before; None where it does not run."""
