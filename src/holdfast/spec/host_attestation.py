"""What a host and its verifier say to each other, and what a verifier keeps of a host.

Binary values are hexadecimal, those that may be long are base64. PCRs are of the SHA-256 bank.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from holdfast.spec.model import Frozen
from holdfast.spec.names import Name

HOST_PCRS = (0, 2, 4, 7)
"""Firmware, its extensions, the boot loader and Secure Boot (TCG PC Client Platform Firmware Profile,
section 3.3.4): what stays the same over updates of kernel, initrd and command line."""

Hex = Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$", max_length=8192)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PcrNumber = Annotated[int, Field(ge=0, le=23)]
Pcrs = Annotated[dict[PcrNumber, Digest], Field(min_length=1, max_length=24)]
HostId = Digest
"""SHA-256 of the public area of the host's endorsement key: the digest in that key's TPM Name."""
Base64 = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*={0,2}$")]


class HostIdentity(Frozen):
    """Whose TPM it is. Nothing in it is proven yet."""

    endorsement: Hex
    """TPMT_PUBLIC of the endorsement key."""
    certificate: Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$", max_length=32768)] | None = None
    """The X.509 certificate (DER) that the TPM holds of it."""
    attestation: Hex
    """TPMT_PUBLIC of the attestation key."""


class HostEvidence(Frozen):
    """What a host's TPM says of its boot state."""

    attest: Hex
    """TPMS_ATTEST."""
    signature: Hex
    """TPMT_SIGNATURE."""
    pcrs: Pcrs
    event_log: Annotated[Base64, Field(max_length=1_400_000)] = ""
    """As the kernel shows it in binary_bios_measurements; empty where there is none."""


class HostEnrol(Frozen):
    """Ask a verifier to know a host from now on."""

    name: Name
    identity: HostIdentity
    pcrs: Pcrs | None = None
    """Values to be demanded; without it those are learned that the host has at this moment."""


class HostChallenge(Frozen):
    """To be answered once, within its time."""

    nonce: Digest
    pcrs: Annotated[tuple[PcrNumber, ...], Field(min_length=1, max_length=24)]
    """Those that the quote must cover."""
    credential: Hex = ""
    """At enrolment: TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET for the TPM that the host claims to have."""
    seconds: int
    """How long it is good for."""


class HostProof(Frozen):
    """The answer to a challenge."""

    nonce: Digest
    evidence: HostEvidence
    activated: Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")] = ""
    """At enrolment: what the TPM found in the credential."""


class HostFinding(Frozen):
    """One thing that was found; `id` is kebab-case and never changes its meaning."""

    id: str
    severity: Literal["info", "warning", "failure"]
    text: str


class HostVerdict(Frozen):
    """`not-trusted` where any finding is a failure."""

    verdict: Literal["trusted", "not-trusted"]
    findings: tuple[HostFinding, ...]
    at: datetime


class EnrolledHost(Frozen):
    """A host that a verifier knows."""

    id: HostId
    name: Name
    endorsement: Hex
    attestation: Hex
    certified: bool
    """Somebody trusted vouches for the TPM; else the admin who enrolled it does."""
    pcrs: Pcrs
    """What it must boot to."""
    enrolled: datetime
    last: HostVerdict | None = None


class HostAttested(Frozen):
    """A host was found trusted."""

    token: str
    """Compact JWS (RFC 7515): see `trust.host_attestation.tokens`."""
    expires: datetime
    verdict: HostVerdict


class WrappedForHost(Frozen):
    """A secret that one host's TPM opens, and no other."""

    credential: Hex
    """Holds the key of `sealed` (AES-256-GCM)."""
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{24}$")]
    sealed: Hex


class ReleaseRequest(Frozen):
    """What a trusted host asks its verifier for: the key that guards something of its own."""

    token: Annotated[str, Field(max_length=4096)]
    release_key: Hex
    """TPMT_PUBLIC of the host's key that is bound to its boot state."""
    purpose: Annotated[str, Field(pattern=r"^vm [0-9a-f-]{36}$")]
    """`vm` and the VM's id."""
    make: bool = False
    """Make the key where there is none yet."""


class VerifierLink(Frozen):
    """How a host reaches the verifier that has enrolled it."""

    url: Annotated[str, Field(pattern=r"^https://", max_length=512)]
    fingerprint: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    """Of the certificate that the verifier shows."""
    token: SecretStr
    """Of its TLS door; the role viewer suffices."""
    host: HostId
    """What the verifier knows this host as."""


class VerifierView(Frozen):
    """The link, without its token."""

    url: str
    fingerprint: str
    host: HostId


class HostStanding(Frozen):
    """What the verifier says of a host that has just attested."""

    verifier: str
    """Its address."""
    verdict: HostVerdict
    expires: datetime
