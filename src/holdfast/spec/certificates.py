"""Secure Boot's certificates of VMs: what is there, what may be done about it, and what was asked for."""

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Base64Bytes, Field

from holdfast.spec.model import Frozen

Database = Literal["PK", "KEK", "db", "dbx"]
LARGEST_FILE = 512 * 1024
"""Bytes of a certificate or a revocation list in a request."""


class CertificateStatus(StrEnum):
    """One word on a VM; where several hold, the first of them."""

    NO_SECURE_BOOT = "no-secure-boot"
    UNREADABLE = "unreadable"
    """Its variable store is damaged or not there."""
    FOREIGN_PK = "foreign-pk"
    """The platform key is somebody's own: reported, and left alone."""
    WOULD_NOT_BOOT = "would-not-boot"
    """Under the certificates after the update the firmware refuses every loader on its disks."""
    UPDATE_AVAILABLE = "update-available"
    EXPIRED = "expired-reduced-security"
    """It boots, but takes no new keys or revocations: a certificate has expired, and nothing replaces it."""
    READY = "ready"


class CertificateView(Frozen):
    variable: Database
    subject: str
    """RFC 4514 text."""
    issuer: str
    expires: datetime
    fingerprint: str
    """SHA-256 of the DER, 64 hexadecimal digits."""
    microsoft: str | None = None
    """Id of the certificate where it is one of Microsoft's of 2011 or 2023: `uefi-ca-2023`."""


class LoaderView(Frozen):
    """The first executable that the firmware starts from a VM's disks."""

    disk: str
    path: str
    sha256: str
    """Authenticode digest, 64 hexadecimal digits; empty where it is no executable."""
    signers: tuple[str, ...]
    """Common names of the authorities behind its signatures; one that is only named is `(unverified)`."""
    standing: str
    """Today: accepted, unsigned, unknown-signer, revoked or damaged."""
    by: str = ""
    """Which certificate or digest decided that."""
    after_update: str
    """The same, once the update is done."""


class VmCertificates(Frozen):
    """One VM of a list."""

    vm: str
    status: CertificateStatus
    reason: str
    """The status in a sentence."""
    loader_signers: tuple[str, ...] = ()
    certificates: tuple[CertificateView, ...] = ()
    loader: LoaderView | None = None
    loader_note: str = ""
    """Why no loader is known, or why there may be others."""
    missing: tuple[str, ...] = ()
    """Ids of Microsoft's certificates of 2023 that an update adds."""
    expired: tuple[str, ...] = ()
    """Names of certificates that have expired and that nothing in the store replaces."""
    revoked_images: int = 0
    """Image digests in dbx."""
    revoked_certificates: int = 0
    """Certificates and digests of certificates in dbx."""
    pending: bool = False
    """A change is recorded that the next start makes."""
    previous: bool = False
    """The store from before the last change is kept: `certs rollback` brings its keys back."""


class KeyStep(Frozen):
    """One change of one key database; steps are in the order db, KEK, dbx, PK."""

    variable: Database
    action: Literal["add", "remove"]
    what: str
    """Common name, or `N image digests`."""
    expires: datetime | None = None


class KeyPlan(Frozen):
    """What a change would do to one VM, before anything is done."""

    vm: str
    when: Literal["now", "next-start", "never"]
    """`never`: there is nothing to do, or it is refused; the reason says which."""
    reason: str = ""
    status: CertificateStatus
    """Today's."""
    steps: tuple[KeyStep, ...] = ()
    loader_after: str = ""
    """What the firmware then makes of the loader: accepted, revoked, ...; empty where none is known."""
    notices: tuple[str, ...] = ()


class KeyPlans(Frozen):
    items: tuple[KeyPlan, ...]


class CertsUpdate(Frozen):
    """Bring VMs to the certificates of both generations, and revoke what a list names."""

    vms: tuple[str, ...] = Field(default=(), max_length=1000)
    """Names; empty with `all`."""
    all: bool = False
    dbx: Base64Bytes | None = Field(default=None, max_length=LARGEST_FILE)
    """Signature lists, or an authenticated update file that holds them: what is to be revoked."""
    force: bool = False
    """Do it although the VM would not boot afterwards."""


class CertsEnrol(Frozen):
    """Put one's own certificates (DER or PEM; a PEM file may hold several) into a VM's store."""

    pk: Base64Bytes | None = Field(default=None, max_length=LARGEST_FILE)
    """The one platform key; it replaces the one that is there."""
    kek: tuple[Base64Bytes, ...] = Field(default=(), max_length=16)
    db: tuple[Base64Bytes, ...] = Field(default=(), max_length=16)
    replace: bool = False
    """What is given for KEK and db takes the place of all that is there."""
    force: bool = False
