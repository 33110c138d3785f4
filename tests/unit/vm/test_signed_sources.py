"""Signed packages: by somebody this host knows, by anybody, and with a signature that does not hold."""

import datetime
import hashlib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from held_files import held

from holdfast.cli.sheets.appliance import plan_sheet
from holdfast.spec.appliance import ImportFile, VmImport
from holdfast.storage.appliances.source import Source, read_source
from holdfast.vm.import_plan import HostFacts, SourceFacts, plan_import

OVF = (Path(__file__).parent / "appliances" / "vsphere-uefi.ovf").read_bytes()
DAY = datetime.timedelta(days=1)


class Party:
    """A key and a certificate, its own or somebody's."""

    def __init__(
        self, name: str, issuer: "Party | None" = None, authority: bool = False, days: int = 10
    ) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        above, now = issuer or self, datetime.datetime.now(datetime.UTC)
        self.certificate = (
            x509.CertificateBuilder(above.name, self.name, self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 20 * DAY)
            .not_valid_after(now + days * DAY)
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .sign(above.key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)


ROOT = Party("Root", authority=True)
BETWEEN = Party("Between", ROOT, authority=True)
NO_AUTHORITY = Party("Person", ROOT)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "authorities.pem"
    path.write_bytes(ROOT.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))


def signed(signer: Party, *above: Party, broken: bool = False) -> Source:
    manifest = f"SHA256(a.ovf)= {hashlib.sha256(OVF).hexdigest()}\n".encode()
    signature = signer.key.sign(manifest, ec.ECDSA(hashes.SHA256()))
    certificate = f"SHA256(a.mf)= {signature.hex()}\n".encode() + b"".join(
        each.pem for each in (signer, *above)
    )
    listed = manifest + (b"\n" if broken else b"")
    return read_source([held("a.ovf", OVF), held("a.mf", listed), held("a.cert", certificate)])


CASES = {
    "known": ((Party("Signer", ROOT),), "signed"),
    "known by a path": ((Party("Signer", BETWEEN), BETWEEN), "signed"),
    "an authority itself": ((ROOT,), "signed"),
    "the path is not there": ((Party("Signer", BETWEEN),), "signer-unknown"),
    "by itself": ((Party("Signer"),), "signer-unknown"),
    "an authority of its own": (
        (Party("S", imposter := Party("Root", authority=True)), imposter),
        "signer-unknown",
    ),
    "by one who is no authority": ((Party("Signer", NO_AUTHORITY), NO_AUTHORITY), "signer-unknown"),
    "out of date": ((Party("Signer", ROOT, days=-5),), "signature-out-of-date"),
}


@pytest.mark.parametrize("case", CASES)
def test_who_signed_is_told_and_whether_he_is_known(case: str) -> None:
    parties, finding = CASES[case]
    source = signed(*parties)
    assert source.signature is not None and source.signature.fits
    assert source.signature.known is (finding == "signed")
    assert finding in {each.id for each in source.findings}


def test_a_signature_that_does_not_hold_stands_in_the_way() -> None:
    source = signed(Party("Signer", ROOT), broken=True)
    assert source.signature is not None and not source.signature.fits and not source.signature.known
    host = HostFacts((), 64, 1 << 40, 1 << 40, {}, frozenset(), frozenset())
    request = VmImport(files=(ImportFile(name="x", upload="x"),))
    facts = SourceFacts({}, source.findings, signature=source.signature)
    plan = plan_import(source.appliance, facts, host, request)
    assert not plan.importable and "signature-invalid" in {each.id for each in plan.findings}
    assert "does NOT hold" in plan_sheet(plan.model_dump(mode="json"))


def test_without_authorities_nobody_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificates")
    monkeypatch.setenv("SSL_CERT_FILE", str(broken))
    source = signed(Party("Signer", ROOT))
    assert source.signature is not None and not source.signature.known
