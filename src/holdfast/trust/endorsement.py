"""The host's own authority that vouches for the endorsement keys of its VMs' TPMs.

A self-signed EC P-256 certificate and its key in the state folder's `keys/`, made at the first
need. swtpm's certificate tool signs with it. Serial numbers are random 63-bit numbers (RFC 5280,
section 4.1.2.2), so two VMs made at the same time, or on two hosts, share no counter.
"""

import datetime
import secrets
import socket
import threading
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from holdfast.host.files import write_atomic

AUTHORITY_FILE = "authority.pem"
"""In a VM's folder `firmware`, where its TPM was made by another host and came here with its state."""

_YEARS = 25
_making = threading.Lock()


def derived_key(key: str, purpose: str) -> str:
    """A 256-bit key (64 hexadecimal digits) for one purpose, by HKDF-SHA-256 (RFC 5869)."""
    derive = HKDF(hashes.SHA256(), 32, salt=None, info=f"holdfast vtpm {purpose}".encode())
    return derive.derive(bytes.fromhex(key)).hex()


class EndorsementAuthority:
    def __init__(self, keys: Path) -> None:
        self.key = keys / "vtpm-ca.key"
        self.certificate = keys / "vtpm-ca.pem"

    def certificates(self, folder: Path) -> list[x509.Certificate]:
        """Whom to trust where the TPM of the VM in `folder` shows its certificate."""
        return [x509.load_pem_x509_certificate(pem) for pem in (self._own(), self.of(folder))]

    def of(self, folder: Path) -> bytes:
        """The certificate (PEM) of who made the TPM of a VM: this host, or the one that it came from."""
        try:
            return (folder / "firmware" / AUTHORITY_FILE).read_bytes()
        except FileNotFoundError:
            return self._own()

    def is_own(self, pem: bytes) -> bool:
        return pem == self._own()

    def _own(self) -> bytes:
        with _making:
            self._make()
        return self.certificate.read_bytes()

    def prepare(self, folder: Path) -> Path:
        """Write the settings for one run of swtpm_setup into `folder`; returns their file."""
        with _making:
            self._make()
        serial = folder / "serial"
        serial.write_text(str(secrets.randbits(62) + 1), encoding="ascii")
        options = folder / "ca.options"
        options.write_text(
            "--platform-manufacturer Holdfast\n--platform-version 1\n--platform-model VM\n", encoding="ascii"
        )
        authority = folder / "ca.conf"
        authority.write_text(
            f"statedir = {folder}\nsigningkey = {self.key}\nissuercert = {self.certificate}\n"
            f"certserial = {serial}\n",
            encoding="utf-8",
        )
        setup = folder / "setup.conf"
        setup.write_text(
            f"create_certs_tool = swtpm_localca\ncreate_certs_tool_config = {authority}\n"
            f"create_certs_tool_options = {options}\nactive_pcr_banks = sha256\n",
            encoding="utf-8",
        )
        return setup

    def _make(self) -> None:
        if self.certificate.exists():
            return
        if self.key.exists():
            loaded = load_pem_private_key(self.key.read_bytes(), None)
            if not isinstance(loaded, ec.EllipticCurvePrivateKey):
                raise TypeError(f"{self.key} holds no elliptic-curve key")
            key = loaded
        else:
            key = ec.generate_private_key(ec.SECP256R1())
            text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            write_atomic(self.key, text, 0o600)
        write_atomic(self.certificate, _self_signed(key).public_bytes(Encoding.PEM), 0o600)


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name(
        [
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Holdfast"),
            x509.NameAttribute(x509.NameOID.COMMON_NAME, f"vTPM CA of {socket.gethostname()}"[:64]),
        ]
    )
    now = datetime.datetime.now(datetime.UTC)
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=365 * _YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
