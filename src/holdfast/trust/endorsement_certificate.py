"""Whether a TPM's endorsement key is vouched for: its EK certificate against authorities we trust.

TCG EK Credential Profile for TPM Family 2.0, section 3: an X.509 certificate (RFC 5280) with the
extended key usage tcg-kp-EKCertificate. It comes out of a TPM, so it is hostile until it is verified.
"""

import datetime
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from holdfast.spec.errors import Failed, InvalidInput
from holdfast.trust.tpm.public import Public
from holdfast.trust.tpm.wire import TpmNonsense

EK_USAGE = x509.ObjectIdentifier("2.23.133.8.1")
_MAX_CERTIFICATE = 16 * 1024
_MAX_AUTHORITIES = 4 * 1024 * 1024
_LONGEST_CHAIN = 4
_CLOCKS = datetime.timedelta(days=1)
"""An emulated TPM is as new as its VM, and the clocks of two hosts may differ."""
_KNOWN_CRITICAL = {
    x509.BasicConstraints.oid,
    x509.KeyUsage.oid,
    x509.ExtendedKeyUsage.oid,
    x509.SubjectAlternativeName.oid,
    x509.NameConstraints.oid,
}


class BadTpmAuthorities(InvalidInput):
    id = "bad-tpm-authorities"


class EndorsementNotTrusted(Failed):
    """The TPM's endorsement key is vouched for by nobody whom we trust."""

    id = "endorsement-not-trusted"


def load_certificate(data: bytes) -> x509.Certificate:
    """Read the DER that an NV index holds, without what may follow it.

    Raises:
        EndorsementNotTrusted: it is no certificate, or longer than 16 KiB.
    """
    try:
        return x509.load_der_x509_certificate(data[: _der_length(data)])
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise _not_trusted("is no X.509 certificate") from error


def load_authorities(path: Path | None) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM file; none where no file is named.

    Raises:
        BadTpmAuthorities: it cannot be read, or holds none.
    """
    if path is None:
        return ()
    try:
        with path.open("rb") as file:
            return tuple(x509.load_pem_x509_certificates(file.read(_MAX_AUTHORITIES)))
    except (OSError, ValueError) as error:
        raise BadTpmAuthorities(
            f"{path} cannot be read as PEM certificates: {error}",
            value=str(path),
            cure="Correct the setting `tpm_authorities`.",
        ) from error


def certifies(data: bytes, public: Public) -> bool:
    """Whether `data` is a certificate of the key `public`, by whomever."""
    try:
        return _spki(load_certificate(data)) == public.spki
    except (EndorsementNotTrusted, TpmNonsense):
        return False


def verify_endorsement(
    certificate: x509.Certificate,
    public: Public,
    authorities: Sequence[x509.Certificate],
    at: datetime.datetime,
    intermediates: Sequence[x509.Certificate] = (),
) -> None:
    """That `certificate` is of the key `public`, and that one of `authorities` stands behind it.

    Args:
        authorities: trusted as they are, roots or not.
        at: the moment, with time zone, for which every certificate must be valid.
        intermediates: not trusted by themselves; at most 4 of them between.

    Raises:
        EndorsementNotTrusted: with the reason.
        TpmNonsense: `public` holds no key.
    """
    try:
        _check_leaf(certificate, public, at)
        if not _vouched(certificate, authorities, intermediates, at):
            raise _not_trusted(
                f"was issued by {certificate.issuer.rfc4514_string()[:200]!r}, not trusted here"
            )
    except (
        ValueError,
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise _not_trusted("is not formed as the TCG's profile demands") from error


def _check_leaf(certificate: x509.Certificate, public: Public, at: datetime.datetime) -> None:
    if _spki(certificate) != public.spki:
        raise _not_trusted("is of another key than the TPM's")
    if EK_USAGE not in certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value:
        raise _not_trusted("is not meant for an endorsement key")
    if _is_authority(certificate):
        raise _not_trusted("is one of an authority")
    if not _valid(certificate, at):
        raise _not_trusted(
            f"is valid from {certificate.not_valid_before_utc} to {certificate.not_valid_after_utc} only"
        )
    if any(found.critical and found.oid not in _KNOWN_CRITICAL for found in certificate.extensions):
        raise _not_trusted("has a critical extension that we do not know")


def _vouched(
    certificate: x509.Certificate,
    authorities: Sequence[x509.Certificate],
    intermediates: Sequence[x509.Certificate],
    at: datetime.datetime,
) -> bool:
    current = certificate
    for _ in range(_LONGEST_CHAIN + 1):
        if any(_issued(current, issuer, at) for issuer in authorities):
            return True
        above = next((issuer for issuer in intermediates if _issued(current, issuer, at)), None)
        if above is None:
            return False
        current = above
    return False


def _issued(certificate: x509.Certificate, issuer: x509.Certificate, at: datetime.datetime) -> bool:
    if certificate.issuer != issuer.subject or not _is_authority(issuer):
        return False
    if not _valid(issuer, at):
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _valid(certificate: x509.Certificate, at: datetime.datetime) -> bool:
    return certificate.not_valid_before_utc - _CLOCKS <= at <= certificate.not_valid_after_utc


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _spki(certificate: x509.Certificate) -> bytes:
    try:
        return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _not_trusted("is of a key that we cannot read") from error


def _der_length(data: bytes) -> int:
    """Of the SEQUENCE at the start (X.690, section 8.1.3). Raises ValueError."""
    if len(data) < 4 or data[0] != 0x30:
        raise ValueError("no SEQUENCE")
    if data[1] < 0x80:
        return 2 + data[1]
    octets = data[1] & 0x7F
    if octets not in (1, 2, 3):
        raise ValueError("no sensible length")
    length = 2 + octets + int.from_bytes(data[2 : 2 + octets], "big")
    if length > min(len(data), _MAX_CERTIFICATE):
        raise ValueError("too long")
    return length


def _not_trusted(reason: str) -> EndorsementNotTrusted:
    return EndorsementNotTrusted(
        f"the TPM's endorsement certificate {reason}",
        value=reason[:300],
        cure="Name the certificate of the authority that made the TPM, if you trust it.",
    )
