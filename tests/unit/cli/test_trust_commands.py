"""Commands about firmware state and keys: what they ask for, what they print, and where secrets do not go."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from cryptography.hazmat.primitives.asymmetric import x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from holdfast.trust import envelope
from holdfast.trust.protection import ContentKey, RecipientLock

PASSPHRASE = "five plain words for this"


@pytest.fixture
def web(daemon: Any) -> Any:
    assert run(daemon, "vm", "create", "web").returncode == 0
    return daemon


def test_an_export_is_written_once_and_for_its_owner_only(web: Any, tmp_path: Path) -> None:
    target = tmp_path / "web.hfstate"
    done = run(web, "trust", "export-state", "web", "--to", str(target), typed=PASSPHRASE + "\n")
    assert done.returncode == 0, done.stderr
    assert target.read_bytes().startswith(envelope.MAGIC[:4])
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert web.firmware.asked[0].passphrase.get_secret_value() == PASSPHRASE
    assert PASSPHRASE not in repr(web.firmware.asked[0]) + done.stdout + done.stderr
    again = run(web, "trust", "export-state", "web", "--to", str(target), typed=PASSPHRASE + "\n")
    assert "id: file-exists" in again.stderr
    (tmp_path / "p").write_text(PASSPHRASE + "\nsecond line\n")
    other = str(tmp_path / "other")
    named = ("trust", "export-state", "web", "--to", other, "--passphrase-file", str(tmp_path / "p"))
    shown = run(web, *named, "--format", "json")
    assert json.loads(shown.stdout) == {"vm": "web", "file": other, "size": 13}
    assert web.firmware.asked[-1].passphrase.get_secret_value() == PASSPHRASE
    assert (
        "id: no-secret-given" in run(web, "trust", "export-state", "web", "--to", str(tmp_path / "n")).stderr
    )
    assert not (tmp_path / "n").exists()


def test_the_recipients_private_key_stays_here(web: Any, tmp_path: Path) -> None:
    pair = x25519.X25519PrivateKey.generate()
    public = pair.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    secret = pair.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "public.pem").write_bytes(public)
    (tmp_path / "private.pem").write_bytes(secret)
    args = ("--to", str(tmp_path / "out"), "--recipient", str(tmp_path / "public.pem"))
    assert run(web, "trust", "export-state", "web", *args).returncode == 0
    assert web.firmware.asked[0].recipient == public.decode().strip()
    assert web.firmware.asked[0].passphrase is None
    data = envelope.seal({"version": 1}, b"content", RecipientLock.of_pem(public))
    (tmp_path / "in").write_bytes(data)
    key = ("--private-key", str(tmp_path / "private.pem"))
    done = run(web, "trust", "import-state", "web", str(tmp_path / "in"), *key, "--same-tpm")
    assert done.returncode == 0, done.stderr
    sent, request, actor = web.firmware.asked[1]
    assert sent == data and request.same_tpm and request.passphrase is None and actor
    opened = envelope.parse(sent).open(ContentKey.of_hex(request.content_key.get_secret_value()))
    assert opened == b"content"
    assert request.content_key.get_secret_value() not in done.stdout + done.stderr
    (tmp_path / "in").write_bytes(data[:50])
    refused = run(web, "trust", "import-state", "web", str(tmp_path / "in"), *key)
    assert "id: firmware-state-damaged" in refused.stderr


def test_a_recovery_key_is_printed_alone_and_read_from_standard_input(web: Any) -> None:
    made = run(web, "trust", "recovery-key", "web")
    assert made.stdout == "KEY-0-False\n" and "not shown again" in made.stderr
    assert run(web, "trust", "recovery-key", "web").returncode == 4
    renewed = run(web, "trust", "recovery-key", "web", "--new", "--format", "json")
    assert json.loads(renewed.stdout) == {"vm": "web", "recovery_key": "KEY-1-True"}
    done = run(web, "trust", "recover", "web", typed="KEY-1-True\n")
    assert done.returncode == 0 and web.firmware.asked == ["KEY-1-True"]
    assert "KEY-1-True" not in done.stdout + done.stderr
    assert run(web, "trust", "recover", "web", "KEY-1-True").returncode == 2
    assert "id: no-secret-given" in run(web, "trust", "recover", "web").stderr


def test_a_vm_is_made_with_its_recovery_key(daemon: Any) -> None:
    made = run(daemon, "vm", "create", "db", "--recovery-key")
    assert made.stdout == "KEY-0-False\n", made.stderr
    shown = run(daemon, "vm", "create", "db2", "--recovery-key", "--format", "json")
    assert json.loads(shown.stdout)["recovery_key"] == "KEY-1-False"
    for more in ("--no-tpm", "--no-wait"):
        refused = run(daemon, "vm", "create", "db3", "--recovery-key", more)
        assert "id: recovery-key-not-now" in refused.stderr
    assert len(daemon.vms.created) == 2


def test_a_rotation_says_what_keeps_the_key_and_what_does_not_open(daemon: Any) -> None:
    done = run(daemon, "trust", "rotate-host-key", "--to", "file")
    assert done.returncode == 0 and daemon.firmware.asked == ["file"]
    assert "kept well" in done.stderr and "holdfast trust recover db" in done.stderr
    assert json.loads(run(daemon, "trust", "rotate-host-key", "--format", "json").stdout)["rewrapped"] == 3
    assert "id: bad-request" in run(daemon, "trust", "rotate-host-key", "--to", "cloud").stderr


def test_both_ways_of_cloning_are_said_plainly(web: Any) -> None:
    own = run(web, "vm", "clone", "web", "copy")
    assert "TPM identity of its own" in own.stderr and "--same-tpm" in own.stderr
    same = run(web, "vm", "clone", "web", "moved", "--same-tpm")
    assert "must never both run" in same.stderr


@pytest.mark.parametrize("path", ["firmware-state/export", "recovery-key", "recover"])
def test_an_operator_gets_at_no_keys(tls_daemon: Any, tmp_path: Path, path: str) -> None:
    from holdfast.api.client import Client, Place
    from holdfast.spec.access import Role
    from holdfast.spec.errors import RemoteError
    from holdfast.spec.token import TokenCreate

    _, secret = tls_daemon.call(tls_daemon.tokens.create(TokenCreate(name="op", role=Role.OPERATOR)))
    (tmp_path / "token").write_text(secret)
    place = Place(url=tls_daemon.url, fingerprint=tls_daemon.fingerprint, token_file=tmp_path / "token")
    with Client(place) as client, pytest.raises(RemoteError) as caught:
        client.wire("POST", f"/v1/vms/web/{path}", {"recovery_key": "x"} if path == "recover" else {})
    assert caught.value.wire_id == "role-too-low"
