"""Public areas of TPM objects: reading them, their Names, their keys, and the templates of ours.

Trusted Platform Module Library, part 2, section 12.2 (TPMT_PUBLIC); part 1, section 16 (Names).
"""

import hashlib
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from holdfast.trust.tpm.numbers import Algorithm, Attributes, Curve
from holdfast.trust.tpm.wire import Reader, TpmNonsense, sized, u16, u32

_HASHES: dict[int, type[hashes.HashAlgorithm]] = {
    Algorithm.SHA256: hashes.SHA256,
    Algorithm.SHA384: hashes.SHA384,
    Algorithm.SHA512: hashes.SHA512,
}
_CURVES: dict[int, type[ec.EllipticCurve]] = {Curve.P256: ec.SECP256R1, Curve.P384: ec.SECP384R1}
_DEFAULT_EXPONENT = 65537
_RSA_BITS = (2048, 3072, 4096)
_MAX_PUBLIC = 2048

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


@dataclass(frozen=True)
class Scheme:
    """A signing, key derivation or keyed-hash scheme; `algorithm` NULL where there is none."""

    algorithm: int = Algorithm.NULL
    hash: int = 0
    extra: int = 0
    """ECDAA's counter, or the key derivation of XOR; else 0."""


@dataclass(frozen=True)
class Symmetric:
    """TPMT_SYM_DEF_OBJECT: how a storage key protects its children."""

    algorithm: int = Algorithm.NULL
    bits: int = 0
    mode: int = 0


@dataclass(frozen=True)
class Public:
    """TPMT_PUBLIC of an RSA key, an ECC key or a keyed hash (also: sealed data)."""

    kind: int
    name_hash: int
    attributes: int
    policy: bytes = b""
    symmetric: Symmetric = Symmetric()
    scheme: Scheme = Scheme()
    derivation: Scheme = Scheme()
    bits: int = 0
    """Of an RSA modulus."""
    exponent: int = 0
    """0 stands for 65537."""
    curve: int = 0
    unique: tuple[bytes, ...] = (b"",)
    """Modulus; or x and y of the point; or the digest of a keyed hash."""

    @classmethod
    def decode(cls, data: bytes) -> "Public":
        """Read a TPMT_PUBLIC; at most 2,048 bytes.

        Raises:
            TpmNonsense: it is none, it is not in its one canonical form, or it is of a kind we do not know.
        """
        if len(data) > _MAX_PUBLIC:
            raise TpmNonsense("the public area is too long", value=len(data))
        reader = Reader(data, "the public area")
        head = cls(reader.u16(), reader.u16(), reader.u32(), reader.sized())
        public = _read_parameters(head, reader)
        reader.end()
        if public.encode() != data:
            raise TpmNonsense("the public area is not in canonical form", value=len(data))
        return public

    def encode(self) -> bytes:
        head = u16(self.kind) + u16(self.name_hash) + u32(self.attributes) + sized(self.policy)
        if self.kind == Algorithm.RSA:
            middle = _symmetric(self.symmetric) + _scheme(self.scheme) + u16(self.bits) + u32(self.exponent)
        elif self.kind == Algorithm.ECC:
            middle = (
                _symmetric(self.symmetric) + _scheme(self.scheme) + u16(self.curve) + _scheme(self.derivation)
            )
        else:
            middle = _scheme(self.scheme)
        return head + middle + b"".join(sized(part) for part in self.unique)

    @property
    def name(self) -> bytes:
        """The Name: nameAlg and the digest of the public area (part 1, section 16).

        Raises:
            TpmNonsense: a hash other than SHA-256, SHA-384 and SHA-512.
        """
        digest = hashlib.new(self.hash.name, self.encode()).digest()
        return u16(self.name_hash) + digest

    @property
    def hash(self) -> hashes.HashAlgorithm:
        """The hash of its Name. Raises TpmNonsense where we do not know it."""
        return hash_of(self.name_hash)

    @property
    def key(self) -> PublicKey:
        """The public key. Raises TpmNonsense where it is none, or no point on its curve."""
        try:
            if self.kind == Algorithm.RSA:
                modulus = int.from_bytes(self.unique[0], "big")
                if self.bits not in _RSA_BITS or modulus.bit_length() != self.bits:
                    raise ValueError
                return rsa.RSAPublicNumbers(self.exponent or _DEFAULT_EXPONENT, modulus).public_key()
            if self.kind == Algorithm.ECC and self.curve in _CURVES:
                x, y = (int.from_bytes(part, "big") for part in self.unique)
                return ec.EllipticCurvePublicNumbers(x, y, _CURVES[self.curve]()).public_key()
        except ValueError as error:
            raise TpmNonsense("the public area holds no good key", value=self.kind) from error
        raise TpmNonsense("the public area holds no key of a kind we know", value=self.kind)

    @property
    def spki(self) -> bytes:
        """The public key as a SubjectPublicKeyInfo (DER). Raises as `key`."""
        return self.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def has(self, attributes: Attributes) -> bool:
        return self.attributes & attributes == attributes


def hash_of(algorithm: int) -> hashes.HashAlgorithm:
    """Raises TpmNonsense for others than SHA-256, SHA-384 and SHA-512."""
    if algorithm not in _HASHES:
        raise TpmNonsense(f"hash algorithm {algorithm:#06x} is not supported", value=algorithm)
    return _HASHES[algorithm]()


