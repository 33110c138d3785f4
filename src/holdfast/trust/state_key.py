"""The key that encrypts a VM's TPM state: random, one a VM, and stored only wrapped.

    <VM folder>/firmware/
    ├── tpm.key.json     the key under the host key and, where somebody has one, under a recovery key
    └── tpm.key          plain, of a version before; wrapped at its first use and removed

Both wrappings are AES-256-GCM with the VM's id as associated data: the file of another VM does not open.
Every change is one atomic write, and a plain key goes only once the wrapped one is durable.
"""

import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import Field, ValidationError

from holdfast.host.files import sync_folder, write_atomic
from holdfast.spec.errors import Conflict, Failed, InvalidInput, NotFound
from holdfast.spec.model import Frozen
from holdfast.trust import recovery_key
from holdfast.trust.bounded import read_bounded
from holdfast.trust.changing import changing
from holdfast.trust.host_key import KeyRing, Wrapped, WrappedDamaged

KEY_BYTES = 32
_FILE, _PLAIN = "tpm.key.json", "tpm.key"
_LONGEST = 16 * 1024
_NONCE = 12
_HEX_KEY = re.compile(rb"[0-9a-f]{64}")


class VtpmMissing(NotFound):
    id = "vtpm-missing"


class VtpmDamaged(Failed):
    id = "vtpm-damaged"


class VtpmKeyOfAnotherVm(Conflict):
    id = "vtpm-key-of-another-vm"


class VtpmKeyGuarded(Conflict):
    """The key is released to an attested host only, and the verifier's part of it is not at hand."""

    id = "vtpm-key-guarded"


class RecoveryKeyExists(Conflict):
    id = "recovery-key-exists"


class NoRecoveryKey(NotFound):
    id = "no-recovery-key"


class RecoveryKeyWrong(InvalidInput):
    id = "recovery-key-wrong"


class Recovery(Frozen):
    """The state key under a recovery key."""

    made: datetime
    nonce: str = Field(pattern=r"^[0-9a-f]{24}$")
    sealed: str = Field(pattern=r"^[0-9a-f]{96}$")


class _Stored(Frozen):
    version: Literal[1] = 1
    vm: str = Field(max_length=64)
    identity: str | None = Field(default=None, max_length=64)
    """Id of the VM that the TPM was made for, where that is another one."""
    host: Wrapped
    guarded: bool = False
    """What `host` holds is the key under another one, which a verifier releases to attested hosts."""
    recovery: Recovery | None = None


def new_state_key() -> bytes:
    return secrets.token_bytes(KEY_BYTES)


def store(
    firmware: Path,
    vm_id: str,
    key: bytes,
    ring: KeyRing,
    recovery: Recovery | None = None,
    identity: str | None = None,
) -> None:
    """Put a VM's key, in place of any that the folder holds.

    `identity` is the id of the VM that the TPM was made for; None: this one.
    """
    kept = _Stored(
        vm=vm_id,
        identity=None if identity == vm_id else identity,
        host=ring.wrap(key, _context(vm_id)),
        recovery=recovery,
    )
    with changing:
        _write(firmware, kept)
        _forget_plain(firmware)


def load(firmware: Path, vm_id: str, ring: KeyRing, guard_key: bytes | None = None) -> bytes:
    """A VM's key of 32 bytes; a plain one of an earlier version is taken over.

    Raises:
        VtpmMissing: the folder holds none.
        VtpmDamaged: its file is no key, or was changed.
        VtpmKeyOfAnotherVm: it is that of another VM.
        WrappedByAnotherHost: another host's key wrapped it.
        VtpmKeyGuarded: it is guarded, and `guard_key` is not the key to that.
    """
    with changing:
        stored = _read(firmware)
        if stored is None:
            key = _read_plain(firmware)
            store(firmware, vm_id, key, ring)
            return key
        held = _open(firmware, stored, vm_id, ring)
        key = _unguarded(held, vm_id, guard_key) if stored.guarded else held
        if len(key) != KEY_BYTES:
            raise _damaged(firmware / _FILE)
        _forget_plain(firmware)
        return key


def is_guarded(firmware: Path) -> bool:
    """Whether the key opens only with what a verifier releases to attested hosts."""
    stored = _read(firmware)
    return stored is not None and stored.guarded


