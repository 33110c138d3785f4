"""The host key: 256 bits that wrap the small secrets which this host keeps for its VMs.

    <state folder>/keys/
    ├── host.key          the key in use: sealed by the host's TPM, or open to root alone (0600)
    └── host-<id>.key     one before it, for as long as anything is wrapped by it

A secret is wrapped by AES-256-GCM (NIST SP 800-38D) with what it belongs to as associated data, so
that it opens nowhere else. The name of its key lies beside it. `HostKeys` owns the files; every
change is one atomic write, and all of them are safe to run again after a crash.
"""

import asyncio
import contextlib
import errno
import hashlib
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import Field, ValidationError

from holdfast.host.files import sync_folder, write_atomic
from holdfast.spec.errors import Conflict, Failed, HoldfastError, Unsupported
from holdfast.spec.firmware_state import HostKeyFacts, HostKeyKind
from holdfast.spec.model import Frozen
from holdfast.trust.bounded import read_bounded

log = structlog.get_logger(__name__)

_NONCE = 12
_BYTES = 32
_LONGEST = 64 * 1024
_HEX = r"^([0-9a-f]{2})+$"
_ID = r"^[0-9a-f]{16}$"
_WORDS = {
    HostKeyKind.TPM: "sealed in the host's TPM to its boot state: a stolen or copied disk does not open it",
    HostKeyKind.FILE: "in a file that root alone may read: whoever copies the host's disk has it",
}


class HostKeyDamaged(Failed):
    id = "host-key-damaged"


class HostKeyUnreadable(Failed):
    id = "host-key-unreadable"


class HostKeySealed(Failed):
    id = "host-key-sealed"


class NoHostTpm(Unsupported):
    id = "no-host-tpm"


class WrappedByAnotherHost(Conflict):
    id = "wrapped-by-another-host"


class WrappedDamaged(Failed):
    id = "wrapped-secret-damaged"


class Sealer(Protocol):
    """The host's TPM. Both methods raise a HoldfastError where it refuses."""

    async def seal(self, secret: bytes) -> bytes: ...

    async def unseal(self, blob: bytes) -> bytes: ...


class Wrapped(Frozen):
    """A secret under a host key, as it is stored."""

    key: str = Field(pattern=_ID)
    nonce: str = Field(pattern=_HEX, min_length=2 * _NONCE, max_length=2 * _NONCE)
    sealed: str = Field(pattern=_HEX, max_length=1024)
    """Hexadecimal: ciphertext and 16 bytes of tag."""


class _Stored(Frozen):
    """The file of a host key."""

    version: Literal[1] = 1
    kind: HostKeyKind
    id: str = Field(pattern=_ID)
    secret: str = Field(pattern=_HEX, max_length=_LONGEST)
    """The key itself (kind `file`), or what the TPM unseals to it (kind `tpm`)."""


@dataclass(frozen=True)
class HostKey:
    secret: bytes = field(repr=False)
    kind: HostKeyKind

    @property
    def id(self) -> str:
        return hashlib.sha256(b"holdfast host key\0" + self.secret).hexdigest()[:16]

    @property
    def words(self) -> str:
        return _WORDS[self.kind]

    def wrap(self, secret: bytes, context: str) -> Wrapped:
        nonce = secrets.token_bytes(_NONCE)
        sealed = AESGCM(self.secret).encrypt(nonce, secret, self._bound(context))
        return Wrapped(key=self.id, nonce=nonce.hex(), sealed=sealed.hex())

    def unwrap(self, wrapped: Wrapped, context: str) -> bytes:
        nonce, sealed = bytes.fromhex(wrapped.nonce), bytes.fromhex(wrapped.sealed)
        try:
            return AESGCM(self.secret).decrypt(nonce, sealed, self._bound(context))
        except InvalidTag as error:
            raise WrappedDamaged(
                f"the secret of {context} was changed, or belongs to something else",
                value=context,
                cure="Restore it from a backup, or use the VM's recovery key: `holdfast trust recover`.",
            ) from error

    def _bound(self, context: str) -> bytes:
        return f"holdfast wrapped\0{self.id}\0{context}".encode()


