"""A VM's firmware state as one object: its UEFI variable store and its vTPM, taken and put back together.

The object rests in a container (`trust.envelope`), whose header tells without any key what it is: the VM,
the TPM's identity, the versions of the TPM state, and each part's size and SHA-256. The content is the
parts, one after another in the header's order:

    variables.fd       the variable store
    tpm2-00.permall    swtpm's state, encrypted by the state key
    tpm.key            the state key, 32 bytes
    recovery.json      the state key under the VM's recovery key, where somebody has one
    authority.pem      the certificate of the host that made the TPM and vouches for its endorsement key

Putting it replaces the folder `firmware` as a whole (`trust.firmware_folder`). The VM must not run meanwhile.
Changes of keys that wait for its next start wait on, for the new store.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from cryptography import x509
from pydantic import Field, ValidationError

from holdfast.host.files import own, sync_folder, write_atomic
from holdfast.host.processes import Identity
from holdfast.host.threads import to_its_end
from holdfast.spec.errors import Conflict, Unsupported
from holdfast.spec.model import Frozen
from holdfast.trust import envelope, state_key
from holdfast.trust.bounded import read_bounded
from holdfast.trust.endorsement import AUTHORITY_FILE, EndorsementAuthority
from holdfast.trust.envelope import Envelope, FirmwareStateDamaged, Lock, Opener
from holdfast.trust.firmware_folder import replace_folder, settle_folder
from holdfast.trust.host_key import HostKeys, KeyRing
from holdfast.trust.key_stores import carry_pending
from holdfast.trust.protection import HostLock
from holdfast.trust.state_key import Recovery, VtpmDamaged
from holdfast.trust.swtpm_state import (
    LONGEST_STATE,
    OLDEST,
    STATE_FILE,
    StateFormat,
    require_readable,
    state_format,
)
from holdfast.trust.variables import VariablesDamaged, summarize
from holdfast.trust.vtpm import Vtpm, read_state

_VERSION = 1
_VARIABLES, _KEY, _RECOVERY = "variables.fd", "tpm.key", "recovery.json"
_LONGEST_AUTHORITY = 16 * 1024
_LONGEST_PART = 4 * 1024 * 1024
_VM_ID = r"^[0-9a-f-]{1,64}$"


class FirmwareStateNewer(Unsupported):
    id = "firmware-state-newer"


class FirmwareStateOfAnotherVm(Conflict):
    id = "firmware-state-of-another-vm"


class FirmwareStateUnlike(Conflict):
    id = "firmware-state-unlike"


class _Part(Frozen):
    name: Literal["variables.fd", "tpm2-00.permall", "tpm.key", "recovery.json", "authority.pem"]
    size: int = Field(ge=0, le=_LONGEST_PART)
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """None for the state key, of which nothing is told."""


class _TpmFacts(Frozen):
    identity: str = Field(pattern=_VM_ID)
    version: int = Field(ge=0, le=0xFFFF)
    least: int = Field(ge=0, le=0xFFFF)


class Header(Frozen):
    """What a container says of itself; true once it has opened."""

    version: Literal[1] = 1
    vm: str = Field(pattern=_VM_ID)
    written_by: str = Field(max_length=64)
    tpm: _TpmFacts | None = None
    parts: tuple[_Part, ...] = Field(min_length=1, max_length=5)


@dataclass(frozen=True)
class TpmState:
    identity: str
    """Id of the VM that the TPM was made for; a VM that took it over keeps it."""
    state: bytes = field(repr=False)
    key: bytes = field(repr=False)
    format: StateFormat
    recovery: Recovery | None = None
    authority: bytes | None = None
    """PEM; None: not known."""


@dataclass(frozen=True)
class FirmwareState:
    """The object. `tpm` is None for a VM that has none."""

    vm_id: str
    variables: bytes = field(repr=False)
    tpm: TpmState | None

    def sealed(self, lock: Lock) -> bytes:
        """As a container that `lock` lets somebody open."""
        parts = self._parts()
        header = Header(
            vm=self.vm_id,
            written_by=f"holdfast {version('holdfast')}",
            tpm=_TpmFacts(
                identity=self.tpm.identity, version=self.tpm.format.version, least=self.tpm.format.least
            )
            if self.tpm
            else None,
            parts=tuple(
                _Part.model_validate({"name": name, "size": len(data), "sha256": _told(name, data)})
                for name, data in parts.items()
            ),
        )
        return envelope.seal(header.model_dump(mode="json"), b"".join(parts.values()), lock)

    def _parts(self) -> dict[str, bytes]:
        parts = {_VARIABLES: self.variables}
        if self.tpm:
            parts |= {STATE_FILE: self.tpm.state, _KEY: self.tpm.key}
            if self.tpm.recovery:
                parts[_RECOVERY] = self.tpm.recovery.model_dump_json().encode()
            if self.tpm.authority:
                parts[AUTHORITY_FILE] = self.tpm.authority
        return parts


@dataclass(frozen=True)
class FirmwareCopy:
    """The files of a VM's firmware state at an instant, nothing of them looked at yet."""

    variables: bytes = field(repr=False)
    tpm: bytes | None = field(repr=False)
    """swtpm's state, encrypted by the state key."""


