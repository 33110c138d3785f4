"""Measured boot in words: what was measured, what a policy demands, and the verdict.

All are values on the wire. Digests are written `sha256:` and hexadecimal digits, PCRs by number, and
values of PCRs as hexadecimal digits of the verdict's bank.
"""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from holdfast.spec.model import Frozen

BOOT_PCRS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14)
"""What firmware, shim and GRUB measure (TCG PC Client Platform Firmware Profile, section 3.3.4; shim: 14)."""
COMPARED_PCRS = (4, 7, 8, 9, 14)
"""What stays the same from boot to boot unless loaders, keys, kernel or its parameters change."""

MAX_RULES = 1024

Digest = Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})$")]
PcrNumber = Annotated[int, Field(ge=0, le=23)]
PcrValue = Annotated[str, Field(pattern=r"^([0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128})$")]

PcrValues = Annotated[tuple[PcrValue, ...], Field(min_length=1, max_length=MAX_RULES)]


class Bank(StrEnum):
    """A set of PCRs that one hash extends; the weakest first."""

    SHA1 = "sha1"
    SHA256 = "sha256"
    SHA384 = "sha384"
    SHA512 = "sha512"

    @property
    def size(self) -> int:
        """Bytes of a digest."""
        return {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}[self.value]


class Severity(StrEnum):
    INFO = "info"
    WARNING = "warning"
    FAILURE = "failure"


class Finding(Frozen):
    """One thing that was found; `id` is kebab-case and never changes its meaning."""

    id: str
    severity: Severity
    text: str


class LinkRole(StrEnum):
    """What a link of the boot chain is."""

    FIRMWARE = "firmware"
    SECURE_BOOT = "secure-boot"
    LOADER = "loader"
    """Started by the firmware, and not known to be one of the others."""
    SHIM = "shim"
    GRUB = "grub"
    KERNEL = "kernel"
    REVOCATIONS = "revocations"
    """The SBAT level that shim enforces."""
    COMMAND_LINE = "command-line"
    FILE = "file"
    """Read by GRUB: its configuration, the kernel, the initrd."""


class Signer(Frozen):
    """A certificate, or a single hash, by which a loader was accepted."""

    subject: str
    """RFC 4514 text; of a hash, the hash."""
    fingerprint: str
    """SHA-256 of the DER certificate, hexadecimal; empty for a hash."""
    source: str
    """The list that holds it: db, MokListRT, vendor_db, ..."""


class ChainLink(Frozen):
    """One link of the boot chain, in the order of the log."""

    role: LinkRole
    text: str
    """The whole link in words, for people."""
    pcr: PcrNumber
    event: int
    """Its number in the log; the header is 0."""
    digest: str = ""
    signers: tuple[Signer, ...] = ()
    known: str | None = None
    """What the digest is known as."""


class Verdict(Frozen):
    """What one piece of evidence is worth under one policy; `fail` where any finding is a failure."""

    verdict: Literal["pass", "fail"]
    findings: tuple[Finding, ...]
    bank: Bank
    pcrs: dict[PcrNumber, str]
    """Values that the quote confirms; where it confirms none, what the log replays to."""
    chain: tuple[ChainLink, ...]
    policy: str
    """Name of the policy."""
    attested: bool
    """A genuine quote confirms the log: chain and PCRs are facts, and not only claims of the guest."""
    reset_count: int | None = None
    """How often the TPM was started, as it says itself; two quotes with one count are of one boot."""


class BaselineEvent(Frozen):
    pcr: PcrNumber
    kind: int
    """Event type (TCG PC Client Platform Firmware Profile, section 10.4.1)."""
    digest: Digest
    text: str
    """What it was taken for when it was learned."""


class Baseline(Frozen):
    """One boot that was known to be good."""

    bank: Bank
    pcrs: dict[PcrNumber, PcrValue]
    events: Annotated[tuple[BaselineEvent, ...], Field(max_length=4096)]


class SignerRule(Frozen):
    """Matches a certificate by all that is given; give at least one."""

    subject: str | None = None
    """RFC 4514 text, whole."""
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """SHA-256 of the DER certificate."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not (self.subject or self.fingerprint):
            raise ValueError("a rule for signers needs a subject or a fingerprint")
        return self


class RequiredMeasurement(Frozen):
    """A digest that must be among the events of a PCR."""

    pcr: PcrNumber
    digest: Digest
    what: str = ""
    """For people: "the kernel 6.1.192", say."""


class TrustPolicy(Frozen):
    """What a boot must show to pass; every rule that is given must hold.

    The default accepts what Secure Boot accepts, proven by a quote of `BOOT_PCRS`.
    """

    version: Literal[1] = 1
    name: Annotated[str, Field(min_length=1, max_length=100)] = "default"
    secure_boot: Literal["required", "optional"] = "required"
    compare: tuple[PcrNumber, ...] = COMPARED_PCRS
    """PCRs that must be as in the baseline, where there is one; others may differ and are told."""
    baseline: Baseline | None = None
    signers: Annotated[tuple[SignerRule, ...], Field(max_length=MAX_RULES)] | None = None
    """Every certificate that accepted a loader must match one of these."""
    images: Annotated[tuple[Digest, ...], Field(max_length=MAX_RULES)] | None = None
    """Every program that the firmware or shim started must have one of these Authenticode digests."""
    required: Annotated[tuple[RequiredMeasurement, ...], Field(max_length=MAX_RULES)] = ()
    pcr_values: dict[PcrNumber, PcrValues] = {}
    """Exact values, each PCR one of them."""
    forbidden: Annotated[tuple[Digest, ...], Field(max_length=MAX_RULES)] = ()
    """Digests known to be bad: no program or file of the chain may have one."""
    minimum_sbat: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Component (`shim`, `grub`, ...) to the least generation that the running shim must demand of it.

    `sbat` stands for the level as a whole; its generation is a date, 2025021800 say.
    """


class PolicyChange(Frozen):
    """What another policy would make of the same evidence."""

    changes: tuple[str, ...]
    """Rules that differ, in words."""
    before: Verdict
    after: Verdict
    appearing: tuple[Finding, ...]
    """Findings that only the new policy makes."""
    vanishing: tuple[Finding, ...]
    """Findings that only the old policy makes."""
    text: str
    """The effect in one sentence."""
