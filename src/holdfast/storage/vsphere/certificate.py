"""Whether a server of VMware is who it says: by an authority of this host, or by its very certificate.

    certificate ── signed by an authority that this host trusts ─▶ trusted
         │
         └─ thumbprint given, or kept from before ── the same ─▶ trusted, by this certificate alone
                                                  └─ another ─▶ refused

vCenter signs its own by default, so a thumbprint is shown once and kept (`keys/vsphere.json`). Nothing
is sent before the certificate is known to be right: the context that is made here takes no other.
"""

import contextlib
import hashlib
import json
import re
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from holdfast.host.files import write_atomic
from holdfast.storage.vsphere.refusals import (
    VsphereCertificateChanged,
    VsphereCertificateUnknown,
    VsphereCertificateUnusable,
    VsphereUnreachable,
)

_SECONDS = 20.0
_HEX = re.compile(r"[0-9A-F]{64}", re.ASCII)
_MOST = 10_000
"""Servers whose certificates are kept."""


@dataclass(frozen=True)
class Trust:
    context: ssl.SSLContext
    thumbprint: str
    """SHA-256 of the server's certificate: upper-case hex with colons."""
    by: Literal["authority", "thumbprint"]


class Pins:
    """Thumbprints of servers, kept in one file that only the daemon reads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changing = threading.Lock()

    def get(self, server: str) -> str | None:
        return self._all().get(server)

    def keep(self, server: str, thumbprint: str) -> None:
        with self._changing:
            kept = self._all() | {server: thumbprint}
            write_atomic(self._path, json.dumps(dict(list(kept.items())[-_MOST:]), indent=1).encode())

    def _all(self) -> dict[str, str]:
        try:
            found = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        return {str(key): str(value) for key, value in found.items()}


def require_trusted(host: str, port: int, server: str, given: str | None, pins: Pins) -> Trust:
    """How a server is to be trusted; blocks for as long as it takes to answer.

    Args:
        given: the thumbprint that a person checked; it is kept for later.

    Raises:
        VsphereUnreachable: nothing that speaks TLS answers there.
        VsphereCertificateUnknown: no authority here signed it, and no thumbprint is known.
        VsphereCertificateChanged: it is not the one that is known.
        VsphereCertificateUnusable: it is, and has expired or has a weak key.
    """
    shown = thumbprint_of(_shown(host, port, server))
    expected = _normal(given) if given else pins.get(server)
    if expected is None:
        usual = ssl.create_default_context()
        with contextlib.suppress(ssl.SSLCertVerificationError):
            _connect(usual, host, port, server)
            return Trust(usual, shown, "authority")
        raise VsphereCertificateUnknown(
            f"no authority that this host trusts vouches for {server}; its certificate has the SHA-256"
            f" thumbprint {shown}",
            value=shown,
            cure="Compare it with what the server itself shows, and give it with --thumbprint; or add the"
            " server's authority to those of this host.",
        )
    trust = pinned(host, port, server, expected, "sha256")
    if given:
        pins.keep(server, trust.thumbprint)
    return trust


def pinned(host: str, port: int, server: str, expected: str, algorithm: Literal["sha1", "sha256"]) -> Trust:
    """A context that takes the one certificate with that digest. Raises as `require_trusted`."""
    certificate = _shown(host, port, server)
    shown = thumbprint_of(certificate)
    digest = hashlib.new(algorithm, certificate, usedforsecurity=algorithm == "sha256").hexdigest()
    if digest.upper() != re.sub(r"[:\s-]", "", expected).upper():
        raise VsphereCertificateChanged(
            f"{server} shows a certificate with the thumbprint {shown}, and {expected} was expected",
            value=shown,
            cure="Somebody may stand in between. If it was renewed, compare the new thumbprint with what the"
            " server itself shows, and give it with --thumbprint.",
        )
    context = ssl.create_default_context()
    context.check_hostname = False  # this very certificate is the one, whatever name it bears
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)  # VMware's own lack extensions
    context.load_verify_locations(cadata=certificate)
    try:
        _connect(context, host, port, server)
    except ssl.SSLCertVerificationError as error:
        raise VsphereCertificateUnusable(
            f"the certificate of {server} is the expected one and cannot be used: {error.verify_message}",
            value=shown,
            cure="Renew it there; it has expired, or its key is too weak to vouch for anything.",
        ) from error
    return Trust(context, shown, "thumbprint")


def thumbprint_of(certificate: bytes) -> str:
    digits = hashlib.sha256(certificate).hexdigest().upper()
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))


def _normal(given: str) -> str:
    digits = re.sub(r"[:\s-]", "", given).upper()
    return digits if _HEX.fullmatch(digits) else given


def _shown(host: str, port: int, server: str) -> bytes:
    """The certificate (DER) that a server shows to whoever connects; nothing is sent to it."""
    curious = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    curious.check_hostname = False
    curious.verify_mode = ssl.CERT_NONE
    found = _connect(curious, host, port, server)
    assert found is not None  # noqa: S101  (a TLS server always shows one)
    return found


def _connect(context: ssl.SSLContext, host: str, port: int, server: str) -> bytes | None:
    """The certificate that was accepted. Raises SSLCertVerificationError, VsphereUnreachable."""
    try:
        with (
            socket.create_connection((host, port), timeout=_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as wrapped,
        ):
            return wrapped.getpeercert(binary_form=True)
    except ssl.SSLCertVerificationError:
        raise
    except OSError as error:
        raise VsphereUnreachable(
            f"{server} does not answer by TLS: {error}",
            value=server,
            cure="Check the address, and that this host may reach it.",
        ) from error