def copy_files(folder: Path, *, has_tpm: bool) -> FirmwareCopy:
    """The files of a VM that stands still, quickly: nothing is checked or decrypted. Raises OSError."""
    firmware = folder / "firmware"
    variables = read_bounded(firmware / _VARIABLES, _LONGEST_PART)
    return FirmwareCopy(
        variables, read_bounded(firmware / "tpm" / STATE_FILE, LONGEST_STATE) if has_tpm else None
    )


def read_header(data: bytes) -> tuple[Header, Envelope]:
    """What a container says of itself, before any key is at hand.

    Raises:
        FirmwareStateDamaged: it is none, or its header is damaged.
        FirmwareStateNewer: a newer Holdfast wrote it.
    """
    taken = envelope.parse(data)
    facts = taken.facts()
    if isinstance(facts.get("version"), int) and facts["version"] > _VERSION:
        raise FirmwareStateNewer(
            f"the firmware state has version {facts['version']} of a newer Holdfast; this reads {_VERSION}",
            value=facts["version"],
            cure="Import it with the Holdfast that wrote it, or a newer one.",
        )
    try:
        return Header.model_validate(facts), taken
    except ValidationError as error:
        raise FirmwareStateDamaged("the header of the firmware state cannot be read") from error


def opened(data: bytes, opener: Opener) -> FirmwareState:
    """The object in a container, every part of it checked against the header and for itself.

    Raises:
        As `read_header`; what the opener raises;
        FirmwareStateDamaged, VariablesDamaged, VtpmStateDamaged, VtpmStateOtherKey: it is not whole.
    """
    header, taken = read_header(data)
    parts = _split(header, taken.open(opener))
    if _VARIABLES not in parts:
        raise FirmwareStateDamaged("the firmware state lacks its variable store")
    summarize(parts[_VARIABLES], Path(_VARIABLES))
    return FirmwareState(header.vm, parts[_VARIABLES], _tpm(header, parts))