def guard(firmware: Path, vm_id: str, ring: KeyRing, guard_key: bytes) -> None:
    """Let the key open only together with `guard_key` (32 bytes). Safe to repeat. Raises as `load`."""
    with changing:
        key = load(firmware, vm_id, ring, guard_key)
        stored = _read(firmware)
        if stored is None or stored.guarded:
            return
        nonce = secrets.token_bytes(_NONCE)
        held = nonce + AESGCM(guard_key).encrypt(nonce, key, _context(vm_id).encode())
        host = ring.wrap(held, _context(vm_id))
        _write(firmware, stored.model_copy(update={"host": host, "guarded": True}))


def unguard(firmware: Path, vm_id: str, ring: KeyRing, guard_key: bytes) -> None:
    """Let the key open by the host key alone again. Safe to repeat. Raises as `load`."""
    with changing:
        key = load(firmware, vm_id, ring, guard_key)
        stored = _read(firmware)
        if stored is not None and stored.guarded:
            host = ring.wrap(key, _context(vm_id))
            _write(firmware, stored.model_copy(update={"host": host, "guarded": False}))


def rewrap(firmware: Path, vm_id: str, ring: KeyRing) -> bool:
    """Wrap it by the host key in use; True where it was not. Raises as `load`, but for a guarded one."""
    with changing:
        stored = _read(firmware)
        if stored is None:
            load(firmware, vm_id, ring)
            return True
        if stored.host.key == ring.current.id:
            return False
        host = ring.wrap(_open(firmware, stored, vm_id, ring), _context(vm_id))
        _write(firmware, stored.model_copy(update={"host": host}))
        _forget_plain(firmware)
        return True


def wrapped_by(firmware: Path) -> str | None:
    """Id of the host key that wrapped it; None: there is no readable file."""
    try:
        stored = _read(firmware)
    except VtpmDamaged:
        return None
    return stored.host.key if stored else None


def recovery_of(firmware: Path) -> Recovery | None:
    """The wrapping under a recovery key, where there is one."""
    stored = _read(firmware)
    return stored.recovery if stored else None


def identity_of(firmware: Path, vm_id: str) -> str:
    """Id of the VM that the TPM in this folder was made for. Raises VtpmDamaged."""
    stored = _read(firmware)
    return (stored.identity if stored else None) or vm_id


def make_recovery_key(firmware: Path, vm_id: str, ring: KeyRing, new: bool) -> str:
    """A recovery key, as it is shown this once. `new`: in place of one that was made before.

    Raises:
        RecoveryKeyExists: one was made before, and no new one was asked for.
        As `load`.
    """
    secret, nonce = recovery_key.new_recovery_key(), secrets.token_bytes(_NONCE)
    cipher = AESGCM(recovery_key.wrapping_key(secret, vm_id))
    with changing:
        key = load(firmware, vm_id, ring)
        before = recovery_of(firmware)
        if before is not None and not new:
            raise RecoveryKeyExists(
                f"a recovery key was made on {before.made:%Y-%m-%d}; it is shown only once",
                value=before.made.isoformat(),
                cure="Add --new to make another one; the one before then opens nothing any more.",
            )
        sealed = cipher.encrypt(nonce, key, _context(vm_id).encode())
        made = Recovery(made=datetime.now(UTC), nonce=nonce.hex(), sealed=sealed.hex())
        store(firmware, vm_id, key, ring, made, identity_of(firmware, vm_id))
    return recovery_key.written(secret)


def recover(firmware: Path, vm_id: str, text: str, ring: KeyRing) -> None:
    """Open the state key by its recovery key and wrap it by the host key in use.

    Raises:
        RecoveryKeyMistyped: `text` is none.
        NoRecoveryKey: none was made for this VM.
        RecoveryKeyWrong: it is that of another VM, or one that a newer one replaced.
        VtpmKeyOfAnotherVm: the file is that of another VM.
    """
    with changing:
        key, held = _by_recovery_key(firmware, vm_id, text)
        store(firmware, vm_id, key, ring, held, identity_of(firmware, vm_id))


def check_recovery_key(firmware: Path, vm_id: str, text: str) -> None:
    """Raises as `recover` would, and changes nothing."""
    _by_recovery_key(firmware, vm_id, text)


