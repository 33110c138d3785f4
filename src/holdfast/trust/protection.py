"""Who may open a container (`trust.envelope`): this host, whoever knows a passphrase, or one recipient.

Each kind is a lock that makes a key slot and an opener that reads one. What a slot says is hostile until it
has opened: its numbers are bounded before they cost memory or time.

    host        the host key wraps the content key
    passphrase  scrypt (RFC 7914) with N = 2^17, r = 8, p = 1: 128 MiB and about half a second
    recipient   X25519 (RFC 7748) or P-256 (NIST SP 800-56A) with a key pair made for the one container, then
                HKDF-SHA-256 (RFC 5869); or RSA-OAEP with SHA-256 (RFC 8017, section 7.1)
"""

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
    load_pem_public_key,
)
from pydantic import Field, ValidationError

from holdfast.spec.errors import Conflict, InvalidInput
from holdfast.spec.model import Frozen
from holdfast.trust.envelope import KEY_BYTES, FirmwareStateDamaged, Slot
from holdfast.trust.host_key import KeyRing, Wrapped

PublicKey = x25519.X25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey
PrivateKey = x25519.X25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

SHORTEST_PASSPHRASE = 12
_LONGEST_PASSPHRASE = 1024
_LEAST_RSA = 2048
_NONCE = 12
_N = 2**17
_OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
_HEX = r"^([0-9a-f]{2})+$"


class LockedForAnother(Conflict):
    id = "firmware-state-locked"


class WrongPassphrase(InvalidInput):
    id = "wrong-passphrase"


class PassphraseTooShort(InvalidInput):
    id = "passphrase-too-short"


class BadRecipient(InvalidInput):
    id = "bad-recipient"


class BadContentKey(InvalidInput):
    id = "bad-content-key"


class _HostSlot(Frozen):
    kind: Literal["host"] = "host"
    wrapped: Wrapped


class _PassphraseSlot(Frozen):
    kind: Literal["passphrase"] = "passphrase"
    n: int = Field(ge=2**14, le=2**18)
    salt: str = Field(pattern=_HEX, min_length=32, max_length=128)
    nonce: str = Field(pattern=_HEX, min_length=24, max_length=24)
    sealed: str = Field(pattern=_HEX, min_length=96, max_length=96)


class _RecipientSlot(Frozen):
    kind: Literal["recipient"] = "recipient"
    recipient: str = Field(pattern=_HEX, min_length=64, max_length=64)
    """SHA-256 of the public key (SubjectPublicKeyInfo, RFC 5280, section 4.1.2.7)."""
    ephemeral: str = Field(default="", pattern=r"^([0-9a-f]{2})*$", max_length=1024)
    """SubjectPublicKeyInfo of the key pair made for this container; empty for RSA."""
    sealed: str = Field(pattern=_HEX, max_length=4096)


@dataclass(frozen=True)
class HostLock:
    """For this host alone: what stays on it."""

    ring: KeyRing

    def wrap(self, key: bytes, bound: bytes) -> dict[str, Any]:
        return _HostSlot(wrapped=self.ring.wrap(key, _container(bound))).model_dump()

    def unwrap(self, slot: Slot, bound: bytes) -> bytes:
        return self.ring.unwrap(_read(_HostSlot, slot, "this host's own key").wrapped, _container(bound))


def host_key_of(slot: Slot) -> str | None:
    """Id of the host key that a slot names; None where it is of another kind."""
    try:
        return _HostSlot.model_validate(slot).wrapped.key
    except ValidationError:
        return None


