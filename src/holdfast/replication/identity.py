"""Who this host is to the others: a key and a self-signed certificate, made once, which they pin.

Nothing in the certificate is believed but its key: no name, no issuer. Owner of the files: this module.
"""

import datetime
import hashlib
import secrets
import socket
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from holdfast.host.files import write_atomic
from holdfast.spec.errors import InvalidInput
from holdfast.spec.model import Frozen

_YEARS = 30  # a pinned certificate is replaced by pairing anew, not by its end
_BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


class BadPeerCertificate(InvalidInput):
    id = "replica-bad-certificate"


class Identity(Frozen):
    key: Path
    certificate: Path
    """PEM."""
    fingerprint: str
    """`sha256:` and 64 hex digits, of the certificate's DER form."""


def load_or_make(keys: Path) -> Identity:
    """The identity in the folder `keys`, made where there is none yet."""
    key, certificate = keys / "replica.key", keys / "replica.crt"
    if not (key.exists() and certificate.exists()):
        _make(key, certificate)
    return Identity(key=key, certificate=certificate, fingerprint=fingerprint_of(certificate.read_text()))


def fingerprint_of(pem: str) -> str:
    """The fingerprint of one certificate in PEM. Raises BadPeerCertificate."""
    try:
        found = x509.load_pem_x509_certificate(pem.encode("ascii"))
        return fingerprint(found.public_bytes(serialization.Encoding.DER))
    except ValueError as error:
        raise BadPeerCertificate(
            "the other host sent no certificate that can be read", cure="Pair the hosts again."
        ) from error


def fingerprint(der: bytes) -> str:
    """`sha256:` and 64 hex digits."""
    return "sha256:" + hashlib.sha256(der).hexdigest()


def normal(pem: str) -> str:
    """The same certificate in PEM, with nothing around it. Raises BadPeerCertificate."""
    fingerprint_of(pem)
    found = x509.load_pem_x509_certificate(pem.encode("ascii"))
    return found.public_bytes(serialization.Encoding.PEM).decode("ascii")


def client_context(identity: Identity | None) -> ssl.SSLContext:
    """For the side that connects; None: it shows no certificate. It must compare the other's fingerprint."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the certificate is pinned, which is stricter
    if identity is not None:
        context.load_cert_chain(identity.certificate, identity.key)
    return context


def server_context(identity: Identity, peers: tuple[str, ...]) -> ssl.SSLContext:
    """For the side that is connected to: clients show one of the certificates `peers` (PEM), or none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(identity.certificate, identity.key)
    context.num_tickets = 0  # nothing is resumed, so that each connection shows its certificate
    context.verify_mode = ssl.CERT_OPTIONAL
    if peers:
        context.load_verify_locations(cadata="\n".join(peers))
    return context


def _make(key_path: Path, certificate_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    # Unique: OpenSSL looks a pinned certificate up by its subject, and two hosts may have one name.
    unique = x509.NameAttribute(NameOID.SERIAL_NUMBER, secrets.token_hex(16))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, socket.gethostname()[:64]), unique])
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=365 * _YEARS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(_BOTH), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # The key last: a certificate without its key is simply made anew.
    write_atomic(certificate_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    write_atomic(key_path, private, 0o600)
