"""Who signed a UEFI executable, and whether a VM's key databases let the firmware start it.

    image ──digest──▶ in dbx? ─▶ refused      in db? ─▶ accepted
      └─ signatures ─▶ whole, over that digest? ─▶ chain meets dbx? ─▶ refused
                                                  chain meets db?  ─▶ accepted     else ─▶ refused

The rules are those of UEFI (section 32.4.2 and 32.5.1) as edk2's DxeImageVerificationLib keeps them: any
certificate in db is trusted by itself, how old it is does not matter, one signature that is trusted is
enough, one that is revoked is too many. Signatures are PKCS#7 SignedData (RFC 2315) over an
SpcIndirectDataContent ("Windows Authenticode Portable Executable Signature Format", 2008). Pure.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from holdfast.trust import der, pe_image
from holdfast.trust.signature_lists import HeldCertificate, KeyDatabase, read_certificate

_SIGNED_DATA = "1.2.840.113549.1.7.2"
_INDIRECT_DATA = "1.3.6.1.4.1.311.2.1.4"
_MESSAGE_DIGEST = "1.2.840.113549.1.9.4"
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "2.16.840.1.101.3.4.2.1": hashes.SHA256(),
    "2.16.840.1.101.3.4.2.2": hashes.SHA384(),
    "2.16.840.1.101.3.4.2.3": hashes.SHA512(),
}
_MAX_CERTIFICATES = 16
_MAX_SIGNERS = 2
_LONGEST_CHAIN = 6
_LARGEST_KEY = 8192  # bits
_MOST_EXAMINED = 256


class Standing(StrEnum):
    """What firmware with Secure Boot on makes of an image."""

    ACCEPTED = "accepted"
    UNSIGNED = "unsigned"
    UNKNOWN_SIGNER = "unknown-signer"
    REVOKED = "revoked"
    DAMAGED = "damaged"


@dataclass(frozen=True)
class Judgement:
    standing: Standing
    by: str = ""
    """The certificate (its common name) or the digest in db or dbx that decided."""


@dataclass(frozen=True)
class ImageSignature:
    chain: tuple[HeldCertificate, ...]
    """The signer's certificate first, then those above it that the signature brings along."""

    @property
    def signer(self) -> str:
        """Common name of the certificate that signed."""
        return self.chain[0].name

    @property
    def authority(self) -> str:
        """Common name of the authority that a key database holds: who issued the signer's certificate."""
        return self.chain[1].name if len(self.chain) > 1 else _common_name(self.chain[0])


@dataclass(frozen=True)
class Loader:
    """An executable as far as signatures go."""

    digests: dict[str, bytes] = field(repr=False)
    """Authenticode digests by algorithm; empty where it is no PE image."""
    signatures: tuple[ImageSignature, ...] = ()
    """Those that hold: whole, and over this very image."""
    broken_signatures: int = 0

    @property
    def sha256(self) -> str:
        return self.digests["sha256"].hex() if self.digests else ""

    @property
    def signers(self) -> tuple[str, ...]:
        """The authorities that its signatures name, in order, each once. Anybody can name one."""
        return tuple(dict.fromkeys(each.authority for each in self.signatures))


def signers(loader: Loader, known: Iterable[HeldCertificate]) -> tuple[str, ...]:
    """The authorities behind an image's signatures, in order, each once.

    One that is not among the `known`, so that only its name is there to go by, is said to be unverified.
    """
    known = tuple(known)
    named = (
        anchor.name if (anchor := _anchor(each, known)) else f"{each.authority} (unverified)"
        for each in loader.signatures
    )
    return tuple(dict.fromkeys(named))


_examined: dict[bytes, Loader] = {}


def examine(data: bytes) -> Loader:
    """Digests and signatures of an executable; what is none gives a Loader without any.

    Many VMs start the same few loaders: what was found of the last ones is kept.
    """
    name = hashlib.sha256(data).digest()
    found = _examined.get(name)
    if found is None:
        if len(_examined) >= _MOST_EXAMINED:
            _examined.clear()
        found = _examined[name] = _examine(data)
    return found


def _examine(data: bytes) -> Loader:
    try:
        image = pe_image.parse(data)
    except pe_image.NoImage:
        return Loader({})
    digests = {algorithm: image.digest(algorithm) for algorithm in pe_image.ALGORITHMS}
    found, broken = [], 0
    for raw in image.signatures:
        try:
            found.append(verified_signature(raw, digests))
        except ValueError:
            broken += 1
    return Loader(digests, tuple(found), broken)


def judge(loader: Loader, db: KeyDatabase, dbx: KeyDatabase) -> Judgement:
    """What firmware says to an image under these databases."""
    if not loader.digests:
        return Judgement(Standing.DAMAGED)
    if loader.digests.items() & dbx.image_hashes:
        return Judgement(Standing.REVOKED, f"sha256:{loader.sha256}")
    for signature in loader.signatures:
        revoker = _anchor(signature, dbx.certificates) or _hashed(signature, dbx)
        if revoker is not None:
            return Judgement(Standing.REVOKED, revoker.name)
    for signature in loader.signatures:
        anchor = _anchor(signature, db.certificates)
        if anchor is not None:
            return Judgement(Standing.ACCEPTED, anchor.name)
    if loader.digests.items() & db.image_hashes:
        return Judgement(Standing.ACCEPTED, f"sha256:{loader.sha256}")
    return Judgement(Standing.UNKNOWN_SIGNER if loader.signatures else Standing.UNSIGNED)