@dataclass(frozen=True)
class PassphraseLock:
    """For whoever knows the passphrase. Slow on purpose: call it off the event loop."""

    passphrase: str = field(repr=False)

    def wrap(self, key: bytes, bound: bytes) -> dict[str, Any]:
        """Raises PassphraseTooShort."""
        self.require_long()
        salt, nonce = secrets.token_bytes(16), secrets.token_bytes(_NONCE)
        sealed = AESGCM(self._derived(salt, _N)).encrypt(nonce, key, bound)
        return _PassphraseSlot(n=_N, salt=salt.hex(), nonce=nonce.hex(), sealed=sealed.hex()).model_dump()

    def unwrap(self, slot: Slot, bound: bytes) -> bytes:
        """Raises WrongPassphrase, LockedForAnother."""
        held = _read(_PassphraseSlot, slot, "a passphrase")
        if len(self.passphrase) > _LONGEST_PASSPHRASE or held.n & (held.n - 1):
            raise _wrong_passphrase()
        key = self._derived(bytes.fromhex(held.salt), held.n)
        try:
            return AESGCM(key).decrypt(bytes.fromhex(held.nonce), bytes.fromhex(held.sealed), bound)
        except InvalidTag as error:
            raise _wrong_passphrase() from error

    def require_long(self) -> None:
        """Raises PassphraseTooShort where it is too short, or absurdly long, to lock anything with."""
        if not SHORTEST_PASSPHRASE <= len(self.passphrase) <= _LONGEST_PASSPHRASE:
            raise PassphraseTooShort(
                f"a passphrase has {SHORTEST_PASSPHRASE} to {_LONGEST_PASSPHRASE} characters",
                value=len(self.passphrase),
                cure="Choose a longer one, for example five words.",
            )

    def _derived(self, salt: bytes, n: int) -> bytes:
        return Scrypt(salt=salt, length=KEY_BYTES, n=n, r=8, p=1).derive(self.passphrase.encode())


@dataclass(frozen=True)
class RecipientLock:
    """For the owner of a private key."""

    public: PublicKey

    @classmethod
    def of_pem(cls, pem: bytes) -> "RecipientLock":
        """From a public key or a certificate. Raises BadRecipient."""
        try:
            if b"BEGIN CERTIFICATE" in pem:
                public = x509.load_pem_x509_certificate(pem).public_key()
            else:
                public = load_pem_public_key(pem)  # type: ignore[assignment]
        except (ValueError, UnsupportedAlgorithm) as error:
            raise _bad_recipient("it is neither a public key nor a certificate in PEM form") from error
        if isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name != "secp256r1":
            raise _bad_recipient(f"its curve is {public.curve.name}")
        if isinstance(public, rsa.RSAPublicKey) and public.key_size < _LEAST_RSA:
            raise _bad_recipient(f"it is an RSA key of {public.key_size} bits")
        if not isinstance(public, PublicKey):
            raise _bad_recipient("it is a key of another kind")
        return cls(public)

    def wrap(self, key: bytes, bound: bytes) -> dict[str, Any]:
        name, recipient = _spki(self.public), _digest(self.public)
        if isinstance(self.public, rsa.RSAPublicKey):
            sealed = self.public.encrypt(key + bound, _OAEP)
            return _RecipientSlot(recipient=recipient, sealed=sealed.hex()).model_dump()
        if isinstance(self.public, x25519.X25519PublicKey):
            pair: PrivateKey = x25519.X25519PrivateKey.generate()
        else:
            pair = ec.generate_private_key(ec.SECP256R1())
        ephemeral = _spki(pair.public_key())
        try:
            shared = _agreed(pair, self.public)
        except ValueError as error:  # a point of low order
            raise _bad_recipient("nothing can be agreed with it") from error
        # The derived key serves this one container only, so its nonce may be fixed.
        sealed = AESGCM(_derived(shared, ephemeral + name)).encrypt(bytes(_NONCE), key, bound)
        return _RecipientSlot(
            recipient=recipient, ephemeral=ephemeral.hex(), sealed=sealed.hex()
        ).model_dump()