@dataclass(frozen=True)
class KeyRing:
    """The host key, and those before it that can be opened."""

    current: HostKey
    earlier: Mapping[str, HostKey]

    def wrap(self, secret: bytes, context: str) -> Wrapped:
        """`context` says what the secret is and whose; it opens under the same context only."""
        return self.current.wrap(secret, context)

    def unwrap(self, wrapped: Wrapped, context: str) -> bytes:
        """The secret.

        Raises:
            WrappedByAnotherHost: none of the keys at hand wrapped it.
            WrappedDamaged: it was changed, or was wrapped for another context.
        """
        for key in (self.current, *self.earlier.values()):
            if key.id == wrapped.key:
                return key.unwrap(wrapped, context)
        raise WrappedByAnotherHost(
            f"the secret of {context} is wrapped by the host key {wrapped.key}, which is not at hand",
            value=wrapped.key,
            cure="Use the VM's recovery key (`holdfast trust recover VM`), or bring back the folder `keys`"
            " of the host that wrapped it.",
        )


class HostKeys:
    """Owner of the host key's files in `folder`. `sealer` is the host's TPM; None: there is none."""

    def __init__(self, folder: Path, sealer: Sealer | None = None) -> None:
        self._folder = folder
        self._current = folder / "host.key"
        self.sealer = sealer
        self._ring: KeyRing | None = None
        self._lock = asyncio.Lock()
        self._renewal = asyncio.Lock()
        self.rotating = asyncio.Lock()
        """Held from the look at what is wrapped by which key until earlier keys are removed."""
        self._wrapping = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def ring(self) -> KeyRing:
        """The keys, made at the first need.

        Raises:
            HostKeySealed: the TPM does not release it now; asked again at the next call.
            HostKeyDamaged: the file is none.
        """
        async with self._lock:
            if self._ring is not None:
                return self._ring
            ring, whole = await self._load()
            if whole:
                self._ring = ring
            return ring

    @contextlib.asynccontextmanager
    async def wrapping(self) -> AsyncIterator[KeyRing]:
        """The keys, for work that may wrap and store something: no new key comes into use meanwhile.

        So what was wrapped by a key is on the disk before that key becomes an earlier one. Raises as `ring`.
        """
        async with self._renewal:
            self._wrapping += 1
            self._idle.clear()
        try:
            yield await self.ring()
        finally:
            self._wrapping -= 1
            if not self._wrapping:
                self._idle.set()

    async def kind(self) -> HostKeyKind | None:
        """What keeps the key, without opening it; None: no key was needed yet."""
        stored = await asyncio.to_thread(_read, self._current)
        return stored.kind if stored else None

    async def facts(self) -> HostKeyFacts:
        """How the key is kept, and whether it opens. Makes none."""
        tpm = self.sealer is not None
        kind: HostKeyKind | None = None
        try:
            kind = await self.kind()
            if kind is not None:
                await self.ring()
        except (HostKeySealed, HostKeyDamaged) as error:
            return HostKeyFacts(kind=kind, tpm=tpm, problem=error.message, cure=error.cure)
        return HostKeyFacts(kind=kind, tpm=tpm)

    async def renew(self, to: HostKeyKind | None = None) -> KeyRing:
        """A new key in use; the one before stays at hand until `drop_earlier`.

        Also where the present one cannot be opened: it is set aside in case that its TPM opens it again.

        Raises:
            NoHostTpm: a key in the TPM was asked for, and there is none.
        """
        async with self._renewal:
            await self._idle.wait()
            return await self._renew(to)

    async def _renew(self, to: HostKeyKind | None) -> KeyRing:
        async with self._lock:
            await asyncio.to_thread(self._set_aside)
            made = await self._make(to)
            earlier = dict(self._ring.earlier) if self._ring else {}
            if self._ring:
                earlier[self._ring.current.id] = self._ring.current
            self._ring = KeyRing(made, earlier)
            return self._ring

    async def earlier(self) -> tuple[str, ...]:
        """Ids of the keys before the one in use, openable or not."""
        return tuple(sorted(await asyncio.to_thread(self._earlier)))

    async def drop_earlier(self, unused: set[str]) -> None:
        """Remove those earlier keys, by which nothing is wrapped any more."""
        async with self._lock:
            for key_id, path in (await asyncio.to_thread(self._earlier)).items():
                if key_id in unused:
                    await asyncio.to_thread(path.unlink)
            await asyncio.to_thread(sync_folder, self._folder)
            if self._ring:
                kept = {key_id: key for key_id, key in self._ring.earlier.items() if key_id not in unused}
                self._ring = KeyRing(self._ring.current, kept)

    async def _load(self) -> tuple[KeyRing, bool]:
        """The keys, and whether all could be opened: one that the TPM keeps is asked for again."""
        stored = await asyncio.to_thread(_read, self._current)
        current = await self._open(stored) if stored else await self._make(None)
        earlier, whole = {}, True
        for path in (await asyncio.to_thread(self._earlier)).values():
            try:
                before = await asyncio.to_thread(_read, path)
                if before and before.id != current.id:
                    earlier[before.id] = await self._open(before)
            except HostKeyDamaged:
                continue
            except (HostKeySealed, HostKeyUnreadable):
                whole = False
        return KeyRing(current, earlier), whole

    async def _open(self, stored: _Stored) -> HostKey:
        secret = bytes.fromhex(stored.secret)
        if stored.kind is HostKeyKind.TPM:
            secret = await self._unseal(secret)
        key = HostKey(secret, stored.kind)
        if len(secret) != _BYTES or key.id != stored.id:
            raise _damaged(self._current)
        return key

    async def _unseal(self, blob: bytes) -> bytes:
        why = "no TPM is in use"
        detail = {}
        if self.sealer is not None:
            try:
                return await self.sealer.unseal(blob)
            except HoldfastError as error:
                why, detail = error.message, {"tpm": error.as_dict()}
        raise HostKeySealed(
            f"the host key is sealed in the host's TPM, which does not release it: {why}",
            value=str(self._current),
            cure="Boot the host as it was when the key was sealed. Where the change was meant: bring each VM"
            " back with its recovery key (`holdfast trust recover VM`), which begins a new host key.",
            detail=detail,
        )

    async def _make(self, to: HostKeyKind | None) -> HostKey:
        secret = secrets.token_bytes(_BYTES)
        kind, kept = HostKeyKind.FILE, secret
        if self.sealer is None and to is HostKeyKind.TPM:
            raise NoHostTpm(
                "this host has no TPM that the daemon can use",
                cure="Name one with the setting `host_tpm`, or rotate to a file.",
            )
        if self.sealer is not None and to is not HostKeyKind.FILE:
            try:
                kind, kept = HostKeyKind.TPM, await self.sealer.seal(secret)
            except HoldfastError as error:
                if to is HostKeyKind.TPM:
                    raise
                log.warning("the host's TPM does not seal; the host key is in a file", error=error.message)
        made = HostKey(secret, kind)
        stored = _Stored(kind=kind, id=made.id, secret=kept.hex())
        await asyncio.to_thread(write_atomic, self._current, stored.model_dump_json().encode(), 0o600)
        return made

    def _set_aside(self) -> None:
        """Copy the key in use to the name that it has as an earlier one."""
        try:
            stored = _read(self._current)
        except HostKeyDamaged:
            self._current.rename(self._folder / f"host.key.damaged-{secrets.token_hex(4)}")
            sync_folder(self._folder)
            return
        if stored:
            path = self._folder / f"host-{stored.id}.key"
            write_atomic(path, stored.model_dump_json().encode(), 0o600)

    def _earlier(self) -> dict[str, Path]:
        return {path.stem.removeprefix("host-"): path for path in self._folder.glob("host-*.key")}


def _read(path: Path) -> _Stored | None:
    try:
        return _Stored.model_validate_json(read_bounded(path, _LONGEST * 2))
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EINVAL, errno.EFBIG):
            raise _damaged(path) from None
        raise HostKeyUnreadable(
            f"{path} cannot be read: {error.strerror}",
            value=str(path),
            cure="Check the disk and the limits of the daemon; nothing was changed.",
        ) from error
    except ValidationError:
        raise _damaged(path) from None  # what was read may hold a secret


def _damaged(path: Path) -> HostKeyDamaged:
    return HostKeyDamaged(
        f"{path} holds no host key",
        value=str(path),
        cure="Restore it from a backup, or bring each VM back with its recovery key"
        " (`holdfast trust recover VM`), which begins a new host key.",
    )