def _read_parameters(head: Public, reader: Reader) -> Public:
    match head.kind:
        case Algorithm.RSA:
            symmetric, scheme = _read_symmetric(reader), _read_scheme(reader)
            bits, exponent = reader.u16(), reader.u32()
            return replace(
                head,
                symmetric=symmetric,
                scheme=scheme,
                bits=bits,
                exponent=exponent,
                unique=(reader.sized(),),
            )
        case Algorithm.ECC:
            symmetric, scheme = _read_symmetric(reader), _read_scheme(reader)
            curve, derivation = reader.u16(), _read_scheme(reader)
            point = (reader.sized(), reader.sized())
            return replace(
                head, symmetric=symmetric, scheme=scheme, curve=curve, derivation=derivation, unique=point
            )
        case Algorithm.KEYEDHASH:
            return replace(head, scheme=_read_scheme(reader), unique=(reader.sized(),))
    raise TpmNonsense(f"an object of type {head.kind:#06x} is not supported", value=head.kind)


def _read_symmetric(reader: Reader) -> Symmetric:
    algorithm = reader.u16()
    if algorithm == Algorithm.NULL:
        return Symmetric()
    return Symmetric(algorithm, reader.u16(), reader.u16())


def _symmetric(value: Symmetric) -> bytes:
    if value.algorithm == Algorithm.NULL:
        return u16(value.algorithm)
    return u16(value.algorithm) + u16(value.bits) + u16(value.mode)


def _read_scheme(reader: Reader) -> Scheme:
    algorithm = reader.u16()
    if algorithm == Algorithm.NULL:
        return Scheme()
    more = reader.u16()
    return Scheme(algorithm, more, reader.u16() if algorithm in _WITH_EXTRA else 0)


_WITH_EXTRA = (Algorithm.ECDAA, Algorithm.XOR)


def _scheme(value: Scheme) -> bytes:
    if value.algorithm == Algorithm.NULL:
        return u16(value.algorithm)
    extra = u16(value.extra) if value.algorithm in _WITH_EXTRA else b""
    return u16(value.algorithm) + u16(value.hash) + extra


_KEY = Attributes.FIXED_TPM | Attributes.FIXED_PARENT | Attributes.SENSITIVE_DATA_ORIGIN
_STORAGE = Attributes.RESTRICTED | Attributes.DECRYPT
_AES_128 = Symmetric(Algorithm.AES, 128, Algorithm.CFB)

_EK_POLICY = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
"""PolicySecret of the endorsement hierarchy: TCG EK Credential Profile, annex B.2."""

EK_TEMPLATE_RSA = Public(
    Algorithm.RSA,
    Algorithm.SHA256,
    _KEY | _STORAGE | Attributes.ADMIN_WITH_POLICY,
    policy=_EK_POLICY,
    symmetric=_AES_128,
    bits=2048,
    unique=(bytes(256),),
)
"""TCG EK Credential Profile, annex B.3.3, template L-1."""

EK_TEMPLATE_ECC = Public(
    Algorithm.ECC,
    Algorithm.SHA256,
    _KEY | _STORAGE | Attributes.ADMIN_WITH_POLICY,
    policy=_EK_POLICY,
    symmetric=_AES_128,
    curve=Curve.P256,
    unique=(bytes(32), bytes(32)),
)
"""Annex B.3.4, template L-2."""

STORAGE_TEMPLATE = Public(
    Algorithm.ECC,
    Algorithm.SHA256,
    _KEY | _STORAGE | Attributes.USER_WITH_AUTH | Attributes.NO_DA,
    symmetric=_AES_128,
    curve=Curve.P256,
    unique=(bytes(32), bytes(32)),
)
"""TCG TPM v2.0 Provisioning Guidance, section 7.5.1: the storage root key."""

ATTESTATION_TEMPLATE = Public(
    Algorithm.ECC,
    Algorithm.SHA256,
    _KEY | Attributes.RESTRICTED | Attributes.SIGN | Attributes.USER_WITH_AUTH | Attributes.NO_DA,
    scheme=Scheme(Algorithm.ECDSA, Algorithm.SHA256),
    curve=Curve.P256,
    unique=(hashlib.sha256(b"holdfast attestation key 1").digest(), bytes(32)),
)
"""Our attestation key, always the same of one TPM: a change here is a new identity for every TPM."""


def is_attestation_key(public: Public) -> bool:
    """It signs nothing but what its TPM says of itself, and cannot leave that TPM."""
    return (
        public.has(_KEY | Attributes.RESTRICTED | Attributes.SIGN)
        and not public.attributes & Attributes.DECRYPT
        and public.kind == Algorithm.ECC
        and public.scheme == ATTESTATION_TEMPLATE.scheme
        and public.curve == Curve.P256
    )


def release_template(policy: bytes) -> Public:
    """A key that does nothing but stand for `policy` (SHA-256) where a credential is activated."""
    return replace(
        ATTESTATION_TEMPLATE,
        attributes=_KEY
        | Attributes.RESTRICTED
        | Attributes.SIGN
        | Attributes.ADMIN_WITH_POLICY
        | Attributes.NO_DA,
        policy=policy,
        unique=(hashlib.sha256(b"holdfast release key 1").digest(), bytes(32)),
    )


def sealed_template(policy: bytes) -> Public:
    """Data that opens by `policy` (SHA-256) only."""
    attributes = Attributes.FIXED_TPM | Attributes.FIXED_PARENT | Attributes.ADMIN_WITH_POLICY
    return Public(Algorithm.KEYEDHASH, Algorithm.SHA256, attributes, policy=policy)
