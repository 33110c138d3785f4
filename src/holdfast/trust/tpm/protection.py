"""Secrets under way to a TPM: key derivation, and seeds that only the holder of a key can open.

Trusted Platform Module Library, part 1: section 11.4.10 (KDFa, KDFe), annex B.10 (RSA) and C.6 (ECC).
"""

import secrets
from dataclasses import dataclass

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

from holdfast.trust.tpm.public import Public
from holdfast.trust.tpm.wire import TpmNonsense, sized

_BLOCK = 16


@dataclass(frozen=True)
class SharedSeed:
    seed: bytes
    """As long as the digest of the key's Name."""
    encrypted: bytes
    """TPM2B_ENCRYPTED_SECRET's content: only the holder of the private key finds `seed` in it."""


def kdfa(hash: hashes.HashAlgorithm, key: bytes, label: str, u: bytes, v: bytes, size: int) -> bytes:
    """KDFa: `size` bytes by SP 800-108 in counter mode with HMAC."""
    derive = KBKDFHMAC(
        algorithm=hash,
        mode=Mode.CounterMode,
        length=size,
        rlen=4,
        llen=4,
        location=CounterLocation.BeforeFixed,
        label=label.encode("ascii"),
        context=u + v,
        fixed=None,
    )
    return derive.derive(key)


def mac(hash: hashes.HashAlgorithm, key: bytes, *parts: bytes) -> bytes:
    """HMAC over the parts one after another."""
    made = hmac.HMAC(key, hash)
    for part in parts:
        made.update(part)
    return made.finalize()


def encrypt_cfb(key: bytes, iv: bytes, data: bytes) -> bytes:
    """AES in CFB mode with full blocks."""
    cipher = Cipher(AES(key), CFB(iv)).encryptor()
    return cipher.update(data) + cipher.finalize()


def decrypt_cfb(key: bytes, iv: bytes, data: bytes) -> bytes:
    cipher = Cipher(AES(key), CFB(iv)).decryptor()
    return cipher.update(data) + cipher.finalize()


def zero_iv() -> bytes:
    return bytes(_BLOCK)


def share_seed(public: Public, label: str) -> SharedSeed:
    """A fresh seed for the TPM that holds `public`; `label` says what it is for (IDENTITY, SECRET).

    Raises:
        TpmNonsense: `public` is no good RSA or ECC key.
    """
    key, hash = public.key, public.hash
    if isinstance(key, rsa.RSAPublicKey):
        seed = secrets.token_bytes(hash.digest_size)
        oaep = padding.OAEP(padding.MGF1(hash), hash, label.encode("ascii") + b"\0")
        try:
            return SharedSeed(seed, key.encrypt(seed, oaep))
        except ValueError as error:
            raise TpmNonsense("the public area holds no good RSA key", value=public.bits) from error
    ephemeral = ec.generate_private_key(key.curve)
    size = (key.curve.key_size + 7) // 8
    ours, theirs = ephemeral.public_key().public_numbers(), key.public_numbers()
    x, y = ours.x.to_bytes(size, "big"), ours.y.to_bytes(size, "big")
    info = label.encode("ascii") + b"\0" + x + theirs.x.to_bytes(size, "big")
    seed = ConcatKDFHash(hash, hash.digest_size, info).derive(ephemeral.exchange(ec.ECDH(), key))
    return SharedSeed(seed, sized(x) + sized(y))
