"""Checksums and signatures of an OVF package (DMTF DSP0243, 6.1 and 6.4): the `.mf` and `.cert` files.

SHA256(disk1.vmdk)= 3b0c...          one line a file in the manifest
SHA256(appliance.mf)= 8a1f...        in the certificate file: the manifest's signature, then
-----BEGIN CERTIFICATE-----          the signer's certificate, PEM
"""

import datetime
import hashlib
import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from holdfast.spec.appliance import Signature
from holdfast.spec.units import MIB
from holdfast.storage.appliances.archive import check_path
from holdfast.storage.appliances.reading import short
from holdfast.storage.appliances.refusals import CertificateDamaged, ManifestDamaged, ManifestMismatch
from holdfast.storage.appliances.signers import authorities, is_known

LARGEST = MIB
_MOST_LINES = 4096
_LINE = re.compile(r"(SHA1|SHA256|SHA384|SHA512)\s*\(([^\r\n]{1,512}?)\)\s*=\s*([0-9a-fA-F]{40,1024})\s*")
_SIGNATURE = re.compile(r"(SHA1|SHA256|SHA384|SHA512)\s*\([^\r\n]{1,512}?\)\s*=\s*([0-9a-fA-F]{2,4096})\s*")
_LONGEST_LINE = 5120
_HEX = {"SHA1": 40, "SHA256": 64, "SHA384": 96, "SHA512": 128}
_SIGNED = {
    "SHA1": hashes.SHA1(),  # noqa: S303  (what older exports are signed with)
    "SHA256": hashes.SHA256(),
    "SHA384": hashes.SHA384(),
    "SHA512": hashes.SHA512(),
}
_LONGEST_CHAIN = 8
_BEGIN = "-----BEGIN CERTIFICATE"


@dataclass(frozen=True)
class Digest:
    algorithm: str
    """`SHA1`, `SHA256`, `SHA384` or `SHA512`."""
    value: str
    """Hex digits, lower case."""

    def begin(self) -> "hashlib._Hash":
        return hashlib.new(self.algorithm.lower(), usedforsecurity=False)

    def require(self, found: str, name: str) -> None:
        """Raises ManifestMismatch."""
        if found != self.value:
            raise ManifestMismatch(
                f"{name!r} has the {self.algorithm} checksum {found}, and the manifest says {self.value}",
                value=name,
                cure="The file was damaged or changed after the export: get it again from its source.",
                detail={"found": found, "expected": self.value, "algorithm": self.algorithm},
            )


def read_manifest(data: bytes, name: str) -> dict[str, Digest]:
    """The checksum of every file that a manifest names.

    Raises:
        ManifestDamaged: it is none, or names a file twice.
    """
    if len(data) > LARGEST:
        raise _damaged(name, f"it has {len(data)} bytes")
    found: dict[str, Digest] = {}
    lines = data.decode("utf-8-sig", errors="replace").splitlines()
    if len(lines) > _MOST_LINES:
        raise _damaged(name, f"it has {len(lines)} lines")
    for line in lines:
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if not match or len(match[3]) != _HEX[match[1]]:
            raise _damaged(name, f"the line {short(line, 80)!r} is no checksum")
        file = check_path(match[2].strip())
        if file in found:
            raise _damaged(name, f"it names {short(file, 80)!r} twice")
        found[file] = Digest(match[1], match[3].lower())
    return found


def _damaged(name: str, what: str) -> ManifestDamaged:
    return ManifestDamaged(
        f"the manifest {name!r} cannot be read: {what}",
        value=name,
        cure="Export the VM again, or remove the manifest if you trust the files without it.",
    )


def read_signature(data: bytes, name: str, manifest: bytes, now: datetime.datetime) -> Signature:
    """Who signed `manifest`, and whether the signature fits; `now` decides on the certificate's dates.

    Raises:
        CertificateDamaged: there is no signature or no certificate in it.
    """
    if len(data) > LARGEST:
        raise _unsigned(name, f"it has {len(data)} bytes")
    text = data.decode("ascii", errors="replace")
    lines = (line.strip() for line in text.splitlines()[:_MOST_LINES] if len(line) <= _LONGEST_LINE)
    match = next((found for line in lines if (found := _SIGNATURE.fullmatch(line))), None)
    if not match or len(match[2]) % 2:
        raise _unsigned(name, "it holds no signature")
    if not 1 <= text.count(_BEGIN) <= _LONGEST_CHAIN:
        raise _unsigned(name, f"it holds {text.count(_BEGIN)} certificates")
    try:
        chain = x509.load_pem_x509_certificates(data[text.index(_BEGIN) :])
        signer = chain[0]
        reason = _misfit(signer, match[1], bytes.fromhex(match[2]), manifest)
        # What a certificate says is taken apart only when it is asked for.
        return Signature(
            subject=_person(signer.subject),
            issuer=_person(signer.issuer),
            not_after=signer.not_valid_after_utc.isoformat(),
            fits=not reason,
            in_date=signer.not_valid_before_utc <= now <= signer.not_valid_after_utc,
            text=reason,
            known=not reason and is_known(chain, authorities(), now),
            fingerprint=signer.fingerprint(hashes.SHA256()).hex(),
        )
    except (ValueError, IndexError, x509.InvalidVersion) as error:
        raise _unsigned(name, "its certificate is none") from error


def _misfit(signer: x509.Certificate, algorithm: str, signature: bytes, manifest: bytes) -> str:
    """Why a signature does not fit; empty where it does."""
    digest = _SIGNED[algorithm]
    try:
        key = signer.public_key()
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, manifest, padding.PKCS1v15(), digest)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, manifest, ec.ECDSA(digest))
        else:
            return "the certificate's key is of a kind that signs no manifests"
    except InvalidSignature:
        return "the signature does not fit the manifest"
    except (UnsupportedAlgorithm, ValueError):
        return "the signature cannot be checked: its algorithm is not known"
    return ""


def _person(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return short(str(found[0].value) if found else name.rfc4514_string(), 200)


def _unsigned(name: str, what: str) -> CertificateDamaged:
    return CertificateDamaged(
        f"the certificate file {name!r} cannot be read: {what}",
        value=name,
        cure="Export the VM again, or remove the file if you trust the others without it.",
    )
