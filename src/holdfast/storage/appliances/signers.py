"""Whether this host knows who signed a package: a path from the signer to one of its authorities.

These are the certificates that the host trusts (`update-ca-certificates`; SSL_CERT_FILE names others), to
which a company adds its own. Only names, signatures, dates and the right to issue are judged (RFC 5280, 6.1),
not what a certificate is meant for: no use is laid down for those of packages (DMTF DSP0243, 6.4).
"""

import datetime
import ssl
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from holdfast.spec.units import MIB

_STORE = Path("/etc/ssl/certs/ca-certificates.crt")
_LARGEST_STORE = 16 * MIB


def authorities() -> list[x509.Certificate]:
    """Those of this host; none where they cannot be read."""
    path = Path(ssl.get_default_verify_paths().cafile or _STORE)
    try:
        with path.open("rb") as file:
            return x509.load_pem_x509_certificates(file.read(_LARGEST_STORE))
    except (OSError, ValueError):
        return []


def is_known(
    chain: Sequence[x509.Certificate], trusted: Sequence[x509.Certificate], now: datetime.datetime
) -> bool:
    """Whether a path leads from `chain[0]`, by the others of `chain` (hostile, few), to one of `trusted`."""
    current, left = chain[0], list(chain[1:])
    while _valid(current, now):
        if any(_issued(current, anchor) and _valid(anchor, now) for anchor in trusted):
            return True
        above = next((each for each in left if _may_issue(each) and _issued(current, each)), None)
        if above is None:
            return False
        left.remove(above)
        current = above
    return False


def _valid(certificate: x509.Certificate, now: datetime.datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """An authority of the host may have signed the package itself."""
    if certificate == issuer:
        return True
    if certificate.issuer != issuer.subject:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _may_issue(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return False
