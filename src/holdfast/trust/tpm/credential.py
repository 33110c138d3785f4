"""Credentials: a secret for the TPM that holds both an endorsement key and an attestation key.

Trusted Platform Module Library, part 1, section 24 (credential protection). Whoever answers with the
secret has shown that the attestation key lives in the TPM whose endorsement key was vouched for.
"""

from dataclasses import dataclass

from holdfast.trust.tpm.numbers import Algorithm, Attributes
from holdfast.trust.tpm.protection import encrypt_cfb, kdfa, mac, share_seed, zero_iv
from holdfast.trust.tpm.public import Public
from holdfast.trust.tpm.wire import Reader, TpmNonsense, sized

_MAX_CREDENTIAL = 1024
_KEY_BITS = (128, 256)


@dataclass(frozen=True)
class Credential:
    blob: bytes
    """Content of TPM2B_ID_OBJECT."""
    secret: bytes
    """Content of TPM2B_ENCRYPTED_SECRET."""

    def encode(self) -> bytes:
        """Both as TPM2Bs, one after the other."""
        return sized(self.blob) + sized(self.secret)

    @classmethod
    def decode(cls, data: bytes) -> "Credential":
        """Raises TpmNonsense."""
        if len(data) > _MAX_CREDENTIAL:
            raise TpmNonsense("the credential is too long", value=len(data))
        reader = Reader(data, "the credential")
        made = cls(reader.sized(), reader.sized())
        reader.end()
        return made


def make_credential(endorsement: Public, name: bytes, value: bytes) -> Credential:
    """Hide `value` for the TPM that holds `endorsement` and an object of this Name.

    Args:
        endorsement: the public area of an RSA or ECC storage key with AES in CFB mode.
        name: of the attestation key; the TPM opens nothing where it has no such object loaded.
        value: at most as long as the digest of the endorsement key's Name (32 bytes for SHA-256).

    Raises:
        TpmNonsense: the endorsement key is no such key.
        ValueError: `value` is too long.
    """
    hash = endorsement.hash
    if len(value) > hash.digest_size:
        raise ValueError(f"a credential for this key holds {hash.digest_size} bytes, not {len(value)}")
    symmetric = endorsement.symmetric
    if (
        not endorsement.has(Attributes.RESTRICTED | Attributes.DECRYPT)
        or (symmetric.algorithm, symmetric.mode) != (Algorithm.AES, Algorithm.CFB)
        or symmetric.bits not in _KEY_BITS
    ):
        raise TpmNonsense("the endorsement key is no storage key with AES", value=endorsement.attributes)
    shared = share_seed(endorsement, "IDENTITY")
    key = kdfa(hash, shared.seed, "STORAGE", name, b"", symmetric.bits // 8)
    hidden = encrypt_cfb(key, zero_iv(), sized(value))
    proof = mac(hash, kdfa(hash, shared.seed, "INTEGRITY", b"", b"", hash.digest_size), hidden, name)
    return Credential(sized(proof) + hidden, shared.encrypted)