class FirmwareStates:
    """Takes and puts the firmware state of one state folder's VMs; `folder` is everywhere the VM's."""

    def __init__(self, vtpm: Vtpm, keys: HostKeys) -> None:
        self._vtpm = vtpm
        self._keys = keys

    async def take(self, vm_id: str, folder: Path, *, has_tpm: bool) -> FirmwareState:
        """The firmware state of a VM that does not run.

        Raises:
            VariablesDamaged, VtpmMissing, VtpmDamaged, VtpmState...: a part of it is not whole.
            VtpmRunning: the VM runs.
        """
        self._vtpm.refuse_running(vm_id)
        if not has_tpm:
            return await to_its_end(_take, vm_id, folder, None, None)
        async with self._keys.wrapping() as ring:
            return await to_its_end(_take, vm_id, folder, ring, self._vtpm.authority)

    async def of_copy(self, copy: FirmwareCopy, vm_id: str, folder: Path) -> FirmwareState:
        """The firmware state in files that were copied while the VM stood still; it may run again.

        Raises:
            As `take`, but VtpmRunning.
        """
        if copy.tpm is None:
            await asyncio.to_thread(summarize, copy.variables, Path(_VARIABLES))
            return FirmwareState(vm_id, copy.variables, None)
        async with self._keys.wrapping() as ring:
            return await to_its_end(_of_copy, copy, vm_id, folder, ring, self._vtpm.authority)

    async def keep(self, state: FirmwareState, path: Path) -> None:
        """Write a container that this host alone opens; its name ends as `rotation.STATE_SUFFIX`."""

        def write(ring: KeyRing) -> None:
            write_atomic(path, state.sealed(HostLock(ring)), 0o600)

        async with self._keys.wrapping() as ring:
            await to_its_end(write, ring)

    async def kept(self, path: Path) -> FirmwareState:
        """What `keep` wrote. Raises as `opened`, and FirmwareStateDamaged where it cannot be read."""

        def read(ring: KeyRing) -> FirmwareState:
            try:
                data = read_bounded(path, envelope.LONGEST)
            except OSError as error:
                raise FirmwareStateDamaged(
                    f"the firmware state in {path} cannot be read: {error.strerror}", value=str(path)
                ) from error
            return opened(data, HostLock(ring))

        async with self._keys.wrapping() as ring:
            return await to_its_end(read, ring)

    async def put(
        self, state: FirmwareState, vm_id: str, folder: Path, owner: Identity | None = None
    ) -> None:
        """Make `state` the firmware state of a VM, all of it or nothing, also under a crash.

        Raises:
            VtpmStateNewer: this host's libtpms cannot read it.
            VtpmRunning: the VM runs.
        """
        self._vtpm.refuse_running(vm_id)
        if state.tpm is None:
            await to_its_end(_put, state, vm_id, folder, None, owner, None)
            return
        await self.require_readable(state.tpm.format, state.vm_id)
        async with self._keys.wrapping() as ring:
            await to_its_end(_put, state, vm_id, folder, ring, owner, self._vtpm.authority)

    async def require_readable(self, found: StateFormat, vm_id: str) -> None:
        """Refuse what this host's libtpms cannot read. Raises VtpmStateNewer."""
        if found.least > OLDEST.version:
            require_readable(found, await self._vtpm.readable(), f"VM {vm_id}")


def _take(
    vm_id: str, folder: Path, ring: KeyRing | None, authority: EndorsementAuthority | None
) -> FirmwareState:
    settle_folder(folder)
    firmware = folder / "firmware"
    store = firmware / _VARIABLES
    try:
        variables = read_bounded(store, _LONGEST_PART)
    except OSError as error:
        raise VariablesDamaged(
            f"the variable store {store} cannot be read: {error.strerror}",
            value=str(store),
            cure="Restore the VM from a backup or a checkpoint.",
        ) from error
    summarize(variables, store)
    if ring is None:
        return FirmwareState(vm_id, variables, None)
    data, key, found = read_state(firmware, vm_id, ring)
    identity, recovery = state_key.identity_of(firmware, vm_id), state_key.recovery_of(firmware)
    vouches = authority.of(folder) if authority else None
    tpm = TpmState(identity, data, key, found, recovery, vouches)
    return FirmwareState(vm_id, variables, tpm)


