"""A TPM's quote: parsed within bounds, and verified against the key, the nonce and the PCRs.

Trusted Platform Module Library, part 2: TPMS_ATTEST (section 10.12), TPMT_SIGNATURE (11.3), and of the
key TPMT_PUBLIC (12.2.4). What a guest sends is hostile; the key is the one that was enrolled.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from holdfast.spec.errors import Failed
from holdfast.spec.trust import Bank
from holdfast.trust.event_log import BANKS
from holdfast.trust.tpm.wire import Reader, TpmNonsense

MAX_STRUCTURE = 4096
"""Bytes of any one structure: a TPM answers with no more."""
_GENERATED = 0xFF54_4347
_QUOTE = 0x8018
_NULL, _RSA, _ECC = 0x0010, 0x0001, 0x0023
_RSASSA, _RSAPSS, _ECDSA = 0x0014, 0x0016, 0x0018
_HASHES: dict[int, hashes.SHA256 | hashes.SHA384 | hashes.SHA512] = {
    0x000B: hashes.SHA256(),
    0x000C: hashes.SHA384(),
    0x000D: hashes.SHA512(),
}
_CURVES: dict[int, type[ec.EllipticCurve]] = {0x0003: ec.SECP256R1, 0x0004: ec.SECP384R1}
_MAX_BANKS = 16
# TPMA_OBJECT, part 2, section 8.3: fixedTPM, restricted, sign; and decrypt, which must not be.
_FIXED_TPM, _RESTRICTED, _DECRYPT, _SIGN = 1 << 1, 1 << 16, 1 << 17, 1 << 18


class QuoteMalformed(Failed):
    id = "quote-malformed"


class NotAQuote(Failed):
    id = "quote-not-of-tpm"


class SignatureMalformed(Failed):
    id = "quote-signature-malformed"


class SignatureInvalid(Failed):
    id = "quote-signature-invalid"


class NonceMismatch(Failed):
    id = "nonce-mismatch"


class AttestationKeyUnfit(Failed):
    id = "attestation-key-unfit"


@dataclass(frozen=True, slots=True)
class AttestationKey:
    public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey
    scheme: int
    """The only signature scheme that it makes; TPM_ALG_NULL for any."""
    hash: int


@dataclass(frozen=True, slots=True)
class Selection:
    """Quoted PCRs of one bank, ascending."""

    bank: Bank | None
    """None: of a hash that is not known here."""
    pcrs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Quote:
    nonce: bytes
    clock_ms: int
    """Milliseconds that the TPM has run, over all its starts."""
    reset_count: int
    restart_count: int
    firmware_version: int
    selections: tuple[Selection, ...]
    digest: bytes
    """Over the selected values, by the hash of the signature scheme."""

    def pcrs(self, bank: Bank) -> frozenset[int]:
        """The quoted PCRs of a bank."""
        return frozenset(pcr for each in self.selections if each.bank is bank for pcr in each.pcrs)


def read_attestation_key(public_area: bytes) -> AttestationKey:
    """The key of a TPMT_PUBLIC, which must be one that signs nothing but what its TPM made.

    Raises:
        AttestationKeyUnfit: it is no such key, or none that is understood.
    """
    try:
        return _key(Reader(public_area[: MAX_STRUCTURE + 1], "the attestation key"))
    except (TpmNonsense, ValueError, UnsupportedAlgorithm) as error:
        raise _unfit("its public area is malformed", len(public_area)) from error


def parse_quote(attest: bytes) -> Quote:
    """Parse a TPMS_ATTEST; whether anything in it is true, its signature must tell.

    Raises:
        NotAQuote: it does not begin as what only a TPM signs, or attests something else.
        QuoteMalformed: it is cut short or padded, or says what cannot be.
    """
    reader = Reader(attest[: MAX_STRUCTURE + 1], "the quote")
    try:
        magic, kind = reader.u32(), reader.u16()
        if magic != _GENERATED or kind != _QUOTE:
            raise NotAQuote("what was signed is not a quote that a TPM made", value=f"{magic:08x} {kind:04x}")
        reader.sized()  # the key's qualified name; the signature already tells the key
        nonce = reader.sized()
        clock, resets, restarts, safe = reader.u64(), reader.u32(), reader.u32(), reader.u8()
        version = reader.u64()
        count = reader.u32()
        if safe > 1 or count > _MAX_BANKS:
            raise TpmNonsense("the quote says what cannot be", value=count)
        selections = tuple(_selection(reader) for _ in range(count))
        digest = reader.sized()
        reader.end()
    except TpmNonsense as error:
        raise QuoteMalformed(
            f"the quote is malformed: {error.message}", value=len(attest), cure="Ask for a fresh quote."
        ) from error
    return Quote(nonce, clock, resets, restarts, version, selections, digest)


def check_signature(key: AttestationKey, attest: bytes, signature: bytes) -> str:
    """Verify a TPMT_SIGNATURE over `attest`; returns the name of the scheme's hash.

    Raises:
        SignatureMalformed: it is none, or of a scheme that the key does not make, or of a weak hash.
        SignatureInvalid: it does not verify.
    """
    reader = Reader(signature[: MAX_STRUCTURE + 1], "the signature")
    try:
        scheme, hash_id = reader.u16(), reader.u16()
        first = reader.sized()
        second = reader.sized() if scheme == _ECDSA else b""
        reader.end()
    except TpmNonsense as error:
        raise _bad_signature(error.message, len(signature)) from error
    algorithm = _HASHES.get(hash_id)
    if algorithm is None:
        raise _bad_signature(f"its hash {hash_id:#06x} is weak or not known", hash_id)
    if key.scheme != _NULL and (key.scheme, key.hash) != (scheme, hash_id):
        raise _bad_signature(f"the key makes no signatures of scheme {scheme:#06x}", scheme)
    try:
        _verify(key.public, scheme, algorithm, attest, first, second)
    except InvalidSignature as error:
        raise SignatureInvalid(
            "the signature of the quote was not made by the enrolled attestation key over this quote",
            cure="Ask for a fresh quote; if that fails too, take the VM for compromised or enrol it anew.",
        ) from error
    return algorithm.name


def digest_of(quote: Quote, values: Mapping[Bank, Mapping[int, bytes]], hash_name: str) -> bytes | None:
    """What the quote's digest must be if the PCRs have these values; None where one is missing or odd."""
    hashed = hashlib.new(hash_name)
    for selection in quote.selections:
        for pcr in selection.pcrs:
            value = values.get(selection.bank, {}).get(pcr) if selection.bank else None
            if value is None or selection.bank is None or len(value) != selection.bank.size:
                return None
            hashed.update(value)
    return hashed.digest()


