"""Changes of a store's key databases: described as data, worked out before they are made. Pure.

A change is applied to the store as it then is, so one that waits for a VM's next start keeps what the
guest wrote meanwhile, and one that is applied twice changes nothing the second time.
"""

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from holdfast.trust.microsoft import BY_FINGERPRINT, BY_ID, OWNER, PLATFORM_KEYS
from holdfast.trust.signature_lists import (
    X509,
    HeldCertificate,
    KeyDatabase,
    Signature,
    database_of,
    encode_lists,
    parse_lists,
)
from holdfast.trust.variables import VENDORS, KeyInventory

ORDER = ("db", "KEK", "dbx", "PK")
"""Trust in the new before anything that could need it, revocation after, the platform key last."""

_VERSION = 1


@dataclass(frozen=True)
class KeyChange:
    """What somebody asked for."""

    successors: bool = False
    """Add the certificates of 2023 that follow those of 2011 which are there."""
    added: Mapping[str, tuple[Signature, ...]] = field(default_factory=dict)
    """By database; what is there already is not added again."""
    replaced: Mapping[str, tuple[Signature, ...]] = field(default_factory=dict)
    """By database: its whole new content."""
    force: bool = False
    """Whoever asked for it wants it although the VM would not boot afterwards."""

    def to_json(self) -> dict[str, Any]:
        return {
            "successors": self.successors,
            "added": {name: encode_lists(each).hex() for name, each in self.added.items()},
            "replaced": {name: encode_lists(each).hex() for name, each in self.replaced.items()},
            "force": self.force,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> "KeyChange":
        """Raises ValueError, KeyError or TypeError where it is none."""
        added, replaced = (
            {name: parse_lists(bytes.fromhex(text)) for name, text in data[key].items() if name in VENDORS}
            for key in ("added", "replaced")
        )
        return KeyChange(bool(data["successors"]), added, replaced, bool(data["force"]))


@dataclass(frozen=True)
class Recorded:
    """A change that waits, and the operations that asked for it; none in records of earlier versions."""

    change: KeyChange
    operations: tuple[str, ...] = ()


def dump(changes: Iterable[Recorded]) -> bytes:
    wire = [{**each.change.to_json(), "operations": each.operations} for each in changes]
    return json.dumps({"version": _VERSION, "changes": wire}).encode()


def load(data: bytes) -> tuple[Recorded, ...]:
    """Raises ValueError where it was not written by `dump`."""
    try:
        wire = json.loads(data)
        if wire["version"] != _VERSION:
            raise ValueError("written by another version")
        return tuple(
            Recorded(KeyChange.from_json(each), tuple(str(id_) for id_ in each.get("operations", ())))
            for each in wire["changes"]
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("no list of changes") from error


def foreign_pk(found: KeyInventory) -> HeldCertificate | None:
    """The platform key where it is neither ours nor a distribution's."""
    keys = found.databases["PK"].certificates
    return next((each for each in keys if each.fingerprint not in PLATFORM_KEYS), None)


def successors(found: KeyInventory) -> tuple[str, ...]:
    """Ids of the certificates of 2023 that are to follow those of 2011, and are neither there nor revoked."""
    wanted = []
    revoked = found.databases["dbx"].fingerprints
    for name in ("db", "KEK"):
        there = found.databases[name].fingerprints
        for held in found.databases[name].certificates:
            known = BY_FINGERPRINT.get(held.fingerprint)
            for each in known.successors if known and known.variable == name else ():
                if BY_ID[each].fingerprint not in there | revoked and each not in wanted:
                    wanted.append(each)
    return tuple(wanted)


def expired(found: KeyInventory, now: datetime) -> tuple[HeldCertificate, ...]:
    """Certificates of KEK and db that have expired and that nothing in the store replaces."""
    late = []
    for name in ("KEK", "db"):
        database = found.databases[name]
        for held in database.certificates:
            known = BY_FINGERPRINT.get(held.fingerprint)
            heirs = {BY_ID[each].fingerprint for each in known.successors} if known else set()
            if held.expires <= now and not heirs & database.fingerprints:
                late.append(held)
    return tuple(late)


def changed(
    found: KeyInventory, changes: Iterable[KeyChange], authorities: Mapping[str, bytes]
) -> dict[str, KeyDatabase]:
    """The databases that differ after these changes, in the order of ORDER.

    Args:
        authorities: DER of Microsoft's certificates by id.
    """
    now = dict(found.databases)
    for change in changes:
        for name, content in change.replaced.items():
            now[name] = database_of(content)
        additions = {name: list(each) for name, each in change.added.items()}
        if change.successors:
            for each in successors(KeyInventory(found.secure_boot, now)):
                new = Signature(X509, uuid.UUID(OWNER), authorities[each])
                additions.setdefault(BY_ID[each].variable, []).append(new)
        for name, wanted in additions.items():
            now[name] = _with(now[name], wanted)
    return {name: now[name] for name in ORDER if now[name].signatures != found.databases[name].signatures}


def _with(database: KeyDatabase, wanted: Iterable[Signature]) -> KeyDatabase:
    """Whoever owns it: what is there by its kind and data is there."""
    there = {(each.kind, each.data) for each in database.signatures}
    new = [each for each in dict.fromkeys(wanted) if (each.kind, each.data) not in there]
    return database_of((*database.signatures, *new)) if new else database


def certificates_as(owner: uuid.UUID, files: Iterable[HeldCertificate]) -> tuple[Signature, ...]:
    return tuple(Signature(X509, owner, each.der) for each in files)