def _of_copy(
    copy: FirmwareCopy, vm_id: str, folder: Path, ring: KeyRing, authority: EndorsementAuthority
) -> FirmwareState:
    firmware, data = folder / "firmware", copy.tpm or b""
    summarize(copy.variables, firmware / _VARIABLES)
    key = state_key.load(firmware, vm_id, ring)
    found = state_format(data, key, f"VM {vm_id}")
    identity, recovery = state_key.identity_of(firmware, vm_id), state_key.recovery_of(firmware)
    tpm = TpmState(identity, data, key, found, recovery, authority.of(folder))
    return FirmwareState(vm_id, copy.variables, tpm)


def _put(
    state: FirmwareState,
    vm_id: str,
    folder: Path,
    ring: KeyRing | None,
    owner: Identity | None,
    authority: EndorsementAuthority | None,
) -> None:
    recovery = _recovery(state, vm_id, folder / "firmware", ring)

    def fill(new: Path) -> None:
        write_atomic(new / _VARIABLES, state.variables, 0o600)
        if owner:
            own(new / _VARIABLES, owner.uid, owner.gid)
        carry_pending(folder / "firmware", new)
        if state.tpm and ring:
            state_key.store(new, vm_id, state.tpm.key, ring, recovery, state.tpm.identity)
            if state.tpm.authority and authority and not authority.is_own(state.tpm.authority):
                write_atomic(new / AUTHORITY_FILE, state.tpm.authority, 0o600)
            tpm = new / "tpm"
            tpm.mkdir(mode=0o700)
            write_atomic(tpm / STATE_FILE, state.tpm.state, 0o600)
            if owner:
                own(tpm, owner.uid, owner.gid)
            sync_folder(tpm)

    replace_folder(folder, fill)


def _recovery(state: FirmwareState, vm_id: str, firmware: Path, ring: KeyRing | None) -> Recovery | None:
    """The one in force: the present one where it opens the same key, since an export may be older."""
    if state.tpm is None or ring is None:
        return None
    try:
        present = state_key.recovery_of(firmware)
        if present and state_key.load(firmware, vm_id, ring) == state.tpm.key:
            return present
    except (Conflict, VtpmDamaged, state_key.VtpmMissing):
        pass  # what is to be replaced may be anything
    return state.tpm.recovery if state.vm_id == vm_id else None


def _split(header: Header, content: bytes) -> dict[str, bytes]:
    if sum(part.size for part in header.parts) != len(content):
        raise FirmwareStateDamaged("the parts of the firmware state do not fit its header")
    parts: dict[str, bytes] = {}
    at = 0
    for part in header.parts:
        data = content[at : at + part.size]
        at += part.size
        if part.name in parts or _told(part.name, data) != part.sha256:
            raise FirmwareStateDamaged(
                f"the part {part.name} of the firmware state does not fit its header", value=part.name
            )
        parts[part.name] = data
    return parts


def _told(name: str, data: bytes) -> str | None:
    return None if name == _KEY else hashlib.sha256(data).hexdigest()


def _tpm(header: Header, parts: Mapping[str, bytes]) -> TpmState | None:
    if header.tpm is None:
        if len(parts) > 1:
            raise FirmwareStateDamaged("the firmware state has parts of a TPM and names none")
        return None
    state, key = parts.get(STATE_FILE), parts.get(_KEY)
    if state is None or key is None or len(key) != state_key.KEY_BYTES or len(state) > LONGEST_STATE:
        raise FirmwareStateDamaged("the firmware state lacks its TPM state or the key to it")
    try:
        recovery = Recovery.model_validate_json(parts[_RECOVERY]) if _RECOVERY in parts else None
    except ValidationError:
        raise FirmwareStateDamaged("the recovery key in the firmware state cannot be read") from None
    authority = parts.get(AUTHORITY_FILE)
    if authority is not None:
        _check_authority(authority)
    found = state_format(state, key, f"VM {header.vm}")
    return TpmState(header.tpm.identity, state, key, found, recovery, authority)


def _check_authority(pem: bytes) -> None:
    try:
        if len(pem) > _LONGEST_AUTHORITY:
            raise ValueError
        x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise FirmwareStateDamaged("the authority in the firmware state cannot be read") from error