def verify_quote(key: AttestationKey, attest: bytes, signature: bytes, nonce: bytes) -> Quote:
    """A quote that this key signed over this nonce; its PCR digest is still to be compared.

    Raises:
        SignatureMalformed, SignatureInvalid, NotAQuote, QuoteMalformed, NonceMismatch: as they say.
    """
    check_signature(key, attest, signature)
    quote = parse_quote(attest)
    check_nonce(quote, nonce)
    return quote


def check_nonce(quote: Quote, nonce: bytes) -> None:
    """Raises NonceMismatch where the quote was not made for this nonce."""
    if not nonce or quote.nonce != nonce:
        raise NonceMismatch(
            "the quote was made for another nonce: it is old, or of another question",
            value=quote.nonce[:64].hex(),
            cure="Ask for a fresh quote.",
        )


def _selection(reader: Reader) -> Selection:
    """TPMS_PCR_SELECTION (part 2, section 10.6.2)."""
    bank = BANKS.get(reader.u16())
    size = reader.u8()
    if size > 4:
        raise TpmNonsense("the quote selects PCRs that no TPM has", value=size)
    bits = int.from_bytes(reader.take(size), "little")
    return Selection(bank, tuple(pcr for pcr in range(size * 8) if bits >> pcr & 1))


def _key(reader: Reader) -> AttestationKey:
    kind, _, attributes = reader.u16(), reader.u16(), reader.u32()
    wanted = _FIXED_TPM | _RESTRICTED | _SIGN
    if attributes & (wanted | _DECRYPT) != wanted:
        raise _unfit("it is not a restricted signing key that stays in its TPM", attributes)
    reader.sized()
    if reader.u16() != _NULL:
        raise _unfit("it has a symmetric algorithm", kind)
    scheme = reader.u16()
    hash_id = reader.u16() if scheme != _NULL else _NULL
    if kind == _RSA:
        bits, exponent = reader.u16(), reader.u32() or 65537
        modulus = int.from_bytes(reader.sized(), "big")
        reader.end()
        if not 2048 <= bits <= 4096 or modulus.bit_length() != bits:
            raise _unfit(f"its RSA key has {modulus.bit_length()} bits", bits)
        return AttestationKey(rsa.RSAPublicNumbers(exponent, modulus).public_key(), scheme, hash_id)
    if kind != _ECC:
        raise _unfit(f"it is of kind {kind:#06x}", kind)
    curve = _CURVES.get(reader.u16())
    if curve is None or reader.u16() != _NULL:
        raise _unfit("its curve is not known", kind)
    x, y = reader.sized(), reader.sized()
    reader.end()
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve())
    return AttestationKey(numbers.public_key(), scheme, hash_id)


def _verify(
    public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    scheme: int,
    algorithm: hashes.SHA256 | hashes.SHA384 | hashes.SHA512,
    attest: bytes,
    first: bytes,
    second: bytes,
) -> None:
    if isinstance(public, ec.EllipticCurvePublicKey):
        if scheme != _ECDSA:
            raise _bad_signature(f"scheme {scheme:#06x} is not of its key", scheme)
        pair = utils.encode_dss_signature(int.from_bytes(first, "big"), int.from_bytes(second, "big"))
        public.verify(pair, attest, ec.ECDSA(algorithm))
    elif scheme == _RSASSA:
        public.verify(first, attest, padding.PKCS1v15(), algorithm)
    elif scheme == _RSAPSS:
        salted = padding.PSS(mgf=padding.MGF1(algorithm), salt_length=padding.PSS.AUTO)
        public.verify(first, attest, salted, algorithm)
    else:
        raise _bad_signature(f"scheme {scheme:#06x} is not of its key", scheme)


def _bad_signature(why: str, value: object) -> SignatureMalformed:
    return SignatureMalformed(
        f"the signature of the quote cannot be used: {why}", value=value, cure="Ask for a fresh quote."
    )


def _unfit(why: str, value: object) -> AttestationKeyUnfit:
    return AttestationKeyUnfit(
        f"the attestation key cannot be used: {why}", value=value, cure="Enrol the VM anew."
    )
