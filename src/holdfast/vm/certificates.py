"""How a VM stands with Secure Boot's certificates, and what a change of them would do. Changes nothing.

Trust knows stores and signatures, storage reads disks; this puts the two together, and says it in the
words of `spec`. Everything here blocks (some ms a VM) and runs in threads. What a VM is made of comes
as a `Subject`, so that other things that hold disks and a store can be judged by the same rules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from holdfast.spec.attachment import Layer
from holdfast.spec.certificates import (
    CertificateStatus,
    CertificateView,
    Database,
    KeyPlan,
    KeyStep,
    LoaderView,
    VmCertificates,
)
from holdfast.spec.errors import Conflict, HoldfastError
from holdfast.spec.vm import VmState
from holdfast.trust import key_changes
from holdfast.trust.authenticode import Standing, signers
from holdfast.trust.boot_entries import boot_entries
from holdfast.trust.key_changes import KeyChange
from holdfast.trust.key_stores import KeyStores, Store, require_size
from holdfast.trust.microsoft import BY_FINGERPRINT, BY_ID
from holdfast.trust.signature_lists import KeyDatabase, encode_lists, read_certificate
from holdfast.trust.variables import KeyInventory
from holdfast.vm.loaders import Loaders, find_loaders

_DATABASES: tuple[Database, ...] = get_args(Database)
_S = CertificateStatus
PCR7 = (
    "The measured state of Secure Boot (PCR 7) changes: suspend BitLocker, or what else is sealed to it,"
    " before the next start, and seal it anew afterwards. Without that the guest asks for its recovery key."
)
_AT_NEXT_START = "Made at the next start after a shut-down; a restart from inside the guest is not one."
_SAVED = (
    "The saved memory holds the variable store as it was, so this is made at the first start after the"
    " guest that is saved now has been shut down."
)


class WouldNotBoot(Conflict):
    id = "would-not-boot"


class ForeignPlatformKey(Conflict):
    id = "foreign-platform-key"


class NoSecureBootStore(Conflict):
    id = "no-secure-boot-store"


class LoaderNotReadable(Conflict):
    id = "loader-not-readable"


@dataclass(frozen=True)
class Subject:
    """What is judged: a name, a folder with a variable store, and disks."""

    name: str
    folder: Path
    secure_boot: bool
    """It is meant to start with Secure Boot on."""
    disks: Sequence[tuple[str, Sequence[Layer]]]
    """Name and chain (top first) of each."""
    state: VmState = VmState.OFF


@dataclass(frozen=True)
class Standpoint:
    """A subject as it was read once."""

    subject: Subject
    store: Store | None
    loaders: Loaders
    pending: tuple[KeyChange, ...]
    problem: str = ""
    """Why there is no store."""


def look(subject: Subject) -> Standpoint:
    """Read store and disks."""
    try:
        store = KeyStores.read(subject.folder)
        pending = KeyStores.pending(subject.folder)
    except FileNotFoundError:
        return Standpoint(subject, None, Loaders(), (), "it has no variable store")
    except HoldfastError as error:
        return Standpoint(subject, None, Loaders(), (), error.message)
    except OSError as error:
        return Standpoint(subject, None, Loaders(), (), f"it cannot be read: {error.strerror}")
    return Standpoint(subject, store, find_loaders(subject.disks, boot_entries(store.variables)), pending)


def view(at: Standpoint, authorities: Mapping[str, bytes], now: datetime | None = None) -> VmCertificates:
    """How it stands; `now` is the time that certificates are held against."""
    status, reason = assess(at, authorities, now)
    if at.store is None:
        return VmCertificates(vm=at.subject.name, status=status, reason=reason)
    keys = at.store.keys
    after = _after(keys, (KeyChange(successors=True),), authorities)
    first = at.loaders.first(keys.databases["db"], keys.databases["dbx"])
    dbx = keys.databases["dbx"]
    known = [*keys.databases["db"].certificates, *map(read_certificate, authorities.values())]
    named = signers(first[0].loader, [each for each in known if each is not None]) if first else ()
    return VmCertificates(
        vm=at.subject.name,
        status=status,
        reason=reason,
        loader_signers=named,
        certificates=_views(keys),
        loader=LoaderView(
            disk=first[0].disk,
            path=first[0].path,
            sha256=first[0].loader.sha256,
            signers=named,
            standing=first[1].standing,
            by=first[1].by,
            after_update=first[0].judged(after["db"], after["dbx"]).standing,
        )
        if first
        else None,
        loader_note=at.loaders.note,
        missing=key_changes.successors(keys),
        expired=tuple(each.name for each in key_changes.expired(keys, now or datetime.now(UTC))),
        revoked_images=len(dbx.image_hashes),
        revoked_certificates=len(dbx.certificates) + len(dbx.certificate_hashes),
        pending=bool(at.pending),
        previous=KeyStores.has_previous(at.subject.folder),
    )


def assess(
    at: Standpoint, authorities: Mapping[str, bytes], now: datetime | None = None
) -> tuple[CertificateStatus, str]:
    """The one word and its sentence."""
    if not at.subject.secure_boot:
        return _S.NO_SECURE_BOOT, "It starts without Secure Boot."
    if at.store is None:
        return _S.UNREADABLE, f"Nothing is known of it: {at.problem}."
    keys = at.store.keys
    if not keys.secure_boot:
        return _S.NO_SECURE_BOOT, "Its variable store holds no platform key, or has Secure Boot switched off."
    foreign = key_changes.foreign_pk(keys)
    if foreign is not None:
        return _S.FOREIGN_PK, f"Its platform key is somebody's own ({foreign.name}): it is left alone."
    after = _after(keys, (KeyChange(successors=True),), authorities)
    first = at.loaders.first(after["db"], after["dbx"])
    if first is not None and first[1].standing is not Standing.ACCEPTED:
        return (
            _S.WOULD_NOT_BOOT,
            f"Its loader {first[0].path} on {first[0].disk} is refused: {first[1].standing}.",
        )
    late = key_changes.expired(keys, now or datetime.now(UTC))
    names = ", ".join(f"{each.name} ({each.expires:%Y-%m-%d})" for each in late)
    missing = key_changes.successors(keys)
    if missing:
        text = f"To be added: {', '.join(BY_ID[each].name for each in missing)}."
        return _S.UPDATE_AVAILABLE, text + (f" Expired without a successor: {names}." if late else "")
    if late:
        return _S.EXPIRED, f"Expired without a successor: {names}."
    return _S.READY, "Nothing is to be done."


def plan(at: Standpoint, change: KeyChange, authorities: Mapping[str, bytes]) -> KeyPlan:
    """What `change` would do, or why it is refused."""
    status, _ = assess(at, authorities)
    try:
        databases = worked_out(at, (*at.pending, change), authorities)
    except HoldfastError as error:  # of this one alone, whatever it is
        return KeyPlan(vm=at.subject.name, when="never", reason=error.message, status=status)
    if not databases or at.store is None:
        return KeyPlan(vm=at.subject.name, when="never", reason="There is nothing to do.", status=status)
    old = at.store.keys.databases
    after = {**old, **databases}
    first = at.loaders.first(after["db"], after["dbx"])
    notices = [PCR7]
    if at.subject.state is VmState.SAVED:
        notices.append(_SAVED)
    elif at.subject.state not in (VmState.OFF, VmState.FAILED):
        notices.append(_AT_NEXT_START)
    if first is not None and first[1].standing is not Standing.ACCEPTED:
        notices.append(f"It will not boot: its loader is refused ({first[1].standing}).")
    return KeyPlan(
        vm=at.subject.name,
        when="now" if at.subject.state in (VmState.OFF, VmState.FAILED) else "next-start",
        status=status,
        steps=tuple(step for name in databases for step in _steps(name, old[name], databases[name])),
        loader_after=first[1].standing if first else "",
        notices=tuple(notices),
    )


def worked_out(
    at: Standpoint, changes: Sequence[KeyChange], authorities: Mapping[str, bytes]
) -> dict[str, KeyDatabase]:
    """The databases that these changes make anew; none where all is so already.

    Raises:
        NoSecureBootStore: it has no store, or does not use Secure Boot.
        ForeignPlatformKey: an update meets a platform key that is somebody's own.
        WouldNotBoot, LoaderNotReadable: it would not boot afterwards, or nobody can tell.
        KeysTooLarge: a database is larger than firmware takes.
    """
    if at.store is None or not at.subject.secure_boot:
        raise NoSecureBootStore(
            f"{at.subject.name!r} does not use Secure Boot",
            value=at.subject.name,
            cure="Switch it on first: `holdfast vm set NAME --secure-boot`.",
        )
    keys = at.store.keys
    foreign = key_changes.foreign_pk(keys)
    if foreign is not None and any(each.successors for each in changes):
        raise ForeignPlatformKey(
            f"the platform key of {at.subject.name!r} is somebody's own: {foreign.name}",
            value=foreign.fingerprint,
            cure="Its owner decides: `holdfast certs enrol` adds certificates one by one.",
        )
    databases = key_changes.changed(keys, changes, authorities)
    require_size({name: encode_lists(each.signatures) for name, each in databases.items()})
    if databases and not any(each.force for each in changes):
        _require_boot(at, {**keys.databases, **databases})
    return databases


def _require_boot(at: Standpoint, after: Mapping[str, KeyDatabase]) -> None:
    first = at.loaders.first(after["db"], after["dbx"])
    if first is not None and first[1].standing is not Standing.ACCEPTED:
        loader, judged = first
        raise WouldNotBoot(
            f"{at.subject.name!r} would not boot: its loader {loader.path} on {loader.disk}"
            f" ({', '.join(loader.loader.signers) or 'not signed'}) is refused as {judged.standing}"
            + (f" by {judged.by}" if judged.by else ""),
            value=str(judged.standing),
            cure="Update the loader in the guest first; --force does it nevertheless.",
            detail={"sha256": loader.loader.sha256, "path": loader.path, "disk": loader.disk},
        )
    assert at.store is not None  # noqa: S101  (the caller has looked)
    if first is None and at.loaders.unreadable and _takes_away(at.store.keys.databases, after):
        raise LoaderNotReadable(
            f"whether {at.subject.name!r} would still boot cannot be told: {at.loaders.note}",
            value=at.subject.name,
            cure="Mend the disk, or add --force.",
        )


def _takes_away(before: Mapping[str, KeyDatabase], after: Mapping[str, KeyDatabase]) -> bool:
    """Something is revoked, or trusted no more."""
    return bool(
        set(after["dbx"].signatures) - set(before["dbx"].signatures)
        or set(before["db"].signatures) - set(after["db"].signatures)
    )


def _after(
    keys: KeyInventory, changes: Sequence[KeyChange], authorities: Mapping[str, bytes]
) -> dict[str, KeyDatabase]:
    return {**keys.databases, **key_changes.changed(keys, changes, authorities)}


def _views(keys: KeyInventory) -> tuple[CertificateView, ...]:
    return tuple(
        CertificateView(
            variable=name,
            subject=held.subject,
            issuer=held.issuer,
            expires=held.expires,
            fingerprint=held.fingerprint,
            microsoft=known.id if (known := BY_FINGERPRINT.get(held.fingerprint)) else None,
        )
        for name in _DATABASES
        for held in keys.databases[name].certificates
    )


def _steps(name: str, before: KeyDatabase, after: KeyDatabase) -> list[KeyStep]:
    steps = []
    variable = next(each for each in _DATABASES if each == name)
    old, new = set(before.fingerprints), set(after.fingerprints)
    for held in before.certificates:
        if held.fingerprint not in new:
            steps.append(KeyStep(variable=variable, action="remove", what=held.name, expires=held.expires))
    for held in after.certificates:
        if held.fingerprint not in old:
            steps.append(KeyStep(variable=variable, action="add", what=held.name, expires=held.expires))
    for what, earlier, later in (
        ("image digests", before.image_hashes, after.image_hashes),
        ("digests of certificates", before.certificate_hashes, after.certificate_hashes),
    ):
        if later - earlier:
            steps.append(KeyStep(variable=variable, action="add", what=f"{len(later - earlier)} {what}"))
        if earlier - later:
            steps.append(KeyStep(variable=variable, action="remove", what=f"{len(earlier - later)} {what}"))
    return steps
