"""`holdfast vm export` as a person runs it: an archive or a folder, whole, checked, signed, or nothing."""

import datetime
import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from holdfast.api.client import Client, DaemonNotReachable, Place
from holdfast.cli import export_files

NAMES = ["web.ovf", "web.mf", "web-disk0.vmdk"]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Beside what the daemon keeps."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def signing(folder: Path, key: Any) -> tuple[str, str]:
    """Files with a key and its own certificate."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Exporter")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*form))
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return str(folder / "key.pem"), str(folder / "cert.pem")


def test_an_archive_holds_descriptor_manifest_and_disks_in_order(daemon: Any, here: Path) -> None:
    run(daemon, "vm", "create", "web")
    target = here / "web.ova"
    done = run(daemon, "vm", "export", "web", "--to", str(target), "--format", "json")
    with tarfile.open(target) as archive:
        names = archive.getnames()
        contents = [archive.extractfile(name).read() for name in names]  # type: ignore[union-attr]
    assert names == NAMES
    assert contents[::2] == [b"abc", b"abc"]
    assert json.loads(done.stdout) == {
        "vm": "web",
        "checkpoint": None,
        "path": str(target),
        "files": {"web.ovf": 3, "web.mf": len(contents[1]), "web-disk0.vmdk": 3},
        "signed": False,
    }
    assert target.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in here.iterdir()] == ["web.ova"]
    assert run(daemon, "vm", "export", "web", "--to", str(target)).returncode == 2


@pytest.mark.parametrize("kind", ["rsa", "ec"])
def test_a_folder_with_firmware_state_and_a_signature(daemon: Any, here: Path, kind: str) -> None:
    run(daemon, "vm", "create", "web")
    curve = ec.SECP256R1()
    key: Any = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(curve)
    private, certificate = signing(here, key)
    (here / "secret").write_text("five plain words for this\n")
    target = here / "out"
    arguments = ("--format", "qcow2", "--with-firmware-state", "--passphrase-file", str(here / "secret"))
    signed = ("--sign-key", private, "--sign-cert", certificate)
    done = run(daemon, "vm", "export", "web", "--to", str(target), *arguments, *signed)
    assert done.returncode == 0, done.stderr
    found = {path.name: path.read_bytes() for path in target.iterdir()}
    assert sorted(found) == ["web-disk0.qcow2", "web.cert", "web.hfstate", "web.mf", "web.ovf"]
    (asked,) = daemon.vm_exports.asked
    assert asked.format == "qcow2"
    assert asked.firmware_state.sha256 == hashlib.sha256(found["web.hfstate"]).hexdigest()
    line, rest = found["web.cert"].split(b"\n", 1)
    head, signature = line.decode().split("= ")
    assert (head, rest) == ("SHA256(web.mf)", Path(certificate).read_bytes())
    how = (padding.PKCS1v15(), hashes.SHA256()) if kind == "rsa" else (ec.ECDSA(hashes.SHA256()),)
    key.public_key().verify(bytes.fromhex(signature), found["web.mf"], *how)


@pytest.mark.parametrize("target", ["web.ova", "folder"])
def test_what_does_not_come_as_the_manifest_says_leaves_nothing(daemon: Any, here: Path, target: str) -> None:
    run(daemon, "vm", "create", "web")
    daemon.vm_exports.lies = True
    done = run(daemon, "vm", "export", "web", "--to", str(here / target))
    assert done.returncode == 8
    assert "web-disk0.vmdk" in done.stderr
    assert list(here.iterdir()) == []


def test_a_folder_that_is_not_there_is_said_before_anything_is_made(daemon: Any, here: Path) -> None:
    run(daemon, "vm", "create", "web")
    done = run(daemon, "vm", "export", "web", "--to", str(here / "none/web.ova"))
    assert done.returncode == 2 and "file-not-written" in done.stderr
    assert daemon.vm_exports.asked == []


def test_a_key_that_is_not_the_certificates_is_refused_first(daemon: Any, here: Path) -> None:
    run(daemon, "vm", "create", "web")
    private, certificate = signing(here, ec.generate_private_key(ec.SECP256R1()))
    other = here / "other"
    other.mkdir()
    private, _ = signing(other, ec.generate_private_key(ec.SECP256R1()))
    for signed in (
        ("--sign-key", private, "--sign-cert", certificate),
        ("--sign-key", private),
        ("--sign-key", certificate, "--sign-cert", certificate),
    ):
        done = run(daemon, "vm", "export", "web", "--to", str(here / "web.ova"), *signed)
        assert done.returncode == 2, done.stderr
    assert daemon.vm_exports.asked == []


def test_a_file_is_fetched_from_where_it_broke_off(daemon: Any) -> None:
    with Client(Place(socket=daemon.socket)) as client:
        assert b"".join(client.chunks("/v1/exports/x/web-disk0.vmdk", 1)) == b"bc"


def test_a_broken_connection_is_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Breaking:
        def chunks(self, _: str, start: int) -> Iterator[bytes]:
            asked.append(start)
            yield b"0123456789"[start : start + 4]
            raise DaemonNotReachable("gone")

    monkeypatch.setattr(export_files, "_PAUSE", 0.0)
    assert b"".join(export_files._fetched(Breaking(), "path", 10)) == b"0123456789"
    assert asked == [0, 4, 8]
