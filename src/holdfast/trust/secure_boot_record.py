"""What PCR 7 and 14 record: Secure Boot, its keys, and which of them accepted the loaders.

TCG PC Client Platform Firmware Profile, section 3.3.4.8; for PCR 14 and SbatLevel shim's README.tpm.
Types of events are not measured, only their digests are. So that no event can be passed off as another
or be hidden, everything in PCR 7 must prove what it is by its digest: up to the first separator the
variables, SecureBoot first; after it those who accepted loaders. What the running system appends never
counts as configuration.
"""

import hashlib
from dataclasses import dataclass, field

from holdfast.spec.trust import Signer
from holdfast.trust.event_log import Event, EventLog
from holdfast.trust.guest_text import printable
from holdfast.trust.measured import (
    SHIM_LOCK,
    Variable,
    claimed_text,
    is_separator,
    proven_variable,
)
from holdfast.trust.signature_lists import (
    CERTIFICATE_SHA256,
    SHA256,
    X509,
    HeldCertificate,
    Signature,
    parse_lists,
    read_certificate,
)
from holdfast.trust.variables import IMAGE_SECURITY

_DATABASES = ("PK", "KEK", "db", "dbx")
_DEBUG = b"UEFI Debug Mode"
_NO_DMA_PROTECTION = b"DMA Protection Disabled"
_OWNER = 16
_MAX_SBAT = 4096
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Authority:
    """An entry of a list by which a loader was accepted."""

    event: Event
    variable: Variable
    signer: Signer
    tbs_sha256: bytes
    """Of a certificate; empty of a hash."""

    @property
    def of_firmware(self) -> bool:
        """It stands in the firmware's db, and not in a list of shim's."""
        return self.variable.vendor == IMAGE_SECURITY


@dataclass(slots=True)
class SecureBootRecord:
    enabled: bool | None = None
    """None: not told."""
    event: int = 0
    """Number of the event that tells."""
    databases: dict[str, tuple[Signature, ...]] = field(default_factory=dict)
    authorities: list[Authority] = field(default_factory=list)
    sbat: dict[str, int] | None = None
    """Component to the least generation that shim demands; None: shim told no level."""
    sbat_event: int = 0
    separated: bool = False
    debug_mode: bool = False
    dma_unprotected: bool = False
    shim: bool = False
    """shim measured its own state."""
    shim_insecure: bool = False
    """shim was told to accept anything (MokSBState)."""
    unexplained: list[tuple[Event, str]] = field(default_factory=list)
    """Events that should prove what they say, and do not."""


def read_record(log: EventLog) -> SecureBootRecord:
    """Read all that PCR 7 and 14 tell; never fails: what cannot be understood is `unexplained`."""
    record = SecureBootRecord()
    for event in log.events:
        if event.pcr == 7:
            if record.separated:
                _later(record, event)
            else:
                _configuration(record, event)
    if record.shim:
        _shim_state(record, [event for event in log.events if event.pcr == 14])
    return record


def _configuration(record: SecureBootRecord, event: Event) -> None:
    variable = proven_variable(event)
    if is_separator(event):
        record.separated = True
    elif variable is None:
        _action(record, event)
    elif record.event == 0 and variable.name != "SecureBoot":
        record.unexplained.append((event, "SecureBoot should have been measured before it"))
    elif variable.name == "SecureBoot":
        record.enabled = variable.data == b"\1" and record.enabled is not False
        record.event = record.event or event.number
    elif variable.name in _DATABASES:
        _database(record, event, variable)


def _action(record: SecureBootRecord, event: Event) -> None:
    text = event.data.rstrip(b"\0")
    if text not in (_DEBUG, _NO_DMA_PROTECTION) or not event.proves(event.data):
        record.unexplained.append((event, "it proves neither a variable nor an action that is known"))
    record.debug_mode |= text == _DEBUG
    record.dma_unprotected |= text == _NO_DMA_PROTECTION


def _database(record: SecureBootRecord, event: Event, variable: Variable) -> None:
    try:
        if variable.name in record.databases:
            raise ValueError("it was measured before")
        record.databases[variable.name] = parse_lists(variable.data)
    except ValueError as error:
        record.databases[variable.name] = ()
        record.unexplained.append((event, f"{variable.name}: {error}"))


