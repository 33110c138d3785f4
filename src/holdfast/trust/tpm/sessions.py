"""Authorizations of TPM commands: password, policy, and a session that hides what goes over the bus.

Trusted Platform Module Library, part 1, section 19 (authorizations and sessions) and 21 (encryption of
parameters). Sessions here use SHA-256 and, where they encrypt, AES-128 in CFB mode.
"""

import hmac
import secrets
from abc import ABC, abstractmethod
from dataclasses import dataclass

from cryptography.hazmat.primitives.hashes import SHA256

from holdfast.trust.tpm.numbers import Permanent, Session
from holdfast.trust.tpm.protection import decrypt_cfb, encrypt_cfb, kdfa, mac
from holdfast.trust.tpm.refusals import TpmForged
from holdfast.trust.tpm.wire import sized, u8, u32

NONCE_SIZE = 32
_AES_KEY = 16
_BLOCK = 16


@dataclass(frozen=True)
class Entity:
    """Something a command's handle means, with its Name (part 1, section 16)."""

    handle: int
    name: bytes


def permanent(handle: int) -> Entity:
    """A hierarchy, a PCR or a session: their Name is the handle itself."""
    return Entity(handle, u32(handle))


@dataclass(frozen=True)
class Answer:
    """TPMS_AUTH_RESPONSE."""

    nonce: bytes
    attributes: int
    hmac: bytes


class Authorization(ABC):
    """One entry of a command's authorization area."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    @abstractmethod
    def command(self, digest: bytes) -> bytes:
        """TPMS_AUTH_COMMAND; `digest` is cpHash."""

    def check(self, answer: Answer, digest: bytes) -> None:  # noqa: B027 a password proves nothing back
        """`digest` is rpHash. Raises TpmForged where the answer lacks its proof."""

    def _entry(self, nonce: bytes, attributes: int, proof: bytes) -> bytes:
        return u32(self.handle) + sized(nonce) + u8(attributes) + sized(proof)


class EmptyPassword(Authorization):
    """The authorization of hierarchies and keys that have none set."""

    def __init__(self) -> None:
        super().__init__(Permanent.PASSWORD)

    def command(self, digest: bytes) -> bytes:
        return self._entry(b"", 0, b"")


class PolicySession(Authorization):
    """A policy session that is neither salted nor bound: it needs no HMAC."""

    def command(self, digest: bytes) -> bytes:
        return self._entry(b"", Session.CONTINUE, b"")

    @property
    def entity(self) -> Entity:
        return permanent(self.handle)


class EncryptingSession(Authorization):
    """An HMAC session with a salt that only the TPM can open; it authorizes nothing.

    Who listens on the bus sees neither the first parameter of a command nor that of its response.
    """

    def __init__(self, handle: int, salt: bytes, nonce_caller: bytes, nonce_tpm: bytes) -> None:
        super().__init__(handle)
        self._key = kdfa(SHA256(), salt, "ATH", nonce_tpm, nonce_caller, SHA256.digest_size)
        self._caller = nonce_caller
        self._tpm = nonce_tpm
        self._attributes = Session.CONTINUE

    def begin(self, decrypt: bool, encrypt: bool) -> None:
        """A new command, whose first parameter (`decrypt`) or whose answer's (`encrypt`) is hidden."""
        self._caller = secrets.token_bytes(NONCE_SIZE)
        self._attributes = Session.CONTINUE
        if decrypt:
            self._attributes |= Session.DECRYPT
        if encrypt:
            self._attributes |= Session.ENCRYPT

    def command(self, digest: bytes) -> bytes:
        attributes = u8(self._attributes)
        proof = mac(SHA256(), self._key, digest, self._caller, self._tpm, attributes)
        return self._entry(self._caller, self._attributes, proof)

    def check(self, answer: Answer, digest: bytes) -> None:
        self._tpm = answer.nonce
        expected = mac(SHA256(), self._key, digest, self._tpm, self._caller, u8(answer.attributes))
        if not hmac.compare_digest(expected, answer.hmac):
            raise TpmForged(
                "the TPM's answer does not carry its proof",
                value=self.handle,
                cure="Do not trust this machine's TPM: something stands between it and the processor.",
            )

    def hide(self, parameter: bytes) -> bytes:
        """The content of a command's first TPM2B, encrypted."""
        key, iv = self._pad(self._caller, self._tpm)
        return encrypt_cfb(key, iv, parameter)

    def reveal(self, parameter: bytes) -> bytes:
        """The content of a response's first TPM2B, decrypted; after `check`."""
        key, iv = self._pad(self._tpm, self._caller)
        return decrypt_cfb(key, iv, parameter)

    def _pad(self, newer: bytes, older: bytes) -> tuple[bytes, bytes]:
        made = kdfa(SHA256(), self._key, "CFB", newer, older, _AES_KEY + _BLOCK)
        return made[:_AES_KEY], made[_AES_KEY:]
