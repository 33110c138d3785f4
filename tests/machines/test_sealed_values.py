"""What a guest sealed in its TPM to its boot: it opens wherever its firmware state goes, and nowhere else.

One Debian guest: boot, save, resume, export, a move by --same-tpm with import, and a plain clone.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian_guest import debian_vm, with_debian
from invariants import check_invariants
from live_host import LiveHost, live_host

from holdfast.spec.errors import RemoteError
from holdfast.spec.vm import VmState

NAME, VALUE, FILE = "keeper", "the-key-of-a-disk", "/root/sealed.json"
PCRS = "4,7"
"""Boot loaders and Secure Boot: what a disk's key is usually sealed to."""
PASSPHRASE = "five plain words for this"
PROGRAM = (Path(__file__).parents[1] / "guests" / "guest_tpm.py").read_text()
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveHost]:
    with live_host(tmp_path_factory.mktemp("sealing")) as running:
        yield with_debian(running)


def in_guest(host: LiveHost, name: str, *arguments: str) -> str:
    script = f"python3 - {shlex.join(arguments)} <<'END'\n{PROGRAM}\nEND"
    return host.run_in(name, script, limit=120).strip()


def stop(host: LiveHost, name: str) -> None:
    host.do("POST", f"/v1/vms/{name}/stop", timeout_seconds=300)
    assert host.vm(name).state is VmState.OFF


def test_sealing_survives_save_rotation_export_import_and_a_move_but_no_clone(
    host: LiveHost, tmp_path: Path
) -> None:
    # One CPU: with two, an emulated guest on a busy host may wait for a timer for ever.
    host.do("POST", "/v1/vms", debian_vm(NAME, cpus=1))
    host.wait_agent(NAME)
    host.run_in(NAME, "cloud-init status --wait >/dev/null || true; sync", limit=300)
    assert in_guest(host, NAME, "seal", PCRS, VALUE, FILE) == "sealed"
    assert in_guest(host, NAME, "unseal", FILE) == VALUE

    checkpoints = f"/v1/vms/{NAME}/checkpoints"
    for kind in ("standard", "production-only"):
        made = host.do("POST", checkpoints, {"name": kind, "type": kind}).result
        assert made is not None and made["type"] == kind.removesuffix("-only")
    host.do("POST", f"/v1/vms/{NAME}/save")
    assert host.call("POST", "/v1/host/key/rotate", {})["rewrapped"] == 1
    host.do("POST", f"/v1/vms/{NAME}/start")
    host.wait_agent(NAME)
    assert in_guest(host, NAME, "unseal", FILE) == VALUE

    _turned_back(host, checkpoints)
    host.run_in(NAME, "sync")
    stop(host, NAME)
    check_invariants(host)
    file = tmp_path / "state"
    with host.client() as client:
        export = f"/v1/vms/{NAME}/firmware-state/export"
        file.write_bytes(client.content("POST", export, {"passphrase": PASSPHRASE}))
    host.do("POST", f"/v1/vms/{NAME}/clone", {"name": "moved", "same_tpm": True})
    host.do("POST", f"/v1/vms/{NAME}/clone", {"name": "copy"})
    with host.client() as client:
        upload = client.upload(file).id
    host.call("POST", "/v1/vms/moved/firmware-state/import", {"upload": upload, "passphrase": PASSPHRASE})
    host.do("POST", "/v1/vms/moved/start")
    with pytest.raises(RemoteError) as caught:
        host.call("POST", f"/v1/vms/{NAME}/start")
    assert caught.value.wire_id == "tpm-identity-in-use"
    host.wait_agent("moved")
    assert in_guest(host, "moved", "unseal", FILE) == VALUE
    host.call("POST", "/v1/vms/moved/kill")

    host.do("POST", "/v1/vms/copy/start")
    host.wait_agent("copy")
    refused = in_guest(host, "copy", "unseal", FILE)
    assert refused.startswith("refused 0x")
    assert in_guest(host, "copy", "seal", PCRS, "its-own", "/root/own.json") == "sealed"
    assert in_guest(host, "copy", "unseal", "/root/own.json") == "its-own"
    host.call("POST", "/v1/vms/copy/kill")
    for name in (NAME, "moved", "copy"):
        host.do("DELETE", f"/v1/vms/{name}")
    assert check_invariants(host) == []


def cli(host: LiveHost, *arguments: str) -> None:
    env = {**os.environ, "HOLDFAST_SOCKET": str(host.state.socket)}
    done = subprocess.run(
        [sys.executable, "-m", "holdfast", "vm", *arguments], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_sealing_survives_an_export_and_an_import_of_the_whole_vm(host: LiveHost, tmp_path: Path) -> None:
    host.do("POST", "/v1/vms", debian_vm("away"))
    host.wait_agent("away")
    assert in_guest(host, "away", "seal", PCRS, VALUE, FILE) == "sealed"
    host.run_in("away", "sync")
    stop(host, "away")
    before = host.vm("away").id
    ova, secret = tmp_path / "away.ova", tmp_path / "secret"
    secret.write_text(PASSPHRASE)
    opened_by = ("--passphrase-file", str(secret))
    cli(host, "export", "away", "--to", str(ova), "--with-firmware-state", *opened_by)
    host.do("DELETE", "/v1/vms/away")
    cli(host, "import", str(ova), "--start", *opened_by)
    assert host.vm("away").id == before
    host.wait_agent("away")
    assert in_guest(host, "away", "unseal", FILE) == VALUE
    host.call("POST", "/v1/vms/away/kill")
    host.do("DELETE", "/v1/vms/away")
    assert check_invariants(host) == []


def _turned_back(host: LiveHost, checkpoints: str) -> None:
    """The TPM that could open it is gone, and so is a file; both come back, whichever the kind."""
    for kind in ("standard", "production-only"):
        assert in_guest(host, NAME, "clear") == "cleared"
        assert in_guest(host, NAME, "unseal", FILE).startswith("refused 0x")
        assert in_guest(host, NAME, "seal", PCRS, "another", "/root/other.json") == "sealed"
        host.run_in(NAME, "sync")
        host.do("POST", f"{checkpoints}/{kind}/apply", {})
        host.wait_agent(NAME)
        assert in_guest(host, NAME, "unseal", FILE) == VALUE
        host.run_in(NAME, "! test -e /root/other.json")
    host.do("DELETE", f"{checkpoints}/standard", subtree="true")
    assert host.call("GET", checkpoints) == []