def _later(record: SecureBootRecord, event: Event) -> None:
    """After the separator: who accepted what was started. Secure Boot may be switched off here, never on."""
    variable = proven_variable(event)
    if variable is None:
        if not is_separator(event):
            _action(record, event)
    elif variable.name == "SecureBoot":
        record.enabled = record.enabled if variable.data == b"\1" else False
    elif variable.vendor == SHIM_LOCK and variable.name == "SbatLevel":
        record.shim = True
        _sbat(record, event, variable)
    elif variable.vendor == SHIM_LOCK and len(variable.data) == 1:  # a switch, MokListTrusted say
        record.shim = True
        record.shim_insecure |= variable.name == "MokSBState" and variable.data == b"\1"
    elif (authority := _authority(event, variable)) is None:
        record.unexplained.append((event, "what accepted a loader is neither certificate nor hash"))
    else:
        record.shim |= variable.vendor == SHIM_LOCK
        record.authorities.append(authority)


def _sbat(record: SecureBootRecord, event: Event, variable: Variable) -> None:
    """The level is comma-separated lines (shim's SBAT.md); of several, the weakest counts."""
    level: dict[str, int] = {}
    for line in variable.data[:_MAX_SBAT].decode("ascii", errors="replace").splitlines():
        component, _, rest = line.partition(",")
        text = (rest.split(",")[1:2] or [""])[0] if component == "sbat" else rest.split(",")[0]
        if text.isascii() and text.isdigit() and len(text) <= 12:
            level[printable(component, 60)] = int(text)
    if record.sbat is not None:
        level = {name: min(level[name], record.sbat[name]) for name in level.keys() & record.sbat.keys()}
    record.sbat, record.sbat_event = level, event.number


def _authority(event: Event, variable: Variable) -> Authority | None:
    """Its data are an EFI_SIGNATURE_DATA, or with shim's own certificate only that."""
    for content in (variable.data[_OWNER:], variable.data):
        held = read_certificate(content)
        if held is not None:
            signer = signer_of(held, _source(variable))
            body = hashlib.sha256(held.certificate.tbs_certificate_bytes).digest()
            return Authority(event, variable, signer, body)
    if len(variable.data) == _OWNER + 32:
        text = f"sha256:{variable.data[_OWNER:].hex()}"
        return Authority(event, variable, Signer(subject=text, fingerprint="", source=_source(variable)), b"")
    return None


def signer_of(held: HeldCertificate, source: str) -> Signer:
    """`source` names the list that holds the certificate."""
    return Signer(subject=printable(held.subject, _SHOWN), fingerprint=held.fingerprint, source=source)


def _source(variable: Variable) -> str:
    return printable(variable.name, 60)


def _shim_state(record: SecureBootRecord, events: list[Event]) -> None:
    """PCR 14: shim measures its lists and switches there, each under a name that is not measured.

    A switch that is set is the byte 1. One such is MokListTrusted, which is set by default; more of
    them, or one under another name, is MokSBState or takes its place.
    """
    switched = [event for event in events if event.proves(b"\1")]
    names = [claimed_text(event) for event in switched]
    named = any(claimed_text(event) == "MokSBState" and not event.proves(b"\0") for event in events)
    record.shim_insecure |= named or len(names) > 1 or names not in ([], ["MokListTrusted"])


@dataclass(frozen=True, slots=True)
class Lists:
    """db and dbx, to ask."""

    allowed: frozenset[bytes]
    """Entries of db, with their owners and without: old versions of shim measure the certificate alone."""
    images: frozenset[bytes]
    """SHA-256 Authenticode digests of programs in dbx."""
    certificates: frozenset[str]
    """Fingerprints of certificates in dbx."""
    bodies: frozenset[bytes]
    """SHA-256 of the signed part of certificates in dbx."""

    def allows(self, authority: Authority) -> bool:
        """Whether db holds just what was measured."""
        return authority.variable.data in self.allowed

    def revokes(self, authority: Authority) -> bool:
        """Whether dbx holds the certificate, itself or by its hash."""
        return authority.signer.fingerprint in self.certificates or authority.tbs_sha256 in self.bodies


def lists_of(record: SecureBootRecord) -> Lists:
    """db and dbx as they were measured."""
    db, dbx = record.databases.get("db", ()), record.databases.get("dbx", ())
    return Lists(
        allowed=frozenset(part for each in db for part in (each.entry, each.data)),
        images=frozenset(each.data for each in dbx if each.kind == SHA256),
        certificates=frozenset(hashlib.sha256(each.data).hexdigest() for each in dbx if each.kind == X509),
        bodies=frozenset(each.data[:32] for each in dbx if each.kind == CERTIFICATE_SHA256),
    )
