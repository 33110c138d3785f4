"""Attestation tokens: a verifier's signed word, for a short time, that a host was found trusted.

A JSON Web Token in compact form (RFC 7519, RFC 7515) with ES256 (RFC 7518, section 3.4):

    header   {"alg": "ES256", "kid": VERIFIER, "typ": "JWT"}
    claims   iss VERIFIER, sub HOST ID, ak Name of its attestation key, iat, exp, jti, verdict "trusted"

VERIFIER is the SHA-256 of the verifier's public key (SubjectPublicKeyInfo, DER), hexadecimal. Its key
rests in the state folder's `keys/attestation-verifier.key` (0600), made at the first need.
"""

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from pydantic import ValidationError

from holdfast.host.files import write_atomic
from holdfast.spec.errors import Failed, Unauthenticated
from holdfast.spec.host_attestation import Digest, Hex, HostId
from holdfast.spec.model import Frozen

LIFETIME = timedelta(minutes=5)
_CLOCKS = timedelta(seconds=60)
"""How far the clocks of two verifiers' hosts may differ."""
_MAX_TOKEN = 4096
_HALF = 32

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    return datetime.now(UTC)


class TokenNotGenuine(Unauthenticated):
    id = "attestation-token-not-genuine"


class TokenOfAnotherVerifier(Unauthenticated):
    id = "attestation-token-of-another-verifier"


class TokenTooOld(Unauthenticated):
    id = "attestation-token-expired"


class TokenOfTheFuture(Unauthenticated):
    id = "attestation-token-of-the-future"


class VerifierKeyDamaged(Failed):
    id = "verifier-key-damaged"


class _Header(Frozen):
    alg: Literal["ES256"] = "ES256"
    kid: Digest
    typ: Literal["JWT"] = "JWT"


class Claims(Frozen):
    iss: Digest
    sub: HostId
    ak: Hex
    iat: int
    exp: int
    jti: str
    verdict: Literal["trusted"] = "trusted"


class TokenSigner:
    """The verifier's key, and the tokens that it gives out."""

    def __init__(self, key: Callable[[], ec.EllipticCurvePrivateKey], clock: Clock = utc_now) -> None:
        """`key` is asked for at the first need."""
        self._source = key
        self._clock = clock

    @classmethod
    def of(cls, keys: Path, clock: Clock = utc_now) -> "TokenSigner":
        """With the key in this folder, made there at the first need.

        Its methods then raise VerifierKeyDamaged where the file holds no EC P-256 key.
        """
        return cls(lambda: _load(keys / "attestation-verifier.key"), clock)

    @cached_property
    def _key(self) -> ec.EllipticCurvePrivateKey:
        return self._source()

    @cached_property
    def verifier(self) -> str:
        """SHA-256 of the public key (SubjectPublicKeyInfo, DER), hexadecimal."""
        public = self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(public).hexdigest()

    def issue(self, host: str, attestation_name: bytes) -> tuple[str, datetime]:
        """A token for a host that was found trusted, and when it ends."""
        now = self._clock().replace(microsecond=0)
        until = now + LIFETIME
        claims = Claims(
            iss=self.verifier,
            sub=host,
            ak=attestation_name.hex(),
            iat=int(now.timestamp()),
            exp=int(until.timestamp()),
            jti=secrets.token_hex(16),
        )
        signed = f"{_encode(_Header(kid=self.verifier))}.{_encode(claims)}"
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(SHA256())))
        return f"{signed}.{_text(r.to_bytes(_HALF, 'big') + s.to_bytes(_HALF, 'big'))}", until

    def check(self, token: str) -> Claims:
        """What one of our own tokens says.

        Raises:
            TokenNotGenuine: it is none, or was altered.
            TokenOfAnotherVerifier, TokenTooOld, TokenOfTheFuture: as they say.
        """
        try:
            header, claims, signature = token[: _MAX_TOKEN + 1].split(".")
            kid = _Header.model_validate(json.loads(_bytes(header))).kid
            told = Claims.model_validate(json.loads(_bytes(claims)))
            raw = _bytes(signature)
        except (ValueError, ValidationError, RecursionError) as error:
            raise _not_genuine("it is not formed like one") from error
        if not hmac.compare_digest(kid, self.verifier) or told.iss != kid:
            raise TokenOfAnotherVerifier(
                "the attestation token was given out by another verifier",
                value=kid,
                cure="Attest to this verifier.",
            )
        self._check_signature(f"{header}.{claims}", raw)
        self._check_time(told)
        return told

    def _check_signature(self, signed: str, raw: bytes) -> None:
        if len(raw) != 2 * _HALF:
            raise _not_genuine("its signature has a wrong length")
        r, s = int.from_bytes(raw[:_HALF], "big"), int.from_bytes(raw[_HALF:], "big")
        try:
            self._key.public_key().verify(encode_dss_signature(r, s), signed.encode(), ec.ECDSA(SHA256()))
        except InvalidSignature as error:
            raise _not_genuine("its signature does not verify") from error

    def _check_time(self, told: Claims) -> None:
        now = self._clock().timestamp()
        if now >= told.exp:
            raise TokenTooOld(
                f"the attestation token ended {int(now) - told.exp} s ago",
                value=told.exp,
                cure="Attest again; if it is new, check the clock of this host.",
            )
        if told.iat > now + _CLOCKS.total_seconds():
            raise TokenOfTheFuture(
                f"the attestation token begins in {told.iat - int(now)} s",
                value=told.iat,
                cure="Check the clock of this host.",
            )


def _load(path: Path) -> ec.EllipticCurvePrivateKey:
    if not path.exists():
        made = ec.generate_private_key(ec.SECP256R1())
        text = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_atomic(path, text, 0o600)
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise _damaged(path) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _damaged(path)
    return key


def _encode(model: Frozen) -> str:
    return _text(json.dumps(model.model_dump(), separators=(",", ":")).encode())


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _bytes(text: str) -> bytes:
    """Base64url without padding, in its one canonical form. Raises ValueError."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("no base64url") from error
    if _text(data) != text:
        raise ValueError("not in canonical form")
    return data


def _not_genuine(reason: str) -> TokenNotGenuine:
    return TokenNotGenuine(
        f"the attestation token is not genuine: {reason}", value=reason, cure="Attest to the verifier anew."
    )


def _damaged(path: Path) -> VerifierKeyDamaged:
    return VerifierKeyDamaged(
        f"{path} holds no EC P-256 key",
        value=str(path),
        cure="Restore it from a backup; or remove it, and every host attests anew by itself.",
    )