@dataclass(frozen=True)
class RecipientOpener:
    private: PrivateKey = field(repr=False)

    @classmethod
    def of_pem(cls, pem: bytes) -> "RecipientOpener":
        """From a private key that no passphrase protects. Raises BadRecipient."""
        try:
            private = load_pem_private_key(pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise _bad_recipient("it is no private key in PEM form that opens without a passphrase") from None
        if not isinstance(private, PrivateKey):
            raise _bad_recipient("it is a key of another kind")
        return cls(private)

    def unwrap(self, slot: Slot, bound: bytes) -> bytes:
        """Raises LockedForAnother where it was locked for another recipient."""
        held = _read(_RecipientSlot, slot, "the recipient's private key")
        public = self.private.public_key()
        if held.recipient != _digest(public):
            raise _locked("the private key of another recipient")
        try:
            return self._unwrap(held, _spki(public), bound)
        except (InvalidTag, ValueError, UnsupportedAlgorithm) as error:
            raise FirmwareStateDamaged("the key slot of the firmware state was changed") from error

    def _unwrap(self, held: _RecipientSlot, name: bytes, bound: bytes) -> bytes:
        sealed, ephemeral = bytes.fromhex(held.sealed), bytes.fromhex(held.ephemeral)
        if isinstance(self.private, rsa.RSAPrivateKey):
            opened = self.private.decrypt(sealed, _OAEP)
            if opened[KEY_BYTES:] != bound:
                raise ValueError("the slot is that of another container")
            return opened[:KEY_BYTES]
        shared = _agreed(self.private, load_der_public_key(ephemeral))
        return AESGCM(_derived(shared, ephemeral + name)).decrypt(bytes(_NONCE), sealed, bound)


@dataclass(frozen=True)
class ContentKey:
    """A content key that its recipient has opened elsewhere."""

    key: bytes = field(repr=False)

    @classmethod
    def of_hex(cls, text: str) -> "ContentKey":
        """Raises BadContentKey."""
        if not re.fullmatch(r"[0-9a-f]{64}", text):
            raise BadContentKey("a content key has 64 hexadecimal digits", value=len(text))
        return cls(bytes.fromhex(text))

    def unwrap(self, slot: Slot, bound: bytes) -> bytes:
        return self.key


def _agreed(private: PrivateKey, public: object) -> bytes:
    if isinstance(private, x25519.X25519PrivateKey) and isinstance(public, x25519.X25519PublicKey):
        return private.exchange(public)
    if isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(public, ec.EllipticCurvePublicKey):
        return private.exchange(ec.ECDH(), public)
    raise ValueError("keys of different kinds")


def _derived(shared: bytes, names: bytes) -> bytes:
    derive = HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=b"holdfast recipient\0" + names)
    return derive.derive(shared)


def _spki(public: PublicKey) -> bytes:
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _digest(public: PublicKey) -> str:
    return hashlib.sha256(_spki(public)).hexdigest()


def _container(bound: bytes) -> str:
    return f"a container with the header {bound.hex()}"


S = TypeVar("S", _HostSlot, _PassphraseSlot, _RecipientSlot)
_NEEDED = {
    "host": "the host key of the host that wrote it",
    "passphrase": "its passphrase (--passphrase-file)",
    "recipient": "its recipient's private key (--private-key)",
}


def _read(kind: type[S], slot: Slot, given: str) -> S:
    found = slot.get("kind")
    if found != kind.model_fields["kind"].default:
        needed = _NEEDED.get(str(found), "something that this version does not know")
        raise _locked(given, needed)
    try:
        return kind.model_validate(slot)
    except ValidationError as error:
        raise FirmwareStateDamaged("the key slot of the firmware state cannot be read") from error


def _locked(given: str, needed: str = "another private key") -> LockedForAnother:
    return LockedForAnother(
        f"the firmware state does not open with {given}: it needs {needed}",
        value=needed,
        cure=f"Give {needed}.",
    )


def _wrong_passphrase() -> WrongPassphrase:
    return WrongPassphrase(
        "the firmware state does not open with this passphrase", cure="Check it, and type it again."
    )


def _bad_recipient(why: str) -> BadRecipient:
    return BadRecipient(
        f"the recipient's key cannot be used: {why}",
        cure="Use an X25519 or P-256 key, or an RSA key of 2048 bits or more.",
    )