def verified_signature(raw: bytes, digests: dict[str, bytes]) -> ImageSignature:
    """What signed an image with these digests (by algorithm).

    Args:
        raw: PKCS#7 SignedData in DER, perhaps with padding behind it.

    Raises:
        ValueError: it is not whole, does not hold, or is that of another image.
    """
    kind, wrapped = der.read(raw).list(der.SEQUENCE, 2)[:2]
    if der.oid(kind) != _SIGNED_DATA:
        raise ValueError("no SignedData")
    parts = wrapped.list(0xA0, 1)[0].list(der.SEQUENCE, 4)
    content = parts[2].list(der.SEQUENCE, 2)
    if der.oid(content[0]) != _INDIRECT_DATA:
        raise ValueError("signs something else than an image")
    indirect = content[1].list(0xA0, 1)[0]
    _require_this_image(indirect, digests)
    embedded = [
        held
        for part in parts[3:]
        if part.tag == 0xA0
        for each in [*part.children()][:_MAX_CERTIFICATES]
        if (held := read_certificate(each.whole)) is not None
    ]
    signers = parts[-1].list(der.SET, 1)[:_MAX_SIGNERS]
    verified = [_signer(each, indirect.content, embedded) for each in signers]
    return ImageSignature(tuple(_chain(verified[0], embedded)))


def _require_this_image(indirect: der.Element, digests: dict[str, bytes]) -> None:
    info = indirect.list(der.SEQUENCE, 2)[1].list(der.SEQUENCE, 2)
    algorithm = _hash(info[0]).name
    if info[1].expect(der.OCTETS).content != digests[algorithm]:
        raise ValueError("the signature is that of another image")


def _hash(algorithm: der.Element) -> hashes.HashAlgorithm:
    name = der.oid(algorithm.list(der.SEQUENCE, 1)[0])
    if name not in _HASHES:
        raise ValueError("a hash algorithm that firmware does not take")
    return _HASHES[name]


def _signer(info: der.Element, content: bytes, embedded: list[HeldCertificate]) -> HeldCertificate:
    """The certificate of a SignerInfo whose signature over `content` holds."""
    parts = info.list(der.SEQUENCE, 5)
    issuer, serial = parts[1].list(der.SEQUENCE, 2)[:2]
    number = int.from_bytes(serial.expect(der.INTEGER).content, "big", signed=True)
    algorithm = _hash(parts[2])
    signed = content
    rest = parts[3:]
    if rest[0].tag == 0xA0:
        # Signed as a SET OF, though tagged [0] where it stands: RFC 2315, section 9.3.
        signed = b"\x31" + rest[0].whole[1:]
        _require_digest(rest[0], hashlib.new(algorithm.name, content).digest())
        rest = rest[1:]
    if len(rest) < 2:
        raise ValueError("a signature is missing")
    signature = rest[1].expect(der.OCTETS).content
    for held in embedded:
        certificate = held.certificate
        if certificate.serial_number == number and certificate.issuer.public_bytes() == issuer.whole:
            _verify(held, signature, signed, algorithm)
            return held
    raise ValueError("the signer's certificate is missing")


def _require_digest(attributes: der.Element, digest: bytes) -> None:
    for attribute in attributes.children():
        name, values = attribute.list(der.SEQUENCE, 2)[:2]
        if der.oid(name) == _MESSAGE_DIGEST:
            if values.list(der.SET, 1)[0].expect(der.OCTETS).content == digest:
                return
            break
    raise ValueError("the signed attributes are those of another content")


def _verify(held: HeldCertificate, signature: bytes, signed: bytes, algorithm: hashes.HashAlgorithm) -> None:
    key = held.certificate.public_key()
    try:
        if isinstance(key, rsa.RSAPublicKey) and key.key_size <= _LARGEST_KEY:
            key.verify(signature, signed, padding.PKCS1v15(), algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, signed, ec.ECDSA(algorithm))
        else:
            raise ValueError("a kind of key that firmware does not take")
    except InvalidSignature as error:
        raise ValueError("the signature does not hold") from error


def _issued(child: HeldCertificate, parent: HeldCertificate) -> bool:
    key = parent.certificate.public_key()
    if child.certificate.issuer != parent.certificate.subject or getattr(key, "key_size", 0) > _LARGEST_KEY:
        return False
    try:
        child.certificate.verify_directly_issued_by(parent.certificate)
    except Exception:  # unknown algorithms, odd keys, wrong signatures: not issued by it
        return False
    return True


def _chain(leaf: HeldCertificate, embedded: Iterable[HeldCertificate]) -> list[HeldCertificate]:
    chain, left = [leaf], list(embedded)
    while len(chain) < _LONGEST_CHAIN:
        above = next((each for each in left if each not in chain and _issued(chain[-1], each)), None)
        if above is None:
            break
        chain.append(above)
    return chain


def _anchor(signature: ImageSignature, trusted: Iterable[HeldCertificate]) -> HeldCertificate | None:
    """The first certificate of a database that is in the chain, or issued one that is."""
    for held in trusted:
        for each in signature.chain:
            if held.fingerprint == each.fingerprint or _issued(each, held):
                return held
    return None


def _hashed(signature: ImageSignature, dbx: KeyDatabase) -> HeldCertificate | None:
    """The certificate of the chain whose to-be-signed part is revoked by its hash."""
    for each in signature.chain:
        body = each.certificate.tbs_certificate_bytes
        if any(hashlib.new(name, body).digest() == value for name, value in dbx.certificate_hashes):
            return each
    return None


def _common_name(held: HeldCertificate) -> str:
    names = held.certificate.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else held.issuer
