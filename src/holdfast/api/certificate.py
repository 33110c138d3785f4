"""The TLS door's certificate: self-signed EC P-256, made once; clients pin its fingerprint."""

import datetime
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from holdfast.host.files import write_atomic

_YEARS = 10


@dataclass(frozen=True)
class Certificate:
    key: Path
    chain: Path
    fingerprint: str
    """`sha256:` and 64 hex digits, of the certificate's DER form."""


def _names(host: str) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    names += [x509.DNSName(name) for name in {socket.gethostname(), socket.getfqdn()} if name != "localhost"]
    addresses = {"127.0.0.1", "::1"}
    try:
        if not ipaddress.ip_address(host).is_unspecified:
            addresses.add(host)
    except ValueError:
        names.append(x509.DNSName(host))
    return names + [x509.IPAddress(ipaddress.ip_address(each)) for each in sorted(addresses)]


def _make(key_path: Path, chain_path: Path, host: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, socket.gethostname()[:64])])
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    chain = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=365 * _YEARS))
        .add_extension(x509.SubjectAlternativeName(_names(host)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # The key last: a certificate without its key is simply made anew.
    write_atomic(chain_path, chain.public_bytes(serialization.Encoding.PEM), 0o644)
    write_atomic(key_path, private, 0o600)


def load_or_make(keys: Path, host: str) -> Certificate:
    """The certificate in the folder `keys`, made for `host` where there is none yet."""
    key_path, chain_path = keys / "api.key", keys / "api.crt"
    if not (key_path.exists() and chain_path.exists()):
        _make(key_path, chain_path, host)
    found = x509.load_pem_x509_certificate(chain_path.read_bytes())
    return Certificate(key_path, chain_path, "sha256:" + found.fingerprint(hashes.SHA256()).hex())


def server_context(certificate: Certificate) -> ssl.SSLContext:
    """TLS 1.3 and nothing older."""
    if certificate.key.stat().st_mode & 0o077:
        certificate.key.chmod(0o600)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate.chain, certificate.key)
    return context