def _by_recovery_key(firmware: Path, vm_id: str, text: str) -> tuple[bytes, Recovery]:
    secret = recovery_key.read(text)
    stored = _read(firmware)
    if stored is None or stored.recovery is None:
        raise NoRecoveryKey(
            "no recovery key was ever made for this VM",
            value=vm_id,
            cure="Import a state that was exported before: `holdfast trust import-state`.",
        )
    _require_own(firmware, stored, vm_id)
    held = stored.recovery
    try:
        key = AESGCM(recovery_key.wrapping_key(secret, vm_id)).decrypt(
            bytes.fromhex(held.nonce), bytes.fromhex(held.sealed), _context(vm_id).encode()
        )
    except InvalidTag as error:
        raise RecoveryKeyWrong(
            "this is not the recovery key of this VM",
            value=vm_id,
            cure=f"Use the one that was made for it on {held.made:%Y-%m-%d}.",
        ) from error
    return key, held


def forget(firmware: Path) -> None:
    """Remove every form of the key."""
    with changing:
        for name in (_FILE, _PLAIN):
            (firmware / name).unlink(missing_ok=True)
        sync_folder(firmware)


def missing(firmware: Path) -> VtpmMissing:
    return VtpmMissing(
        f"there is no TPM state in {firmware}",
        value=str(firmware),
        cure="Restore the folder from a backup, or make the VM again.",
    )


def _context(vm_id: str) -> str:
    return f"the vTPM of VM {vm_id}"


def _open(firmware: Path, stored: _Stored, vm_id: str, ring: KeyRing) -> bytes:
    """What the host key holds: the state key, or, where it is guarded, that under the guard's key."""
    _require_own(firmware, stored, vm_id)
    try:
        return ring.unwrap(stored.host, _context(vm_id))
    except WrappedDamaged as error:
        raise _damaged(firmware / _FILE) from error


def _unguarded(held: bytes, vm_id: str, guard_key: bytes | None) -> bytes:
    try:
        if guard_key is not None:
            return AESGCM(guard_key).decrypt(held[:_NONCE], held[_NONCE:], _context(vm_id).encode())
    except (InvalidTag, ValueError):
        pass
    raise VtpmKeyGuarded(
        f"the TPM key of VM {vm_id} is released to attested hosts only",
        value=vm_id,
        cure="Start it with `vm set VM --require-attested-host` in force; for an export or a clone with the"
        " same TPM, lift that first: `vm set VM --no-require-attested-host`.",
    )


def _require_own(firmware: Path, stored: _Stored, vm_id: str) -> None:
    if stored.vm != vm_id:
        raise VtpmKeyOfAnotherVm(
            f"{firmware / _FILE} holds the key of another VM, {stored.vm}",
            value=stored.vm,
            cure="Bring this VM's own folder `firmware` back, or import a state that was exported of it"
            " (`holdfast trust import-state`).",
        )


def _write(firmware: Path, stored: _Stored) -> None:
    write_atomic(firmware / _FILE, stored.model_dump_json().encode(), 0o600)


def _read(firmware: Path) -> _Stored | None:
    path = firmware / _FILE
    try:
        return _Stored.model_validate_json(read_bounded(path, _LONGEST))
    except FileNotFoundError:
        return None
    except (ValidationError, OSError):
        raise _damaged(path) from None


def _read_plain(firmware: Path) -> bytes:
    path = firmware / _PLAIN
    try:
        text = read_bounded(path, 2 * KEY_BYTES)
        if not _HEX_KEY.fullmatch(text):
            raise ValueError("no key")
        return bytes.fromhex(text.decode("ascii"))
    except FileNotFoundError as error:
        raise missing(firmware) from error
    except (ValueError, OSError):
        raise _damaged(path) from None


def _forget_plain(firmware: Path) -> None:
    plain = firmware / _PLAIN
    if plain.exists():
        plain.unlink()
        sync_folder(firmware)


def _damaged(path: Path) -> VtpmDamaged:
    return VtpmDamaged(
        f"{path} holds no key, or one that was changed",
        value=str(path),
        cure="Use the VM's recovery key (`holdfast trust recover`), import a state that was exported of it,"
        " or restore the file from a backup: the TPM's state cannot be read without it.",
    )
